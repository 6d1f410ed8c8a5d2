"""Loads into a DuckDB file: what is in it afterwards is what the output has."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from pipeline.errors import ChunkmapError, UsageError
from pipeline.load.batches import OutputVersion
from pipeline.load.destination import TableName
from pipeline.load.duckdb_file import DuckDBFile
from pipeline.load.errors import (
    DestinationBusyError,
    DestinationError,
    LoadFailedError,
    ReplacedCommitsError,
    TableMismatchError,
)
from pipeline.load.loader import LoadProgress, LoadRequest, LoadSummary, load, preview
from tests.load.killer import Killer
from tests.support.published_frames import Frames


@dataclass(frozen=True)
class Target:
    """A DuckDB file, and loads of one output into it."""

    output: Frames
    path: Path
    wait_seconds: float = 60.0

    @property
    def database(self) -> DuckDBFile:
        return DuckDBFile(self.path, wait_seconds=self.wait_seconds)

    def request(self, table: str = "t", **more: Any) -> LoadRequest:
        return LoadRequest(self.output.uri, TableName(None, table), **more)

    def load(self, listen: Any = lambda progress: None, **more: Any) -> LoadSummary:
        output, request = self.output, self.request(**more)
        return load(request, self.database, output.settings, output.storage, listen)

    def preview(self, **more: Any) -> LoadSummary:
        return preview(
            self.request(**more), self.database, self.output.settings, self.output.storage
        )

    def rows(self, sql: str = "SELECT * FROM t ORDER BY ALL") -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.path)) as connection:
            return list(connection.execute(sql).fetchall())

    def run(self, sql: str) -> None:
        with duckdb.connect(str(self.path)) as connection:
            connection.execute(sql)


@pytest.fixture
def target(output: Frames, tmp_path: Path) -> Target:
    return Target(output, tmp_path / "warehouse.duckdb")


def ids(*values: int) -> pl.DataFrame:
    return pl.DataFrame({"id": values, "v": [f"v{value}" for value in values]})


# -- which commits --------------------------------------------------------------------------------


def test_only_new_commits_are_appended(target: Target) -> None:
    target.output.add(ids(1, 2), ids(3))
    first = target.load()
    assert (first.rows, len(first.commits), first.held, first.created) == (3, 1, 0, True)
    again = target.load()
    assert (again.rows, again.commits, again.held, again.created) == (0, (), 1, False)
    target.output.add(ids(4))
    target.output.add(ids(5))
    last = target.load()
    assert (last.rows, len(last.commits), last.held) == (2, 2, 1)
    assert target.rows("SELECT id FROM t ORDER BY id") == [(i,) for i in range(1, 6)]
    records = target.rows("SELECT rows_loaded, manifest, sums FROM _chunkmap_loads ORDER BY 2, 1")
    assert records == [(3, 1, '{"id": "6"}'), (1, 3, '{"id": "4"}'), (1, 3, '{"id": "5"}')]


def test_a_version_is_pinned(target: Target) -> None:
    target.output.add(ids(1))
    target.output.add(ids(2))
    assert target.load(version=1).manifest == 1
    assert target.rows() == [(1, "v1")]
    assert target.load().rows == 1


def test_replaced_commits_are_refused_and_then_replaced(target: Target) -> None:
    target.output.add_files({"day=1/a": ids(1), "day=2/a": ids(2)})
    target.load()
    target.output.add_files({"day=2/b": ids(22)}, mode="overwrite-partitions")
    with pytest.raises(ReplacedCommitsError):
        target.load()
    assert target.rows() == [(1, "v1", 1), (2, "v2", 2)]
    assert target.load(mode="replace").rows == 2
    assert target.rows() == [(1, "v1", 1), (22, "v22", 2)]
    assert target.load(mode="replace").rows == 0
    assert target.load().rows == 0
    target.output.add(ids(3).with_columns(day=pl.lit(9, pl.Int64)))
    assert target.load().rows == 1


def test_a_rollback_is_refused_and_then_replaced(target: Target) -> None:
    target.output.add(ids(1))
    target.output.add(ids(2), mode="overwrite")
    target.load()
    target.output.rollback(1)
    with pytest.raises(ReplacedCommitsError, match="rolled back"):
        target.load()
    target.load(mode="replace")
    assert target.rows() == [(1, "v1")]
    assert target.load().rows == 0, "the file has another key, and is the same"


def test_merging_updates_rows_with_the_same_key(target: Target) -> None:
    target.output.add(ids(1, 2))
    target.load(mode="merge", key=("id",))
    newer = pl.DataFrame({"id": [2, 3], "v": ["new", "three"]})
    target.output.add(newer, mode="overwrite")
    assert target.load(mode="merge", key=("id",)).rows == 2
    assert target.rows() == [(1, "v1"), (2, "new"), (3, "three")]
    assert target.load(mode="merge", key=("id",)).rows == 0


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pl.DataFrame({"id": [7, 7], "v": ["a", "b"]}), "2 rows with the key id = 7"),
        (pl.DataFrame({"id": [None, 1], "v": ["a", "b"]}, {"id": pl.Int64, "v": pl.String}),
         "1 row of .* no key"),
    ],
)  # fmt: skip
def test_a_key_that_names_no_single_row_is_refused(
    target: Target, frame: pl.DataFrame, says: str
) -> None:
    target.output.add(ids(1))
    target.load(mode="merge", key=("id",))
    target.output.add(frame)
    with pytest.raises(LoadFailedError, match=says):
        target.load(mode="merge", key=("id",))
    assert target.rows() == [(1, "v1")]


def test_a_table_with_a_key_twice_is_not_merged_into(target: Target) -> None:
    target.run("CREATE TABLE t (id BIGINT, v VARCHAR); INSERT INTO t VALUES (1, 'a'), (1, 'b')")
    target.output.add(ids(1))
    with pytest.raises(LoadFailedError, match="several rows with the same key"):
        target.load(mode="merge", key=("id",))
    assert target.rows() == [(1, "a"), (1, "b")]


def test_two_outputs_share_a_table_but_do_not_replace_each_other(
    target: Target, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = replace(target, output=Frames.of(tmp_path / "other"))
    target.output.add(ids(1))
    other.output.add(ids(2))
    target.load()
    other.load()
    assert target.rows() == [(1, "v1"), (2, "v2")]
    other.output.add(ids(3), mode="overwrite")
    with pytest.raises(LoadFailedError, match=r"also has rows of file:.*/out/"):
        other.load(mode="replace")


def test_rows_of_somebody_else_are_not_replaced(target: Target) -> None:
    target.run("CREATE TABLE t (id BIGINT, v VARCHAR); INSERT INTO t VALUES (9, 'mine')")
    target.output.add(ids(1))
    with pytest.raises(LoadFailedError, match="no load has brought"):
        target.load(mode="replace")
    target.load()
    assert target.rows() == [(1, "v1"), (9, "mine")]


# -- types and columns ----------------------------------------------------------------------------

TYPES = pl.DataFrame(
    {
        "flag": pl.Series([True, None]),
        "i8": pl.Series([-128, None], dtype=pl.Int8),
        "u8": pl.Series([255, None], dtype=pl.UInt8),
        "u16": pl.Series([65535, None], dtype=pl.UInt16),
        "u32": pl.Series([2**32 - 1, None], dtype=pl.UInt32),
        "u64": pl.Series([2**64 - 1, None], dtype=pl.UInt64),
        "i64": pl.Series([-(2**63), 2**63 - 1], dtype=pl.Int64),
        "f32": pl.Series([1.5, None], dtype=pl.Float32),
        "f64": pl.Series([float("inf"), None], dtype=pl.Float64),
        "price": pl.Series([Decimal("-12345678901234567.89"), None], dtype=pl.Decimal(38, 2)),
        "text": pl.Series(["ä'\"\\\n", None]),
        "kind": pl.Series(["a", None], dtype=pl.Categorical()),
        "level": pl.Series(["low", None], dtype=pl.Enum(["low", "high"])),
        "raw": pl.Series([b"\x00\xff", None]),
        "day": pl.Series([date(2024, 2, 29), None]),
        "hour": pl.Series([time(23, 59, 59, 999999), None]),
        "at_ms": pl.Series([datetime(2024, 2, 29, 1), None], dtype=pl.Datetime("ms")),
        "at_us": pl.Series([datetime(1, 1, 1), None], dtype=pl.Datetime("us")),
        "at_zone": pl.Series([datetime(2024, 7, 1, tzinfo=UTC), None]).dt.convert_time_zone(
            "Europe/Berlin"
        ),
        "took": pl.Series([timedelta(days=2, microseconds=3), None]),
        "list": pl.Series([[1, None], None], dtype=pl.List(pl.Int32)),
        "struct": pl.Series([{"a": 1, "b c": ["x"]}, None]),
    }
)


def test_every_type_has_the_same_values_afterwards(target: Target) -> None:
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


def test_nan_is_kept(target: Target) -> None:
    target.output.add(pl.DataFrame({"f": [float("nan"), float("-inf")]}))
    target.load()
    assert target.rows("SELECT isnan(f), f::VARCHAR FROM t ORDER BY 1") == [
        (False, "-inf"), (True, "nan"),
    ]  # fmt: skip


def test_what_has_no_type_is_refused_before_anything_is_written(target: Target) -> None:
    target.output.add(pl.DataFrame({"id": [1], "nothing": [None], "ID": ["x"]}))
    with pytest.raises(TableMismatchError) as caught:
        target.load()
    assert "nothing (Null): it holds nulls only" in caught.value.message
    assert "columns id and ID have the same name" in caught.value.message
    assert not target.path.exists()


def test_a_value_that_does_not_fit_is_not_rounded(target: Target) -> None:
    target.output.add(pl.DataFrame({"at": pl.Series([1], dtype=pl.Time)}))
    with pytest.raises(LoadFailedError, match=r"column at .*Time"):
        target.load()
    assert target.rows("SELECT count(*) FROM duckdb_tables()") == [(0,)]


def test_another_table_is_refused_or_widened(target: Target) -> None:
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


def test_columns_with_a_default_are_the_database_s_own(target: Target) -> None:
    target.run("CREATE TABLE t (v VARCHAR, source VARCHAR DEFAULT 'load', id BIGINT)")
    target.output.add(ids(1))
    target.load()
    assert target.rows() == [("v1", "load", 1)]


def test_columns_that_an_output_got_later_are_null_before(target: Target) -> None:
    target.output.add(ids(1))
    target.output.add(ids(2).with_columns(extra=pl.lit(7, pl.Int64)))
    target.load()
    assert target.rows() == [(1, "v1", None), (2, "v2", 7)]


def test_names_are_quoted(target: Target) -> None:
    target.output.add(pl.DataFrame({'a "b"; DROP': [1], "select": [2]}))
    target.load(table='my "t"')
    assert target.rows('SELECT * FROM "my ""t"""') == [(1, 2)]


