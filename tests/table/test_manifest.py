"""The log of an output: pointer, manifests, commit records, and how they are replayed."""

from __future__ import annotations

import json
from dataclasses import replace

import polars as pl
import pytest

from pipeline.errors import AlreadyExistsError, ObjectMissingError, PreconditionFailedError
from pipeline.table.errors import DamagedStateError
from pipeline.table.log import TableLog
from pipeline.table.manifest import (
    FILES,
    REJECTED,
    Claim,
    Commit,
    CommitEntry,
    Head,
    Manifest,
    folders,
)
from tests.support.memory_storage import MemoryBackend

OUTPUT = "s3://b/o/"


@pytest.fixture
def table_log() -> TableLog:
    return TableLog(MemoryBackend().storage(), OUTPUT)


def files(*names: str, attempt: str = "a") -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "key": f"{name}.parquet",
                "rows": 1,
                "bytes": 10,
                "sha256": "s",
                "chunk": name,
                "index": index,
                "attempt": attempt,
                "upload": "u",
                "parts": ["p"],
            }
            for index, name in enumerate(names)
        ],
        schema=FILES,
    )


def commit(name: str, mode: str, *names: str, replaces: tuple[str, ...] = ()) -> Commit:
    entry = CommitEntry(
        name=name, run=name, mode=mode, files=len(names), rows=len(names), bytes=10 * len(names)
    )
    return Commit(entry, 0, (), files(*names), replaces)


def test_state_is_next_to_the_output(table_log: TableLog) -> None:
    assert table_log.state == "s3://b/o.chunkmap/"
    assert TableLog(table_log.storage, "s3://b/o").state == table_log.state


def test_an_output_that_was_never_published(table_log: TableLog) -> None:
    assert table_log.head() == (Head(), None)
    assert table_log.manifest() == Manifest(number=0, created=0.0, commits=())
    assert table_log.snapshot(table_log.manifest()).is_empty()
    assert table_log.commit("none") is None
    with pytest.raises(ObjectMissingError):
        table_log.manifest(1)


def test_the_pointer_moves_for_one(table_log: TableLog) -> None:
    claimed = Head(current=0, publishing=Claim(base=0, commits=("a",)))
    table_log.move_head(claimed, None)
    head, etag = table_log.head()
    assert (head.current, head.publishing) == (0, claimed.publishing)
    assert head.writer
    with pytest.raises(AlreadyExistsError):
        table_log.move_head(claimed, None)
    table_log.move_head(Head(current=1), etag)
    with pytest.raises(PreconditionFailedError):
        table_log.move_head(Head(current=1), etag)  # the same words, but of another writer
    assert table_log.head()[0].current == 1


def test_the_first_commit_record_of_a_name_counts(table_log: TableLog) -> None:
    first = table_log.write_commit(commit("c", "append", "x"))
    second = table_log.write_commit(commit("c", "append", "x", "y"))
    assert first.files["key"].to_list() == second.files["key"].to_list() == ["x.parquet"]


def test_the_first_manifest_of_a_number_counts(table_log: TableLog) -> None:
    first = table_log.write_manifest(0, (commit("c", "append", "x").entry,))
    second = table_log.write_manifest(0, (commit("c", "append", "x").entry,))
    assert first == second == table_log.manifest(1)


def test_an_amendment_names_other_attempts(table_log: TableLog) -> None:
    frozen = table_log.write_commit(commit("c", "append", "x", "y", "z"))
    other = files("x", "y", attempt="b").filter(pl.col("chunk") == "y")
    table_log.amend([replace(frozen, files=other)])
    with pytest.raises(AlreadyExistsError):
        table_log.amend([replace(frozen, files=files("z", attempt="late"))])
    amended = table_log.commit("c")
    assert amended is not None
    assert amended.files["chunk"].to_list() == ["x", "y", "z"]
    assert amended.files["attempt"].to_list() == ["a", "b", "a"]
    assert (amended.entry.amendments, amended.entry.files) == (1, 3)
    # What a manifest has listed stays as it was then.
    assert table_log.load(frozen.entry).files["attempt"].to_list() == ["a", "a", "a"]
    assert table_log.load(amended.entry).files.equals(amended.files)


