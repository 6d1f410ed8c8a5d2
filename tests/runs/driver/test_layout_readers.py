"""Any rows in any layout, read back by the usual readers, are the rows that were written."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from partitioning.hive_paths import NULL_VALUE
from tests.support.small import Small

CODE = """
def same(frame):
    return frame
"""
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
KINDS: dict[str, tuple[Any, Any, str]] = {
    "text": (pl.String, TEXTS.filter(lambda text: text != NULL_VALUE), "VARCHAR"),
    "whole": (pl.Int64, st.integers(-(2**63), 2**63 - 1), "BIGINT"),
    "tiny": (pl.Int8, st.integers(-3, 3), "TINYINT"),
    "day": (pl.Date, st.dates(date(1, 1, 1), date(9999, 12, 31)), "DATE"),
    "flag": (pl.Boolean, st.booleans(), "VARCHAR"),
}
"""Type in Polars, values, and type in DuckDB of the columns that may be partitioned by."""


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.integers(1, 30))
    columns = [
        # Few values, so that partitions have several rows.
        pl.Series(
            name,
            draw(
                st.lists(
                    st.sampled_from([*draw(st.lists(values, min_size=1, max_size=4)), None]),
                    min_size=rows,
                    max_size=rows,
                )
            ),
            dtype=kind,
        )
        for name, (kind, values, _) in KINDS.items()
    ]
    real = draw(st.lists(st.none() | st.floats(width=32), min_size=rows, max_size=rows))
    return pl.DataFrame([pl.Series("id", range(rows), pl.Int64), *columns]).with_columns(
        real=pl.Series(real, dtype=pl.Float32)
    )


LAYOUTS = st.fixed_dictionaries(
    {
        "partition_by": st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3, unique=True),
        "file_bytes": st.none() | st.integers(1, 4000),
        "sort_by": st.lists(st.sampled_from([*KINDS, "real", "id"]), max_size=3, unique=True),
        "dictionary": st.none() | st.just(["id"]),
        "table": st.none() | st.just({"format": "delta"}),
    }
)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    return Small(tmp_path, CODE)


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(frame=frames(), layout=LAYOUTS, files=st.integers(1, 3))
def test_readers_agree(
    small: Small, frame: pl.DataFrame, layout: dict[str, Any], files: int
) -> None:
    for folder in ("in", "out", "out.chunkmap"):
        shutil.rmtree(small.root / folder, ignore_errors=True)
    each = -(-frame.height // files)
    for number, part in enumerate(frame.iter_slices(each)):
        small.write(f"{number}.parquet", part)
    small.run(small.job(output=layout))
    names = layout["partition_by"]
    expected = frame.select(sorted(frame.columns)).sort("id")
    # The name of a folder holds booleans as text.
    as_texts = expected.with_columns(
        pl.col(name).cast(pl.String) for name in names if frame.schema[name] == pl.Boolean
    )
    readers = read(small.root / "out", names)
    if layout["table"] is not None:
        readers |= read_delta(small.root / "out")
    for found in readers.values():
        got = found.select(sorted(found.columns)).sort("id")
        assert_frame_equal(got, as_texts, check_exact=True)
    rows = small.rows()
    assert_frame_equal(rows.select(sorted(rows.columns)).sort("id"), as_texts)


def read_delta(out: Path) -> dict[str, pl.DataFrame]:
    """The rows of a table, whose log knows the types of its partition columns."""
    arrow = DeltaTable(out).to_pyarrow_table()
    return {
        "polars of the table": pl.scan_delta(str(out)).collect(),
        "delta-rs": pl.DataFrame(pl.from_arrow(arrow)),
    }


def read(out: Path, names: list[str]) -> dict[str, pl.DataFrame]:
    """The rows of an output, as readers see them who know the types of its partition columns."""
    kinds = {n: pl.String if KINDS[n][0] == pl.Boolean else KINDS[n][0] for n in names}
    arrow = pl.DataFrame(schema=kinds).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    arrow = pa.schema(
        [pa.field(f.name, pa.string() if f.type == pa.large_string() else f.type) for f in arrow]
    )
    hive = ds.HivePartitioning(arrow, null_fallback=NULL_VALUE)
    types = ", ".join(f"'{name}': {KINDS[name][2]}" for name in names)
    query = (
        f"select * from read_parquet('{out}/**/*.parquet', hive_partitioning = true, "
        f"hive_types = {{{types}}})"
    )
    table = ds.dataset(out, format="parquet", partitioning=hive).to_table()
    return {
        "polars": pl.scan_parquet(out / "**/*.parquet", hive_schema=kinds).collect(),
        "pyarrow": pl.DataFrame(pl.from_arrow(table)),
        "duckdb": duckdb.sql(query).pl(),
    }
