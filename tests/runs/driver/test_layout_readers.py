"""Any rows in any layout, read back by the usual readers, are the rows that were written."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from benchmarks.suite.environments import PEERS, PeerMissingError, environment_of
from partitioning.hive_paths import NULL_VALUE
from tests.support.examples import fewer
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


def generated(examples: int) -> settings:
    return settings(
        max_examples=fewer(examples),
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def clear(small: Small, *folders: str) -> None:
    for folder in folders:
        shutil.rmtree(small.root / folder, ignore_errors=True)


def publish(
    small: Small, frame: pl.DataFrame, layout: dict[str, Any], files: int, mode: str = "append"
) -> None:
    clear(small, "in")
    each = -(-frame.height // files)
    for number, part in enumerate(frame.iter_slices(each)):
        small.write(f"{number}.parquet", part)
    small.run(small.job(output=layout, mode=mode))


def rows_of(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """The rows as readers see them: the name of a folder holds booleans as text."""
    return (
        frame.select(sorted(frame.columns))
        .sort("id")
        .with_columns(
            pl.col(name).cast(pl.String) for name in names if frame.schema[name] == pl.Boolean
        )
    )


@generated(12)
@given(frame=frames(), layout=LAYOUTS, files=st.integers(1, 3))
def test_readers_agree(
    small: Small, frame: pl.DataFrame, layout: dict[str, Any], files: int
) -> None:
    clear(small, "out", "out.chunkmap")
    publish(small, frame, layout, files)
    names = layout["partition_by"]
    as_texts = rows_of(frame, names)
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


@pytest.mark.long
@pytest.mark.timeout(900)
def test_pyspark_reads_the_same(small: Small) -> None:
    """Of a Delta table it reads the files that the log names, as Delta's classes would tell it."""
    state = Path(__file__).parents[3] / ".chunkmap"
    try:
        python = environment_of(PEERS["pyspark"], state).command[0]
    except PeerMissingError as error:
        pytest.skip(str(error))
    cases: list[dict[str, Any]] = []
    expected: list[pl.DataFrame] = []

    @generated(10)
    @given(frame=frames(), layout=LAYOUTS, files=st.integers(1, 3))
    def write(frame: pl.DataFrame, layout: dict[str, Any], files: int) -> None:
        names, folder = layout["partition_by"], small.root / "written" / str(len(cases))
        clear(small, "out", "out.chunkmap")
        is_table = layout["table"] is not None
        if is_table:  # Its first version stays in the folder.
            publish(small, frame.head(1), layout, 1, "overwrite")
        publish(small, frame, layout, files, "overwrite")
        folder.parent.mkdir(exist_ok=True)
        shutil.move(small.root / "out", folder)
        cases.append(
            {
                "folder": str(folder),
                "files": [str(folder / key) for key in live_keys(folder)] if is_table else [],
                "schema": spark_schema(frame, names),
                "target": str(small.root / "read" / str(len(cases))),
            }
        )
        expected.append(rows_of(frame, names))

    write()
    (small.root / "cases.json").write_text(json.dumps(cases), "utf-8")
    script = Path(__file__).parents[2] / "support" / "read_with_pyspark.py"
    subprocess.run([python, script, "cases.json"], cwd=small.root, check=True)
    for case, rows in zip(cases, expected, strict=True):
        found = pl.read_parquet(Path(case["target"], "*.parquet"))
        got = found.select(sorted(found.columns)).sort("id")
        assert_frame_equal(got, rows, check_exact=True)
    assert any(case["files"] for case in cases)


def live_keys(table: Path) -> list[str]:
    """The files of the newest version of a Delta table, read from its log as the protocol says."""
    live: dict[str, None] = {}
    for commit in sorted((table / "_delta_log").glob("*.json")):
        for line in commit.read_text("utf-8").splitlines():
            action = json.loads(line)
            if "add" in action:
                live[unquote(action["add"]["path"])] = None
            elif "remove" in action:
                live.pop(unquote(action["remove"]["path"]))
    return list(live)


def spark_schema(frame: pl.DataFrame, names: list[str]) -> str:
    """The columns as Spark declares them."""
    kinds = {pl.Int64: "BIGINT", pl.Int8: "TINYINT", pl.Date: "DATE", pl.Float32: "FLOAT"}
    kinds |= {pl.String: "STRING", pl.Boolean: "BOOLEAN"}
    kept = {n: kind for n, kind in frame.schema.items() if n not in names}
    folders = {n: pl.String() if frame.schema[n] == pl.Boolean else frame.schema[n] for n in names}
    return ", ".join(f"{n} {kinds[type(kind)]}" for n, kind in (kept | folders).items())
