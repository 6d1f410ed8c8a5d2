"""Loads into each kind of database: what is in it afterwards is what the output has."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.errors import ChunkmapError, UsageError
from pipeline.load.batches import OutputVersion
from pipeline.load.errors import (
    DestinationError,
    LoadFailedError,
    ReplacedCommitsError,
    TableMismatchError,
)
from pipeline.load.plan import Mode
from pipeline.load.records import LoadProgress, LoadSummary
from tests.load.killer import Killer
from tests.load.targets import DuckDBTarget, Target, ids
from tests.support.published_frames import Frames

STEPS = ("begin-after", "insert-before", "insert-during", "insert-after", "commit-before",
         "commit-after")  # fmt: skip
SESSIONS = {
    "duckdb": "pipeline.load.duckdb_file:DuckDBSession",
    "postgresql": "pipeline.load.postgresql:PostgresSession",
}


@pytest.fixture(scope="module")
def killers() -> Iterator[dict[str, Killer]]:
    with Killer(SESSIONS["duckdb"]) as duckdb, Killer(SESSIONS["postgresql"]) as postgresql:
        yield {"duckdb": duckdb, "postgresql": postgresql}


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


def test_a_table_is_one_in_whatever_case_the_database_finds_it(target: Target) -> None:
    target.output.add(ids(1, 2))
    target.load()
    again = target.load(table="T")
    if target.database.dialect.fold("T") == "t":
        assert (again.rows, again.held, again.created) == (0, 1, False)
    else:
        assert (again.rows, again.held, again.created) == (2, 0, True)
    assert target.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]


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
    target.run(
        "CREATE TABLE t (id BIGINT, v VARCHAR)",
        "INSERT INTO t VALUES (1, 'a'), (1, 'b')",
    )
    target.output.add(ids(1))
    with pytest.raises(LoadFailedError, match="several rows with the same key"):
        target.load(mode="merge", key=("id",))
    assert target.rows() == [(1, "a"), (1, "b")]


def with_two_outputs(target: Target, folder: Path) -> Target:
    """Load an output and another into the same table; returns the target of the other."""
    (folder / "other").mkdir()
    other = replace(target, output=Frames.of(folder / "other"))
    target.output.add(ids(1))
    other.output.add(ids(2))
    target.load()
    other.load()
    return other


def test_two_outputs_share_a_table_but_do_not_replace_each_other(
    target: Target, tmp_path: Path
) -> None:
    other = with_two_outputs(target, tmp_path)
    assert target.rows() == [(1, "v1"), (2, "v2")]
    other.output.add(ids(3), mode="overwrite")
    with pytest.raises(LoadFailedError, match=r"also has rows of file:.*/out/"):
        other.load(mode="replace")


def test_rows_of_somebody_else_are_not_replaced(target: Target) -> None:
    target.run(
        "CREATE TABLE t (id BIGINT, v VARCHAR)",
        "INSERT INTO t VALUES (9, 'mine')",
    )
    target.output.add(ids(1))
    with pytest.raises(LoadFailedError, match="no load has brought"):
        target.load(mode="replace")
    target.load()
    assert target.rows() == [(1, "v1"), (9, "mine")]


def test_rows_of_somebody_else_among_those_of_loads_are_not_replaced(target: Target) -> None:
    target.output.add(ids(1))
    target.load()
    target.run("INSERT INTO t VALUES (9, 'mine')")
    target.output.add(ids(2), mode="overwrite")
    with pytest.raises(LoadFailedError, match="1 row that no load has brought"):
        target.load(mode="replace")
    assert target.rows() == [(1, "v1"), (9, "mine")]


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_table_that_was_dropped_is_loaded_from_the_beginning(target: Target, mode: Mode) -> None:
    target.output.add(ids(1))
    target.load(mode=mode)
    target.output.add(ids(2))
    target.load(mode=mode)
    target.run("DROP TABLE t")
    assert target.load(mode=mode).created
    assert target.rows() == [(1, "v1"), (2, "v2")]


def test_a_table_that_was_dropped_lacks_the_rows_of_all_outputs(
    target: Target, tmp_path: Path
) -> None:
    other = with_two_outputs(target, tmp_path)
    target.run("DROP TABLE t")
    target.load()
    assert target.rows() == [(1, "v1")]
    other.load()
    assert target.rows() == [(1, "v1"), (2, "v2")]


def test_a_table_that_was_emptied_is_replaced(target: Target) -> None:
    target.output.add(ids(1, 2))
    target.load(mode="replace")
    target.run("DELETE FROM t WHERE id = 1")
    target.load()
    assert target.rows() == [(2, "v2")], "append brings no commit twice"
    target.load(mode="replace")
    assert target.rows() == [(1, "v1"), (2, "v2")]


def test_a_value_that_does_not_fit_is_not_rounded(target: Target) -> None:
    target.output.add(pl.DataFrame({"at": pl.Series([1], dtype=pl.Time)}))
    with pytest.raises(LoadFailedError, match=r"column at .*Time"):
        target.load()
    assert not target.has_table("t")


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


@pytest.mark.sampled(4)
@pytest.mark.faults
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("mode", ["append", pytest.param("replace", marks=pytest.mark.long)])
def test_a_killed_load_is_repeated_without_loss_or_duplicates(
    target: Target, killers: dict[str, Killer], step: str, mode: str
) -> None:
    target.output.add(ids(1, 2))
    target.load(table="before")  # It makes the ledger's table, in a transaction of its own.
    target.output.add(ids(3))
    kind = "duckdb" if isinstance(target, DuckDBTarget) else "postgresql"
    killers[kind].load_and_die(target.output.uri, target.into, mode, step)
    target.load(mode=mode)
    assert target.rows() == [(1, "v1"), (2, "v2"), (3, "v3")]
    assert target.rows(
        "SELECT sum(rows_loaded)::int, count(*) FROM _chunkmap_loads WHERE table_name = 't'"
    ) == [(3, 2)]


@pytest.mark.sampled(3)
@pytest.mark.faults
@pytest.mark.parametrize("step", ["commit-before", "commit-after"])
def test_a_first_load_that_is_killed_at_the_ledger_is_repeated(
    target: Target, killers: dict[str, Killer], step: str
) -> None:
    target.output.add(ids(1, 2))
    kind = "duckdb" if isinstance(target, DuckDBTarget) else "postgresql"
    killers[kind].load_and_die(target.output.uri, target.into, "append", step)
    assert target.has_table("_chunkmap_loads") == (step == "commit-after")
    assert not target.has_table("t")
    assert target.load().rows == 2
    assert target.rows() == [(1, "v1"), (2, "v2")]


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


def test_constraints_and_types_of_the_table_are_named(target: Target) -> None:
    target.run("CREATE TABLE t (id BIGINT CHECK (id < 5), v VARCHAR)")
    target.output.add(ids(1))
    target.output.add(ids(7))
    with pytest.raises(LoadFailedError, match=r"(?i)check constraint"):
        target.load()
    assert target.rows() == [(1, "v1")], "the commit before is loaded"


def test_a_preview_writes_nothing(target: Target) -> None:
    target.output.add(ids(1))
    shown = target.preview()
    assert (shown.rows, shown.created, shown.dry_run) == (1, True, True)
    assert not target.has_table("t") and not target.has_table("_chunkmap_loads")
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
    name = f"Finance {uuid.uuid4().hex[:8]}"
    with pytest.raises(DestinationError, match=f"no schema {name}") as caught:
        target.load(schema=name)
    assert f'CREATE SCHEMA "{name}"' in (caught.value.hint or "")
    target.run(f'CREATE SCHEMA "{name}"')
    target.load(schema=name)
    assert target.rows(f'SELECT * FROM "{name}".t') == [(1, "v1")]
    assert target.rows(f'SELECT count(*) FROM "{name}"._chunkmap_loads') == [(1,)]


def test_progress_counts_up_to_all(target: Target) -> None:
    target.output.add(ids(*range(100)))
    target.output.add(ids(5))
    seen: list[LoadProgress] = []
    target.load(seen.append)
    assert [(now.commits, now.rows) for now in seen] == [(0, 100), (1, 100), (1, 101), (2, 101)]
    assert {(now.of_commits, now.of_rows) for now in seen} == {(2, 101)}
