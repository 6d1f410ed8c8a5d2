"""Publishing by windows: each once, together or one by one, whoever dies or comes in between."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest

from partitioning import inputs_of_plan
from pipeline.errors import ConflictError, UsageError
from pipeline.runs.driver.publish import publish_run
from pipeline.storage import Storage
from pipeline.table import publish as table_publish
from pipeline.table.claims import finish_open_claim
from pipeline.table.errors import CommitsConflictError
from pipeline.table.log import TableLog
from pipeline.table.manifest import run_of as run_of_commit
from pipeline.table.publish import commits_of, rollback
from pipeline.table.replay import window_label
from tests.support.faulty_storage import Fault, Faulty
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_settled, copied, keys_of, rows, visible
from tests.support.publishing import head
from tests.support.runs_by_hand import OUTPUT, Run, run_of
from tests.support.windowing import (
    complete,
    daily,
    days,
    entries,
    folders_of,
    publish_days,
    published_days,
    windowed_run,
)

MODES = ["append", "overwrite-partitions", "error"]


# -- commits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_windows_are_published_as_they_are_done(mode: str) -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3)), mode)
    assert publish_days(run) is None
    assert visible(backend) == {}
    complete(run, *days(2))
    run.complete(0)  # Half of the first window.
    assert publish_days(run) == 1
    check_settled(backend)
    assert folders_of(visible(backend)) == {"ds=2024-01-02": 2}
    assert publish_days(run) is None
    complete(run)
    assert publish_days(run.again(backend.storage())) == 2
    check_settled(backend)
    assert rows(visible(backend)) == list(range(12))
    assert entries(backend) == [
        (label, run.ledger.run, 2) for label in days(2, 1, 3)]  # fmt: skip
    assert run.ledger.published() == 2
    assert backend.uploads == {}, "duplicates are aborted"


def test_folders_of_another_run_are_labelled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each window: there may be ten thousand."""
    backend = MemoryBackend()
    windows = windowed_run(backend.storage(), daily(days(*range(1, 21))), "append")
    complete(windows)
    others = days(*range(1, 21), month=2)
    whole = run_of(backend.storage(), daily(others), "append", code="another")
    whole.complete()
    publish_run(backend.storage(), whole.ledger)
    labelled: Counter[str] = Counter()

    def count(rule: str, folder: str) -> str | None:
        labelled[folder] += 1
        return window_label(rule, folder)

    monkeypatch.setattr(table_publish, "window_label", count)
    assert publish_days(windows) == 2
    assert labelled == {f"ds={label}": 1 for label in others}


def test_a_commit_says_what_it_is_of() -> None:
    backend = MemoryBackend()
    run = published_days(backend, days(1, 2))
    rule = run.ledger.job().window
    assert rule is not None
    inputs = inputs_of_plan(run.plan, rule.windowing())
    for entry in TableLog(backend.storage(), OUTPUT).manifest().commits:
        assert entry.window is not None
        assert entry.name == f"{run.ledger.run}-{entry.window}"
        assert run_of_commit(entry.name) == run.ledger.run
        assert (entry.code, entry.inputs) == ("code", inputs[entry.window].digest)
        assert entry.rule == "ds/day/UTC"
        assert f"{OUTPUT[:-1]}.chunkmap/commits/{entry.record}.arrow" in backend.stored


def test_months_of_days() -> None:
    backend = MemoryBackend()
    run = windowed_run(
        backend.storage(),
        daily([*days(1, 31), *days(29, month=2)]),
        rule={"column": "ds", "grain": "month"},
    )
    complete(run)
    assert publish_days(run, "2024-01") == 1
    assert folders_of(visible(backend)) == {"ds=2024-01-01": 2, "ds=2024-01-31": 2}
    assert publish_days(run) == 2


def test_a_window_replaces_its_folders_and_no_others() -> None:
    backend = MemoryBackend()
    first = published_days(backend, days(1, 2, 3))
    second = published_days(backend, days(2), code="new")
    check_settled(backend)
    assert folders_of(keys_of(first, visible(backend))) == {
        "ds=2024-01-01": 2, "ds=2024-01-03": 2}  # fmt: skip
    assert folders_of(keys_of(second, visible(backend))) == {"ds=2024-01-02": 2}


