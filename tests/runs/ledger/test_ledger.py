"""The ledger: what is stored is read back, what is left is exact, whoever asks."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger, run_id, segment_name
from pipeline.runs.ledger.records import COMPLETIONS, FAILURES, Completion, Failure, Progress
from pipeline.storage import Storage
from tests.support.examples import fewer
from tests.support.faulty_storage import Faulty
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.runs_by_hand import (
    OUTPUT,
    SCHEMA,
    Run,
    job_of,
    plan_of,
    run_of,
    shifted,
    with_other_figures,
)

PLAN = plan_of(5)


@pytest.fixture
def run() -> Run:
    return run_of(MemoryBackend().storage(), PLAN)


def completions(progress: Progress) -> list[Completion]:
    return [
        Completion(
            **{
                **row,
                "parts": tuple(row["parts"]),
                "left_out": tuple(row["left_out"]),
                "filled": tuple(row["filled"]),
            }
        )
        for row in progress.completions.iter_rows(named=True)
    ]


def test_a_run_is_stored_whole(run: Run) -> None:
    other = run.again(run.storage)
    assert other.record.chunks == 5
    assert other.record.rows == PLAN.rows
    assert other.record.run == run.ledger.run == run_id(PLAN, job_of(), "code")
    assert other.ledger.plan() == PLAN
    assert other.ledger.job() == job_of()
    assert [record.run for record in runs_of(run.storage, OUTPUT)] == [run.ledger.run]
    assert Ledger.open(run.storage, run.ledger.prefix).prefix == run.ledger.prefix
    assert run.ledger.prefix == f"s3://out/t.chunkmap/runs/{run.ledger.run}/"


def test_submitting_twice_is_one_run(run: Run) -> None:
    run.complete(0)
    before = run.record
    again = Ledger.create(run.storage, job_of(), PLAN, "code", 7)
    assert again.record() == before
    assert again.read().completions.height == 1


def test_a_plan_made_again_with_other_figures_is_the_same_run(run: Run) -> None:
    """Objects that were pruned, estimates and warnings are in the plan, but not in its id."""
    other = with_other_figures(PLAN)
    assert other.id == PLAN.id
    assert other.to_bytes() != PLAN.to_bytes()
    again = Ledger.create(run.storage, job_of(), other, "code", 0)
    assert again.run == run.ledger.run
    assert again.plan() == PLAN


def test_what_makes_another_run() -> None:
    base = run_id(PLAN, job_of(), "code")
    others = {
        run_id(plan_of(4), job_of(), "code"),
        run_id(PLAN, job_of("append"), "code"),
        run_id(PLAN, job_of(), "other"),
        run_id(PLAN, job_of(params={"a": 1}), "code"),
        run_id(PLAN, job_of(output="s3://out/u/"), "code"),
    }
    assert len(others | {base}) == 6
    assert run_id(PLAN, job_of(name="other", retries=9, rounds=9), "code") == base
    assert run_id(PLAN, job_of(output="s3://out/t"), "code") == base


def test_no_such_run(run: Run) -> None:
    with pytest.raises(UsageError, match="no run 0123"):
        Ledger(run.storage, OUTPUT, "0123").record()


def test_nothing_is_done_at_first(run: Run) -> None:
    progress = run.ledger.read()
    assert progress.completions.schema == progress.duplicates.schema == COMPLETIONS
    assert progress.failures.schema == FAILURES
    assert progress.left(5) == [0, 1, 2, 3, 4]
    assert progress.failed().is_empty()


def test_completions_come_back_as_they_were(run: Run) -> None:
    done = run.complete(3, 1)
    progress = run.again(run.storage).ledger.read()
    assert completions(progress) == sorted(done, key=lambda one: one.index)
    assert progress.left(5) == [0, 2, 4]
    assert progress.schemas == {done[0].schema: SCHEMA}


def test_failures_come_back_and_the_last_counts(run: Run) -> None:
    now = time.time()
    failures = [run.failure(2, now + 1), run.failure(2, now), run.failure(4, now, transient=True)]
    run.store(*failures)
    run.complete(4)
    progress = run.ledger.read()
    found = [Failure(**row) for row in progress.failures.iter_rows(named=True)]
    assert sorted(found, key=lambda f: f.attempt) == sorted(failures, key=lambda f: f.attempt)
    assert progress.failures["at"].is_sorted()
    assert progress.failed()["attempt"].to_list() == [failures[0].attempt]
    assert 2 in progress.left(5)


def test_of_two_completions_everybody_takes_the_same(run: Run) -> None:
    attempts = [f"{number:032x}" for number in range(6)]
    random.Random(3).shuffle(attempts)
    for attempt in attempts:
        run.store(run.completion(1, attempt))
    run.complete(0)
    for _ in range(3):
        progress = run.again(run.storage).ledger.read()
        assert progress.completions["index"].to_list() == [0, 1]
        assert progress.completions["attempt"].to_list()[1] == min(attempts)
        assert set(progress.duplicates["attempt"]) == set(attempts) - {min(attempts)}


def test_a_void_attempt_gives_way_to_a_spare_and_then_to_nothing(run: Run) -> None:
    first, second = sorted((run.completion(1) for _ in range(2)), key=lambda one: one.attempt)
    run.store(first, second)
    run.ledger.void([first.attempt])
    progress = run.ledger.read()
    assert progress.completions["attempt"].to_list() == [second.attempt]
    assert progress.duplicates.is_empty()
    run.ledger.void([second.attempt])
    assert run.ledger.read().left(5) == [0, 1, 2, 3, 4]
    third = run.complete(1)[0]
    assert run.ledger.read().completions["attempt"].to_list() == [third.attempt]


def test_a_segment_is_read_once() -> None:
    backend = Faulty(MemoryBackend(), lambda n, name: None)
    run = run_of(Storage({"s3": backend}, AT_ONCE), PLAN)
    run.complete(0)
    run.complete(1)
    run.ledger.read()
    backend.calls.clear()
    run.complete(2)
    backend.calls.clear()
    progress = run.ledger.read()
    assert progress.left(5) == [3, 4]
    assert backend.calls == ["after", "get"]
    backend.calls.clear()
    assert run.ledger.read() is progress, "nothing is new"
    assert backend.calls == ["after"]
    run.ledger.void(progress.completions["attempt"].head(1))
    assert run.ledger.read().left(5) == [0, 3, 4]
    run.ledger.set_aside(progress.completions["attempt"].tail(1))
    assert run.ledger.read().left(5) == [0, 2, 3, 4]


def test_what_never_changes_is_read_once() -> None:
    backend = Faulty(MemoryBackend(), lambda n, name: None)
    run = run_of(Storage({"s3": backend}, AT_ONCE), PLAN)
    backend.calls.clear()
    assert run.ledger.record() == run.again(run.storage).ledger.record()
    assert backend.calls == ["get"], "the ledger that stored it has it"
    assert run.ledger.published() is None
    backend.calls.clear()
    assert run.ledger.published() is None, "another driver may have published it meanwhile"
    assert backend.calls == ["get"]
    run.again(run.storage).ledger.note_published(3)
    assert run.ledger.published() == run.ledger.published() == 3
    assert backend.calls == ["get", "put", "get"]


def test_what_a_batch_left_behind(run: Run) -> None:
    done, failed = run.completion(0), run.failure(1, time.time())
    run.ledger.write_segment(segment_name("r1-00001", "a", 1), [done, failed])
    run.ledger.write_segment(segment_name("r1-00002", "a", 1), [run.completion(2)])
    progress = run.ledger.of_batch("r1-00001")
    assert completions(progress) == [done]
    assert progress.failures["index"].to_list() == [1]


@settings(max_examples=fewer(60), deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("complete"), st.integers(0, 4)),
            st.tuples(st.just("fail"), st.integers(0, 4)),
            st.tuples(
                st.sampled_from(["fold", "fold elsewhere", "read", "new reader"]), st.just(0)
            ),
        ),
        max_size=25,
    )
)
def test_folding_changes_nothing(steps: list[tuple[str, int]]) -> None:
    """Whoever folds, whenever, all readers see every entry exactly once."""
    run = run_of(MemoryBackend().storage(), PLAN)
    elsewhere = run.again(run.storage)
    reader = run.again(run.storage)
    done: list[Completion] = []
    failures = 0
    for step, index in steps:
        if step == "complete":
            done += run.complete(index)
        elif step == "fail":
            run.store(run.failure(index, time.time()))
            failures += 1
        elif step == "fold":
            run.ledger.read()
            run.ledger.compact()
        elif step == "fold elsewhere":
            elsewhere.ledger.compact()
        elif step == "new reader":
            reader = run.again(run.storage)
        progress = reader.ledger.read()
        rows = pl.concat([progress.completions, progress.duplicates])
        assert sorted(rows["attempt"]) == sorted(completion.attempt for completion in done)
        assert progress.failures.height == failures
        assert progress.left(5) == sorted(set(range(5)) - {completion.index for completion in done})
    assert run.again(run.storage).ledger.read().left(5) == reader.ledger.read().left(5)


def test_a_folded_run_takes_few_requests() -> None:
    backend = Faulty(MemoryBackend(), lambda n, name: None)
    run = run_of(Storage({"s3": backend}, AT_ONCE), PLAN)
    for _ in range(30):
        run.complete(0)
    assert run.ledger.read().duplicates.height == 29
    assert run.ledger.uncompacted == 30
    run.ledger.compact()
    reader = run.again(run.storage)
    backend.calls.clear()
    assert reader.ledger.read().duplicates.height == 29
    # The base, the plan and the job, which its entries are checked against.
    assert backend.calls == ["after", "objects", "get", "get", "get"]
    backend.calls.clear()
    assert reader.ledger.read().duplicates.height == 29
    assert backend.calls == ["after"]
    assert reader.ledger.uncompacted == 0


def test_what_some_batches_have_stored_is_read_without_listing_the_rest() -> None:
    run = run_of(MemoryBackend().storage(), PLAN)
    driver = run.again(run.storage).ledger

    def stored(batch: str, index: int) -> None:
        run.ledger.write_segment(segment_name(batch, "x", 1), [run.completion(index)])

    for number in range(3):
        stored(f"r1-{number}", number)
    assert driver.read("r1-1").left(5) == [0, 3, 4]
    stored("r1-3", 3)
    assert driver.read("r1-3").left(5) == [0, 4], "what is known stays known"
    driver.compact()
    assert driver.uncompacted == 0
    stored("r1-4", 4)
    assert driver.read("r1-4").left(5) == [0]
    assert driver.read().left(5) == []
    driver.compact()
    assert run.again(run.storage).ledger.read().left(5) == []


def test_of_two_that_fold_the_second_goes_on_from_the_first() -> None:
    run = run_of(MemoryBackend().storage(), PLAN)
    one, other = run.again(run.storage).ledger, run.again(run.storage).ledger
    run.complete(0)
    one.read()
    other.read()
    run.complete(1)
    one.read()
    one.compact()
    other.compact()
    assert other.uncompacted == 0
    assert other.read().left(5) == [2, 3, 4]
    other.compact()
    assert run.again(run.storage).ledger.read().left(5) == [2, 3, 4]


def test_where_it_was_published_is_noted(run: Run) -> None:
    assert run.ledger.published() is None
    run.ledger.note_published(3)
    assert run.ledger.published() == 3


def test_a_wish_to_cancel_is_seen_and_taken_back(run: Run) -> None:
    assert not run.ledger.is_cancelled()
    run.ledger.cancel()
    assert run.again(run.storage).ledger.is_cancelled()
    run.ledger.clear_cancel()
    assert not run.ledger.is_cancelled()


def test_entries_keep_every_character(run: Run) -> None:
    odd = 'tab\t "quotes" \\ line\nbreak \u2028 ünï \x00'
    done = shifted(run.completion(0), worker=odd, parts=("a", "b\n"))
    failure = replace(run.failure(1, 1.0), message=odd, trace=odd, worker=odd)
    run.store(done, failure)
    progress = run.again(run.storage).ledger.read()
    assert completions(progress) == [done]
    assert Failure(**progress.failures.row(0, named=True)) == failure
