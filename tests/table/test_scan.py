"""Manifests hold what they add: a thousand of them stay small, and fold to the right lists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.runs.driver.publish import publish_run
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, Head, Manifest, base_of, chain
from tests.support.examples import fewer
from tests.support.faulty_storage import Faulty
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_settled
from tests.support.publishing import OTHER, PLAN, published
from tests.support.runs_by_hand import OUTPUT, Run
from tests.support.windowing import chunks_of_windows, complete, daily, windowed_run, windows_of

MANIFESTS = OUTPUT[:-1] + ".chunkmap/manifests/"


def entry(name: str) -> CommitEntry:
    return CommitEntry(name=name, run="r", mode="append", files=1, rows=1, bytes=1)


def write(table_log: TableLog, commits: Sequence[CommitEntry], back: int | None = None) -> Manifest:
    """Write a manifest and make it current, as a publish does."""
    head, etag = table_log.head()
    manifest = table_log.write_manifest(head.current, tuple(commits), back)
    table_log.move_head(Head(current=manifest.number), etag)
    return manifest


def counted(backend: MemoryBackend) -> tuple[TableLog, Faulty]:
    faulty = Faulty(backend, lambda n, name: None)
    return TableLog(Storage({"s3": faulty}, AT_ONCE), OUTPUT), faulty


# -- folding ------------------------------------------------------------------------------------


@settings(max_examples=fewer(60), deadline=None)
@given(st.lists(st.sampled_from(["add", "add", "add", "many", "overwrite", "back"]), max_size=120))
def test_manifests_assemble_to_the_lists_they_were_made_from(steps: list[str]) -> None:
    backend = MemoryBackend()
    table_log = TableLog(backend.storage(), OUTPUT)
    lists: list[tuple[CommitEntry, ...]] = [()]
    for number, step in enumerate(steps, 1):
        new = entry(f"c{number}")
        more = [entry(f"c{number}-{i}") for i in range(3)]
        commits = {
            "add": (*lists[-1], new),
            "many": (*lists[-1], *more),
            "overwrite": (new,),
            "back": lists[len(lists) // 2],
        }[step]
        write(table_log, commits, len(lists) // 2 if step == "back" else None)
        lists.append(commits)
    fresh = TableLog(backend.storage(), OUTPUT)
    for number in range(len(lists) - 1, -1, -1):
        assert fresh.manifest(number).commits == lists[number]
        assert table_log.manifest(number).commits == lists[number]
        if number:
            kept = lists[number][: len(lists[number - 1])] == lists[number - 1]
            back = fresh.manifest(number).rollback_of is not None
            added = lists[number][len(lists[number - 1]) :] if kept and not back else None
            assert fresh.added(number) == (lists[number] if added is None else added)
    for base in range(0, len(lists), 7):
        found = {entry.name for entry in TableLog(backend.storage(), OUTPUT).entries(base)}
        later = {commit.name for commits in lists[base + 1 :] for commit in commits}
        assert later <= found <= {commit.name for commits in lists for commit in commits}
        assert list(dict.fromkeys(found)) == list(found)


@settings(deadline=None)
@given(st.integers(1, 200_000), st.integers(0, 200_000))
def test_chains_are_short_and_go_down(number: int, full: int) -> None:
    full = min(full, number)
    found = list(chain(number, full))
    assert len(found) <= 31 * 4 + 1
    assert found == sorted(found, reverse=True)
    assert found[0] == number
    assert found[-1] == (full or found[-1]) >= full
    for one, below in pairwise(found):
        assert below == base_of(one, full)


def test_a_thousand_manifests_are_read_and_written_in_little() -> None:
    sizes: dict[int, int] = {}
    backend = MemoryBackend()
    table_log = TableLog(backend.storage(), OUTPUT)
    commits: tuple[CommitEntry, ...] = ()
    for number in range(1, 1101):
        commits = (*commits, entry(f"commit-{number:04d}"))
        write(table_log, commits)
        sizes[number] = stored_bytes(backend)
    assert sizes[1000] < 2.2 * sizes[500], "linear"
    assert sizes[1100] < 1100 * 600, "but for one more copy at each 1,024th"
    for number in (1100, 1055, 1024, 31):
        fresh, calls = counted(backend)
        assert fresh.manifest(number).commits == commits[:number]
        assert len(calls.calls) <= 65
    fresh, calls = counted(backend)
    assert len(fresh.entries(0)) == 1100
    assert len(calls.calls) <= 65
    fresh, calls = counted(backend)
    for number in range(1, 1101):
        fresh.manifest(number)
    assert len(calls.calls) == 1100, "each is read once"


def stored_bytes(backend: MemoryBackend) -> int:
    return sum(len(one.data) for uri, one in backend.stored.items() if uri.startswith(MANIFESTS))


# -- the form before ------------------------------------------------------------------------------


def test_manifests_of_the_form_before_are_read_and_gone_on_from() -> None:
    backend = MemoryBackend()
    run = published(backend, PLAN, "append")
    published(backend, OTHER, "append", "other")
    as_before(backend)
    table_log = TableLog(backend.storage(), OUTPUT)
    assert len(table_log.manifest().commits) == 2
    assert table_log.entries(0)[0].run == run.ledger.run
    published(backend, PLAN, "overwrite-partitions", "newer")
    check_settled(backend)
    assert len(TableLog(backend.storage(), OUTPUT).manifest().commits) == 3


def as_before(backend: MemoryBackend) -> None:
    """Write all manifests as they once were: the whole list in each, and no windows."""
    table_log = TableLog(backend.storage(), OUTPUT)
    for number in range(1, table_log.head()[0].current + 1):
        said = table_log.manifest(number).model_dump(exclude={"full"})
        for commit in said["commits"]:
            for name in ("window", "rule", "code", "inputs"):
                del commit[name]
        backend.put(f"{MANIFESTS}{number}.json", json.dumps(said).encode())


def test_a_claim_of_the_form_before_is_finished() -> None:
    said = {"current": 1, "publishing": {"base": 1, "commit": "run", "rollback": None}}
    claim = Head.model_validate_json(json.dumps(said)).publishing
    assert claim is not None
    assert claim.commits == ("run",)


def test_amendments_and_later_commits_have_names_of_their_own() -> None:
    backend = MemoryBackend()
    run = published(backend, PLAN, "append")
    table_log = TableLog(backend.storage(), OUTPUT)
    frozen = table_log.commit(run.ledger.run)
    assert frozen is not None
    for _ in range(2):
        again = table_log.commit(run.ledger.run)
        assert again is not None
        table_log.amend([replace(again, files=frozen.files.head(1))])
    assert table_log.commit(f"{run.ledger.run}.2") is None
    # As they were named once.
    state = OUTPUT[:-1] + f".chunkmap/commits/{run.ledger.run}"
    amended = frozen.entry.model_copy(update={"amendments": 2})
    for number in (1, 2):
        backend.put(f"{state}.{number}.arrow", backend.get(f"{state}.a{number}.arrow").data)
        backend.delete(f"{state}.a{number}.arrow")
    assert TableLog(backend.storage(), OUTPUT).load(amended).entry.amendments == 2


# -- a thousand windows -------------------------------------------------------------------------


@pytest.mark.long
def test_a_thousand_windows_in_groups() -> None:
    """Each group by a process that knows nothing yet: requests and bytes a group do not grow."""
    count, group = 1000, 10
    labels = [f"{year}-{month:02d}-{day:02d}" for year in (2021, 2022, 2023)
              for month in range(1, 13) for day in range(1, 29)][:count]  # fmt: skip
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(labels, chunks=1, rows=1))
    complete(run)
    windows = windows_of(run)
    calls, sizes = [], []
    for start in range(0, count, group):
        some = {label: windows[label] for label in labels[start : start + group]}
        requests, written = publish_group(backend, run, some)
        calls.append(requests)
        sizes.append(written)
    check_settled(backend)
    manifest = TableLog(backend.storage(), OUTPUT).manifest()
    assert [commit.window for commit in manifest.commits] == labels
    assert run.ledger.published() == count // group
    # The last reads all that the run has published, to abort what was not chosen.
    half = len(calls) // 2
    assert sum(calls[half:-1]) < 1.3 * sum(calls[1:half]), calls
    # The 64th and 96th repeat the 32 before them, in the first half only the 32nd does.
    assert sum(sizes[half:]) < 1.5 * sum(sizes[:half]), sizes
    assert max(calls[:-1]) < 20 * group


def publish_group(
    backend: MemoryBackend, run: Run, windows: Mapping[str, list[str]]
) -> tuple[int, int]:
    """Requests that publishing took, and bytes of manifests and pointer that it wrote."""
    before = stored_bytes(backend)
    faulty = Faulty(backend, lambda n, name: None)
    fresh = run.again(Storage({"s3": faulty}, AT_ONCE))
    assert publish_run(fresh.storage, fresh.ledger, windows=chunks_of_windows(windows))
    return len(faulty.calls), stored_bytes(backend) - before