def test_rows_in_quarantine_follow_the_attempts_of_an_amendment(table_log: TableLog) -> None:
    """The other chunks, and those without such rows, keep theirs."""
    drafted = commit("c", "append", "x", "y", "z")
    named = [(chunk, "0f", 2, f"runs/r/rejected/{chunk}.0f.parquet") for chunk in "xy"]
    rejected = pl.DataFrame(named, REJECTED, orient="row")
    entry = drafted.entry.model_copy(update={"rejected": 4})
    first = files("x", "y", "z", attempt="0f")
    frozen = table_log.write_commit(replace(drafted, entry=entry, files=first, rejected=rejected))
    other = files("x", "y", "z", attempt="1e").filter(pl.col("chunk") != "x")
    table_log.amend([replace(frozen, files=other)])
    amended = TableLog(table_log.storage, OUTPUT).commit("c")
    assert amended is not None
    assert amended.rejected.rows() == [named[0], ("y", "1e", 2, "runs/r/rejected/y.1e.parquet")]


@pytest.mark.parametrize("shared", [False, True])
def test_an_amendment_that_is_lost_is_missed(table_log: TableLog, shared: bool) -> None:
    """Without it, a version would have attempts that were replaced before they were visible."""
    drafts = [commit(name, "append", f"x-{name}", f"y-{name}") for name in "cd"[: 1 + shared]]
    frozen, *_ = table_log.write_commits(drafts)
    for attempt in "bc":
        newest, *_ = table_log.versions([(frozen.entry.name, frozen.entry.record)])
        table_log.amend([replace(newest, files=files("x-c", attempt=attempt))])
    entry = frozen.entry.model_copy(update={"amendments": 2})
    assert TableLog(table_log.storage, OUTPUT).load(entry).files["attempt"].to_list() == ["c", "a"]
    lost = f"{table_log.state}commits/{entry.record or entry.name}.a2.arrow"
    table_log.storage.delete(lost)
    for load in (TableLog.load, lambda log, entry: log.load_all([entry])):
        with pytest.raises(ObjectMissingError) as caught:
            load(TableLog(table_log.storage, OUTPUT), entry)
        assert caught.value.uri == lost


def test_a_table_log_caches_a_limited_number_of_records(
    table_log: TableLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.table.commits.MAX_CACHED_FILES", 3)
    for name in ("a", "b", "c"):
        table_log.write_commit(commit(name, "append", f"{name}1", f"{name}2"))
    assert list(table_log._cached) == [("c", 0)]
    for name in ("a", "b", "c", "a"):
        found = table_log.commit(name)
        assert found is not None
        assert found.files["key"].to_list() == [f"{name}1.parquet", f"{name}2.parquet"]
    table_log.write_commit(commit("large", "append", *"vwxyz"))
    assert list(table_log._cached) == [("large", 0)]
    assert table_log._cached_files == 5


def snapshot(table_log: TableLog, *commits: Commit) -> list[str]:
    for commit in commits:
        table_log.write_commit(commit)
    manifest = Manifest(number=1, created=0.0, commits=tuple(commit.entry for commit in commits))
    return [key.removesuffix(".parquet") for key in table_log.snapshot(manifest)["key"]]


def test_commits_are_folded_in_order(table_log: TableLog) -> None:
    first = commit("1", "append", "k=1/a", "k=2/b", "c")
    second = commit("2", "append", "k=1/d")
    third = commit("3", "overwrite-partitions", "k=1/e", replaces=("k=1",))
    fourth = commit("4", "overwrite", "f")
    fifth = commit("5", "append", "g")
    assert snapshot(table_log, first, second) == ["k=1/a", "k=2/b", "c", "k=1/d"]
    assert snapshot(table_log, first, second, third) == ["k=2/b", "c", "k=1/e"]
    assert snapshot(table_log, first, third, second) == ["k=2/b", "c", "k=1/e", "k=1/d"]
    assert snapshot(table_log, first, third, fourth, fifth) == ["f", "g"]


def test_a_manifest_whose_commit_is_gone_says_so(table_log: TableLog) -> None:
    lost = Manifest(number=1, created=0.0, commits=(commit("lost", "append", "a").entry,))
    with pytest.raises(ObjectMissingError, match="lost"):
        table_log.snapshot(lost)


def test_folders_are_partitions() -> None:
    assert folders(files("a", "k=1/b", "k=1/l=2/c")) == ["", "k=1", "k=1/l=2"]


@pytest.mark.parametrize("name", ["full", "rollback_of"])
@pytest.mark.parametrize("number", [-1, 3])
def test_numbers_that_lead_nowhere_are_refused(table_log: TableLog, name: str, number: int) -> None:
    """Whatever reads the versions before would never end."""
    for base in (0, 1):
        table_log.write_manifest(base, (commit("c", "append", "x").entry,))
    uri = f"{table_log.state}manifests/2.json"
    stored = json.loads(table_log.storage.get(uri).data)
    stored.pop("sha256", None)
    table_log.storage.put(uri, json.dumps({**stored, name: number}).encode())
    with pytest.raises(DamagedStateError):
        TableLog(table_log.storage, OUTPUT).manifest(2)