@pytest.mark.parametrize("grain", ["day", "month"])
def test_a_window_whose_rows_vanish_is_emptied(grain: str) -> None:
    """Of the month all its days, of which some are in the input no more."""
    backend = MemoryBackend()
    first = published_days(backend, [*days(1, 2), *days(1, month=2)])
    run = windowed_run(
        backend.storage(), daily(days(1)), code="new", rule={"column": "ds", "grain": grain}
    )
    complete(run)
    publish_days(run, *(days(1, 2) if grain == "day" else ["2024-01"]))
    check_settled(backend)
    assert folders_of(keys_of(first, visible(backend))) == {"ds=2024-02-01": 2}
    assert folders_of(keys_of(run, visible(backend))) == {"ds=2024-01-01": 2}
    assert [files for *_, files in entries(backend)][-1] == (0 if grain == "day" else 2)


def test_without_the_failed_and_with_them_later() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2)))
    run.complete(0, 2, 3)
    assert publish_days(run, without_failed=True) == 1
    table_log = TableLog(backend.storage(), OUTPUT)
    assert [entry.missing for entry in table_log.manifest().commits] == [1, 0]
    assert publish_days(run, without_failed=True) is None
    run.complete(1)
    assert publish_days(run) == 2
    check_settled(backend)
    assert rows(visible(backend)) == list(range(8))
    last = TableLog(backend.storage(), OUTPUT).manifest().commits[-1]
    assert (last.name, last.mode) == (f"{run.ledger.run}-2024-01-01.2", "append")
    assert run.ledger.published() == 2


@pytest.mark.parametrize("done", [(0, 2, 3), (2, 3)], ids=["a part", "nothing"])
def test_a_window_is_not_added_to_the_version_of_others(done: tuple[int, ...]) -> None:
    """A part of it was published with the whole run, or nothing; another run has published it."""
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2)))
    run.complete(*done)
    publish_run(run.storage, run.ledger, without_failed=True)
    other = windowed_run(backend.storage(), daily(days(1)), code="another")
    other.complete()
    publish_run(other.storage, other.ledger)
    before = visible(backend)
    complete(run, *days(1))
    with pytest.raises(CommitsConflictError):
        publish_days(run)
    assert visible(backend) == before
    check_settled(backend)


def test_what_windows_left_out_is_published_whole() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3)))
    complete(run)
    publish_days(run, *days(2))
    assert publish_run(run.storage, run.ledger) == 2
    check_settled(backend)
    assert rows(visible(backend)) == list(range(12))
    assert publish_days(run) is None


def test_what_a_partial_run_left_out_is_published_by_windows() -> None:
    """A window adds to what the run has published: it must not replace the run's own files."""
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2)))
    run.complete(0, 2, 3)
    publish_run(run.storage, run.ledger, without_failed=True)
    complete(run, *days(1))
    publish_days(run)
    check_settled(backend)
    assert rows(visible(backend)) == list(range(8))
    assert run.ledger.published() == 2


def test_a_run_is_not_published_whole_while_its_windows_are() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3)))
    complete(run)
    counted = Faulty(copied(backend), lambda n, name: None)
    again = run.again(Storage({"s3": counted}, AT_ONCE))
    publish_run(again.storage, again.ledger)
    for number in instants(len(counted.calls)):
        shared = copied(backend)
        other = run.again(shared.storage())

        def script(n: int, name: str, number: int = number, other: Run = other) -> Fault:
            if n == number:
                publish_days(other, *days(2))
            return None

        slow = run.again(Storage({"s3": Faulty(shared, script)}, AT_ONCE))
        with suppress(ConflictError):
            publish_run(slow.storage, slow.ledger)
        finish_open_claim(TableLog(shared.storage(), OUTPUT))
        check_settled(shared)
        found = rows(visible(shared))
        assert len(found) == len(set(found))


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_runs_that_have_no_windows(mode: str) -> None:
    backend = MemoryBackend()
    storage, plan = backend.storage(), daily(days(1))
    run = run_of(storage, plan, mode) if mode == "append" else windowed_run(storage, plan, mode)
    said = "no windows" if mode == "append" else "overwrite, windows would replace"
    with pytest.raises(UsageError, match=said) as caught:
        publish_run(run.storage, run.ledger, windows={})
    assert caught.value.hint


