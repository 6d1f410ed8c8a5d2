"""What is DuckDB's own: its types, and its file, which one process at a time may write."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipeline.load.errors import (
    DestinationBusyError,
    DestinationError,
    LoadFailedError,
    TableMismatchError,
)
from tests.load.targets import DuckDBTarget, ids
from tests.load.typed import TYPES
from tests.support.published_frames import Frames


@pytest.fixture
def target(output: Frames, tmp_path: Path) -> DuckDBTarget:
    return DuckDBTarget(output, tmp_path / "warehouse.duckdb")


def test_every_type_has_the_same_values_afterwards(target: DuckDBTarget) -> None:
    more = pl.DataFrame(
        {
            "at_ns": pl.Series([123, None], dtype=pl.Datetime("ns")),
            "array": pl.Series([[[1, 2], [3, 4], [5, 6]], None], dtype=pl.Array(pl.Int8, (3, 2))),
        }
    )
    frame = pl.concat([TYPES, more], how="horizontal")
    target.output.add(frame)
    assert target.load().rows == 2
    with duckdb.connect(str(target.path)) as connection:
        loaded = pl.DataFrame(
            pl.from_arrow(connection.sql("SELECT * EXCLUDE (took) FROM t").to_arrow_table())
        )
    wanted = frame.with_columns(
        pl.col("kind", "level").cast(pl.String),
        pl.col("at_ms").cast(pl.Datetime("us")),
        pl.col("at_zone").dt.convert_time_zone("UTC"),
    )
    loaded = loaded.with_columns(pl.col("at_zone").dt.convert_time_zone("UTC"))
    assert loaded.to_dicts() == wanted.drop("took").to_dicts()
    assert target.rows("SELECT took FROM t") == [(timedelta(days=2, microseconds=3),), (None,)]
    kinds = dict(target.rows("SELECT column_name, data_type FROM duckdb_columns() "
                             "WHERE table_name = 't'"))  # fmt: skip
    assert kinds["u64"] == "UBIGINT" and kinds["price"] == "DECIMAL(38,2)"
    assert kinds["array"] == "TINYINT[2][3]"
    assert kinds["struct"] == 'STRUCT(a BIGINT, "b c" VARCHAR[])'
    target.output.add(frame)
    assert target.load().rows == 2, "the table that it made fits"


def test_nan_is_kept(target: DuckDBTarget) -> None:
    target.output.add(pl.DataFrame({"f": [float("nan"), float("-inf")]}))
    target.load()
    assert target.rows("SELECT isnan(f), f::VARCHAR FROM t ORDER BY 1") == [
        (False, "-inf"), (True, "nan"),
    ]  # fmt: skip


def test_what_has_no_type_is_refused_before_anything_is_written(target: DuckDBTarget) -> None:
    target.output.add(pl.DataFrame({"id": [1], "nothing": [None], "ID": ["x"]}))
    with pytest.raises(TableMismatchError) as caught:
        target.load()
    assert "nothing (Null): it holds nulls only" in caught.value.message
    assert "columns id and ID have the same name" in caught.value.message
    assert not target.path.exists()


def test_another_table_is_refused_or_widened(target: DuckDBTarget) -> None:
    target.run("CREATE TABLE t (id INTEGER, gone DATE)")
    target.output.add(ids(1))
    with pytest.raises(TableMismatchError) as caught:
        target.load()
    for part in ("id is INTEGER and must hold BIGINT", "it lacks v", "the output has no gone"):
        assert part in caught.value.message
    assert "ALTER TABLE" in (caught.value.hint or "")
    target.run("ALTER TABLE t ALTER COLUMN id TYPE HUGEINT; ALTER TABLE t DROP COLUMN gone")
    with pytest.raises(TableMismatchError, match="it lacks v") as caught:
        target.load()
    assert "--schema widen" in (caught.value.hint or "")
    assert target.load(widen=True).added == ("v",)
    assert target.rows() == [(1, "v1")]


def test_sums_of_more_digits_than_python_computes_with(target: DuckDBTarget) -> None:
    large = [Decimal(9 * 10**27 + number) for number in range(20)]
    target.output.add(pl.DataFrame({"id": pl.Series(large, dtype=pl.Decimal(28, 0))}))
    target.load(mode="replace")
    assert target.rows("SELECT sum(id)::VARCHAR FROM t") == [(str(sum(map(int, large))),)]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let the operating system refuse to make files larger than this, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.faults
def test_a_full_disk_is_named_and_what_is_repeated_is_there_once(target: DuckDBTarget) -> None:
    target.output.add(ids(-1))
    target.load()
    numbers = pl.DataFrame({"id": range(100_000)})
    hashes = pl.col("id").hash(1).cast(pl.String) + pl.col("id").hash(2).cast(pl.String)
    target.output.add(numbers.with_columns(v=hashes))
    with files_up_to(2 << 20), pytest.raises(LoadFailedError, match="cannot be written") as caught:
        target.load()
    assert "free space" in (caught.value.hint or "")
    assert target.rows("SELECT id FROM t") == [(-1,)]
    assert target.load().rows == 100_000
    assert target.rows("SELECT count(*), count(DISTINCT id) FROM t") == [(100_001, 100_001)]


def test_a_file_that_another_process_has_open_is_named(target: DuckDBTarget) -> None:
    target.output.add(ids(1))
    other = subprocess.Popen(
        [sys.executable, "-c", "import duckdb, sys; c = duckdb.connect(sys.argv[1]); "
         "print('open', flush=True); sys.stdin.read()", str(target.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(DestinationBusyError, match=f"PID {other.pid}") as caught:
            replace(target, wait_seconds=0.3).load()
        assert caught.value.exit_code == 3
    finally:
        other.communicate("")
    assert target.load().rows == 1


@pytest.mark.parametrize(
    ("path", "says"),
    [("missing/a.duckdb", "folder of .* does not exist"), ("text.duckdb", "not a valid DuckDB")],
)
def test_a_file_that_cannot_be_opened_is_named(target: DuckDBTarget, path: str, says: str) -> None:
    target.output.add(ids(1))
    (target.path.parent / "text.duckdb").write_text("hello " * 1000)
    broken = replace(target, path=target.path.parent / path)
    with pytest.raises(DestinationError, match=says) as caught:
        broken.load()
    assert caught.value.hint