def test_partition_columns_are_loaded(target: Target) -> None:
    target.output.add_files({"day=2024-02-29/a": ids(1), "day=2024-03-01/a": ids(2)})
    target.load()
    assert target.rows("SELECT id, day FROM t ORDER BY id") == [
        (1, date(2024, 2, 29)), (2, date(2024, 3, 1)),
    ]  # fmt: skip


# -- faults ---------------------------------------------------------------------------------------

STEPS = ("begin-after", "insert-before", "insert-during", "insert-after", "commit-before",
         "commit-after")  # fmt: skip


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer("pipeline.load.duckdb_file:DuckDBSession") as killer:
        yield killer


@pytest.mark.faults
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_killed_load_is_repeated_without_loss_or_duplicates(
    target: Target, killer: Killer, step: str, mode: str
) -> None:
    target.output.add(ids(1, 2))
    target.output.add(ids(3))
    killer.load_and_die(target.output.uri, str(target.path), mode, step)
    target.load(mode=mode)
    assert target.rows() == [(1, "v1"), (2, "v2"), (3, "v3")]
    assert target.rows("SELECT sum(rows_loaded), count(*) FROM _chunkmap_loads") == [(3, 2)]


def test_an_error_of_the_files_rolls_the_commit_back(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.output.add(ids(1))
    target.load()
    target.output.add(ids(2), ids(3))
    broken = OutputVersion.of

    def one_row_more(*arguments: Any) -> OutputVersion:
        found = broken(*arguments)
        *others, last = found.version.commits
        commits = (*others, replace(last, rows=last.rows + 1))
        return replace(found, version=replace(found.version, commits=commits))

    monkeypatch.setattr(OutputVersion, "of", one_row_more)
    with pytest.raises(LoadFailedError, match="have 2 rows, and its record says 3"):
        target.load()
    assert target.rows() == [(1, "v1")]


def test_two_loads_of_one_process_load_everything_once(target: Target) -> None:
    for number in range(6):
        target.output.add(ids(number))
    summaries: list[LoadSummary] = []
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def run() -> None:
        start.wait()
        try:
            summaries.append(target.load())
        except ChunkmapError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert target.rows("SELECT id FROM t ORDER BY id") == [(i,) for i in range(6)]
    assert sum(summary.rows for summary in summaries) == 6


def test_a_file_that_another_process_has_open_is_named(target: Target) -> None:
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
def test_a_file_that_cannot_be_opened_is_named(target: Target, path: str, says: str) -> None:
    target.output.add(ids(1))
    (target.path.parent / "text.duckdb").write_text("hello " * 1000)
    broken = replace(target, path=target.path.parent / path)
    with pytest.raises(DestinationError, match=says) as caught:
        broken.load()
    assert caught.value.hint


def test_constraints_and_types_of_the_table_are_named(target: Target) -> None:
    target.run("CREATE TABLE t (id BIGINT CHECK (id < 5), v VARCHAR)")
    target.output.add(ids(1))
    target.output.add(ids(7))
    with pytest.raises(LoadFailedError, match="CHECK"):
        target.load()
    assert target.rows() == [(1, "v1")], "the commit before is loaded"


# -- what is asked for ----------------------------------------------------------------------------


def test_a_preview_writes_nothing(target: Target) -> None:
    target.output.add(ids(1))
    shown = target.preview()
    assert (shown.rows, shown.created, shown.dry_run) == (1, True, True)
    assert not target.path.exists()
    target.load()
    target.output.add(ids(2).with_columns(x=pl.lit(1)))
    with pytest.raises(TableMismatchError):
        target.preview()
    shown = target.preview(widen=True)
    assert (shown.rows, shown.held, shown.added, shown.created) == (1, 1, ("x",), False)
    assert target.rows() == [(1, "v1")]


def test_unknown_keys_schemas_and_outputs_are_refused(target: Target) -> None:
    with pytest.raises(UsageError, match="no published files"):
        target.load()
    target.output.add(ids(1))
    with pytest.raises(UsageError, match="no column nope"):
        target.load(mode="merge", key=("nope",))
    with pytest.raises(UsageError, match="records what was loaded"):
        target.load(table="_chunkmap_loads")
    request = replace(target.request(), table=TableName("finance", "t"))
    with pytest.raises(DestinationError, match="no schema finance") as caught:
        load(request, target.database, target.output.settings, target.output.storage)
    assert 'CREATE SCHEMA "finance"' in (caught.value.hint or "")
    target.run("CREATE SCHEMA finance")
    load(request, target.database, target.output.settings, target.output.storage)
    assert target.rows("SELECT * FROM finance.t") == [(1, "v1")]
    assert target.rows("SELECT count(*) FROM finance._chunkmap_loads") == [(1,)]


def test_progress_counts_up_to_all(target: Target) -> None:
    target.output.add(ids(*range(100)))
    target.output.add(ids(5))
    seen: list[LoadProgress] = []
    target.load(seen.append)
    assert [(now.commits, now.rows) for now in seen] == [(0, 100), (1, 100), (1, 101), (2, 101)]
    assert {(now.of_commits, now.of_rows) for now in seen} == {(2, 101)}