# -- others -------------------------------------------------------------------------------------


def test_runs_of_other_windows_rebase() -> None:
    backend = MemoryBackend()
    runs = [
        windowed_run(backend.storage(), daily(days(*own)), code=str(own))
        for own in ((1, 2), (3, 4), (5,))
    ]
    for run in runs:
        complete(run)
    publish_days(runs[0], *days(1))
    publish_days(runs[1])
    publish_days(runs[2])
    publish_days(runs[0])
    check_settled(backend)
    assert head(backend) == 4
    assert len(visible(backend)) == 10


def test_windows_in_conflict_are_told_and_the_others_published() -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2, 3)))
    complete(run)
    other = published_days(backend, days(2), code="other")
    with pytest.raises(CommitsConflictError, match=other.ledger.run) as caught:
        publish_days(run)
    assert caught.value.windows == ("2024-01-02",)
    assert caught.value.commits == (f"{run.ledger.run}-2024-01-02",)
    assert caught.value.exit_code == 3
    check_settled(backend)
    assert folders_of(keys_of(run, visible(backend))) == {
        "ds=2024-01-01": 2, "ds=2024-01-03": 2}  # fmt: skip
    run.ledger.accept(head(backend))
    publish_days(run)
    check_settled(backend)
    assert len(keys_of(run, visible(backend))) == 6
    assert not keys_of(other, visible(backend))


@pytest.mark.parametrize("mode", ["append", "overwrite-partitions", "overwrite"])
def test_a_run_without_windows_in_between(mode: str) -> None:
    backend = MemoryBackend()
    run = windowed_run(backend.storage(), daily(days(1, 2)))
    complete(run)
    other = run_of(backend.storage(), daily(days(2, 3)), mode, "other")
    other.complete()
    publish_run(other.storage, other.ledger)
    with pytest.raises(CommitsConflictError) as caught:
        publish_days(run)
    assert caught.value.windows == ("2024-01-02",)
    check_settled(backend)
    assert folders_of(visible(backend)) == dict.fromkeys([f"ds={d}" for d in days(1, 2, 3)], 2)


def test_a_window_that_was_replaced_is_not_published_again() -> None:
    backend = MemoryBackend()
    run = published_days(backend, days(1, 2))
    published_days(backend, days(2), code="later")
    before = copied(backend).stored
    assert publish_days(run.again(backend.storage())) is None
    assert backend.stored == before


def test_windows_roll_back_together() -> None:
    backend = MemoryBackend()
    first = published_days(backend, days(1, 2))
    second = published_days(backend, days(1, 2), code="new")
    table_log = TableLog(backend.storage(), OUTPUT)
    assert rollback(table_log).rollback_of == 1
    check_settled(backend)
    assert len(keys_of(first, visible(backend))) == 4
    assert commits_of(table_log, second.ledger.run, 1)
    third = published_days(backend, days(2), code="newest")
    check_settled(backend)
    assert len(keys_of(third, visible(backend))) == 2


def test_a_window_more_costs_no_request_but_those_of_its_files() -> None:
    def asked(count: int) -> Counter[str]:
        backend = MemoryBackend()
        labels = days(*range(1, count + 1))
        run = windowed_run(backend.storage(), daily(labels, chunks=1), "overwrite-partitions")
        complete(run)
        counted = Faulty(backend, lambda n, name: None)
        publish_days(run.again(Storage({"s3": counted}, AT_ONCE)))
        return Counter(counted.calls)

    # They are frozen in one record, which is looked at once for amendments.
    assert asked(9) == asked(5)
