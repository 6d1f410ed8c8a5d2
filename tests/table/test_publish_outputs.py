"""A run of several outputs is published to all of them or to none, whoever dies and meets whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest

from partitioning import Plan
from pipeline.config.job import Job
from pipeline.errors import ConflictError, StateError
from pipeline.runs.admin.vacuum import discard_run, vacuum
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.several_outputs import publish_several
from pipeline.runs.ledger.ledger import FurtherOutput, Ledger
from pipeline.storage import Backend, Storage
from pipeline.storage.documents import seal_json
from pipeline.storage.s3_backend import COPIED_BYTES, S3Backend
from pipeline.table import decision
from pipeline.table.claims import finish_open_claim, staged_of
from pipeline.table.errors import CommitsConflictError, UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.repair import diagnose, repair
from tests.servers.launching import Server
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, at, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import copied, ids
from tests.support.publishing import MODES, PLAN
from tests.support.runs_by_hand import INPUT, Run, job_of_run, plan_of, run_of_job

FIRST, SECOND = "s3://out/first/", "s3://out/second/"
BOTH = (FIRST, SECOND)
EARLIER = plan_of(2, folders=(1, 2))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a publisher that has claimed and not decided."""
    monkeypatch.setattr(decision, "UNDECIDED_SECONDS", 0.0)


@dataclass(frozen=True)
class Several:
    """One run of two outputs."""

    storage: Storage
    ledger: Ledger
    plan: Plan

    @property
    def of_outputs(self) -> list[Run]:
        return [Run(self.storage, each, self.plan) for each in self.ledger.of_outputs()]

    def again(self, backend: Backend) -> Several:
        """The same run as another process sees it."""
        storage = Storage({"s3": backend}, AT_ONCE)
        return Several(storage, Ledger(storage, FIRST, self.ledger.run), self.plan)

    def complete(self, *indices: int, attempt: str | None = None) -> None:
        """Map chunks as a worker does; default all of them."""
        first, second = self.of_outputs
        for index in indices or range(len(self.plan)):
            done = first.completion(index, attempt)
            second.store(second.completion(index, done.attempt))
            first.store(done)

    def publish(self) -> None:
        """Publish as a driver does, which maps chunks again whose uploads vanished."""
        vanished = None
        for _ in range(3):
            left = self.ledger.read().left(len(self.plan))
            if left:
                self.complete(*left)
            try:
                publish_several(self.storage, self.ledger, vanished)
                return
            except UploadsVanishedError as error:
                self.ledger.void(error.attempts)
                vanished = error
        raise AssertionError("three attempts are enough")


def several(backend: MemoryBackend, mode: str, plan: Plan = PLAN, code: str = "code") -> Several:
    return several_on(backend.storage(), mode, plan, code)


def several_on(storage: Storage, mode: str, plan: Plan, code: str) -> Several:
    job = Job.model_validate(
        {
            "name": "test",
            "input": {"uri": INPUT},
            "transform": "pipeline.examples.revenue:revenue",
            "outputs": {n: {"uri": f"s3://out/{n}/", "mode": mode} for n in ("first", "second")},
        }
    )
    bases = [TableLog(storage, uri).head()[0].current for uri in BOTH]
    further = [FurtherOutput(SECOND, mode, bases[1])]
    ledger = Ledger.create(storage, job, plan, code, bases[0], further=further)
    return Several(storage, ledger, plan)


def single(backend: MemoryBackend, output: str, mode: str, code: str = "single") -> Run:
    """A run of another job to one of the outputs, mapped."""
    job = job_of_run(mode, EARLIER, code, output)
    run = run_of_job(backend.storage(), job, EARLIER, code)
    run.complete()
    return run


def ready(mode: str) -> tuple[MemoryBackend, Several]:
    """Two outputs, published before where the mode allows it, and a run that is mapped."""
    backend = MemoryBackend()
    if mode != "error":
        earlier = several(backend, "append", EARLIER, "earlier")
        earlier.complete()
        earlier.publish()
    run = several(backend, mode)
    run.complete()
    return backend, run


def requests(backend: MemoryBackend, run: Several) -> list[str]:
    counted = Faulty(copied(backend), lambda n, name: None)
    run.again(counted).publish()
    return counted.calls


def visible(backend: MemoryBackend, output: str) -> dict[str, bytes]:
    return {
        uri.removeprefix(output): stored.data
        for uri, stored in backend.stored.items()
        if uri.startswith(output)
    }


def rows(backend: MemoryBackend, output: str) -> list[int]:
    return sorted(i for data in visible(backend, output).values() for i in ids(data))


def state(backend: MemoryBackend) -> tuple[list[int], list[int]]:
    """What a plain glob sees in each output, where nothing is under way."""
    for output in BOTH:
        table_log = TableLog(backend.storage(), output)
        head, _ = table_log.head()
        assert head.publishing is None
        assert set(table_log.keys(table_log.manifest().commits)) == set(visible(backend, output))
    return rows(backend, FIRST), rows(backend, SECOND)


def meet(backend: MemoryBackend, *outputs: str) -> None:
    """What anybody does who next works on these outputs."""
    for output in outputs:
        finish_open_claim(TableLog(backend.storage(), output))


def attempts(backend: MemoryBackend, output: str) -> dict[str, str]:
    """The published attempt of each chunk."""
    table_log = TableLog(backend.storage(), output)
    files = table_log.snapshot(table_log.manifest())
    return dict(files.select("chunk", "attempt").iter_rows())


def killed(backend: MemoryBackend, run: Several, number: int, fault: Fault = "before") -> None:
    with suppress(KilledError):
        run.again(Faulty(backend, dies_at(number, fault), KilledError)).publish()


def die_undecided(backend: MemoryBackend, run: Several) -> None:
    """A driver dies with both outputs claimed, before it decides."""
    calls = requests(backend, run)
    decided = max(n for n in range(calls.index("complete")) if calls[n] == "put_new")
    killed(backend, run, decided)


def die_decided(backend: MemoryBackend, run: Several) -> None:
    """A driver dies when it has decided to publish, before anything is visible."""
    killed(backend, run, requests(backend, run).index("complete"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", MODES)
def test_a_driver_dies_anywhere(mode: str) -> None:
    backend, run = ready(mode)
    before = state(backend)
    healthy = copied(backend)
    run.again(healthy).publish()
    after = state(healthy)
    assert after != before
    assert after[0] == after[1]
    ends = set()
    for number in instants(len(requests(backend, run)), mode, step=12):
        shared = copied(backend)
        killed(shared, run, number, "before" if number % 2 else "after")
        meet(shared, *BOTH)
        found = state(shared)
        assert found in (before, after), f"at request {number}"
        ends.add(found == after)
        run.again(shared).publish()
        assert state(shared) == after
        assert attempts(shared, FIRST) == attempts(shared, SECOND)
        assert not shared.uploads
        assert all(each.ledger.published() for each in run.again(shared).of_outputs)
    assert ends == {False, True}


@pytest.mark.parametrize("output", BOTH)
def test_whoever_meets_one_claim_finishes_both(output: str) -> None:
    backend, run = ready("append")
    die_decided(backend, run)
    assert f"s3://out/first.chunkmap/decisions/{run.ledger.run}.1.json" in backend.stored
    other = single(backend, output, "append")
    publish_run(other.storage, other.ledger)
    for each in BOTH:
        assert TableLog(backend.storage(), each).head()[0].publishing is None
        assert set(range(6)) <= set(rows(backend, each))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", MODES)
def test_a_reply_is_lost(mode: str) -> None:
    backend, run = ready(mode)
    healthy = copied(backend)
    run.again(healthy).publish()
    for number in instants(len(requests(backend, run)), mode, "lost"):
        shared = copied(backend)
        run.again(Faulty(shared, at(number, "after"))).publish()
        assert state(shared) == state(healthy), f"at request {number}"


def stalled_at(number: int, meanwhile: Callable[[], object]) -> Script:
    """Stop before one request, while somebody else does something, and go on."""

    def script(n: int, name: str) -> Fault:
        if n == number:
            meanwhile()
        return None

    return script


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", MODES)
def test_two_drivers_publish_one_run(mode: str) -> None:
    backend, run = ready(mode)
    healthy = copied(backend)
    run.again(healthy).publish()
    for number in instants(len(requests(backend, run)), mode, "two"):
        shared = copied(backend)
        other = run.again(shared)
        run.again(Faulty(shared, stalled_at(number, other.publish))).publish()
        assert state(shared) == state(healthy), f"at request {number}"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("output", BOTH)
@pytest.mark.parametrize("mode", ["error", "overwrite"])
def test_another_run_publishes_to_one_of_them(mode: str, output: str) -> None:
    """One of the two wins; the loser changes nothing, and nothing of it is visible."""
    backend, run = ready(mode)
    theirs = single(backend, output, mode)
    for number in instants(len(requests(backend, run)), mode, output):
        shared = copied(backend)
        before = state(shared)
        lost: list[str] = []

        def meanwhile(shared: MemoryBackend = shared, lost: list[str] = lost) -> None:
            other = theirs.again(shared.storage())
            try:
                publish_run(other.storage, other.ledger)
            except ConflictError:
                lost.append("theirs")

        try:
            run.again(Faulty(shared, stalled_at(number, meanwhile))).publish()
        except ConflictError:
            lost.append("ours")
        meet(shared, *BOTH)
        found = dict(zip(BOTH, state(shared), strict=True))
        [other_output] = set(BOTH) - {output}
        assert len(lost) == 1 or (mode == "overwrite" and not lost)
        if "ours" in lost:
            assert found[output] == [0, 1, 2, 3]
            assert found[other_output] == dict(zip(BOTH, before, strict=True))[other_output]
        else:
            assert found[output] == found[other_output] == list(range(6))


def test_a_conflict_in_one_output_leaves_the_other_alone() -> None:
    backend, run = ready("overwrite")
    other = single(backend, SECOND, "append")
    publish_run(other.storage, other.ledger)
    before = state(backend)
    with pytest.raises(CommitsConflictError, match=f"run {other.ledger.run} has published"):
        run.publish()
    assert state(backend) == before
    for each in run.again(backend).of_outputs:
        each.ledger.accept(TableLog(backend.storage(), each.ledger.output).head()[0].current)
    uploads = dict(backend.uploads)
    run.again(backend).publish()
    assert state(backend) == (list(range(6)), list(range(6)))
    assert uploads, "what was staged was used"
    assert not backend.uploads


COMMANDS: dict[str, Callable[[MemoryBackend, str], object]] = {
    "vacuum": lambda backend, output: vacuum(backend.storage(), output, older_than=0.0),
    "rollback": lambda backend, output: rollback(TableLog(backend.storage(), output)),
    "repair": lambda backend, output: repair(TableLog(backend.storage(), output)),
    "prepare": lambda backend, output: prepare_output(
        TableLog(backend.storage(), output), "append", "0" * 16
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("output", BOTH)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_meets_an_undecided_claim(command: str, output: str) -> None:
    """Nothing is published, and what is staged is kept."""
    shared, run = ready("append")
    before = state(shared)
    die_undecided(shared, run)
    assert all(TableLog(shared.storage(), each).head()[0].publishing for each in BOTH)
    assert state_of_heads(shared) == [2] * 2, "older releases refuse it"
    COMMANDS[command](shared, output)
    meet(shared, *BOTH)
    assert rows(shared, FIRST) == before[0] or command == "rollback"
    run.again(shared).publish()
    for each in BOTH:
        assert set(range(6)) <= set(rows(shared, each))
    assert state_of_heads(shared) == [1, 1]


def state_of_heads(backend: MemoryBackend) -> list[int]:
    """The format of each output's pointer."""
    return [
        json.loads(backend.stored[f"{output.rstrip('/')}.chunkmap/HEAD.json"].data)["version"]
        for output in BOTH
    ]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("output", BOTH)
@pytest.mark.parametrize("command", ["vacuum", "repair", "prepare"])
def test_a_command_meets_a_decided_claim(command: str, output: str) -> None:
    backend, run = ready("append")
    die_decided(backend, run)
    healthy = copied(backend)
    run.again(healthy).publish()
    COMMANDS[command](backend, output)
    assert state(backend) == state(healthy)


def damage_decision(backend: MemoryBackend, run: Several) -> str:
    uri = decision.decision_uri(FIRST, run.ledger.run, 1)
    assert uri in backend.stored
    backend.put(uri, b"{}x")
    return uri


def situations(backend: MemoryBackend, output: str) -> list[str]:
    return [p.situation for p in diagnose(TableLog(backend.storage(), output)).problems]


@pytest.mark.parametrize("output", BOTH)
def test_a_damaged_decision_is_named(output: str) -> None:
    backend, run = ready("error")
    die_decided(backend, run)
    uri = damage_decision(backend, run)
    before = dict(backend.stored)
    with pytest.raises(StateError, match=f"{uri} cannot be used: it is damaged: Invalid") as found:
        meet(backend, output)
    assert f"chunkmap repair {output}" in str(found.value.hint)
    [problem] = diagnose(TableLog(backend.storage(), output)).problems
    assert problem.situation == "decision damaged"
    assert uri in problem.message
    assert uri in problem.advice
    assert f"chunkmap retry {run.ledger.run}" in problem.action
    assert backend.stored == before


def test_claims_whose_decision_is_damaged_are_given_up() -> None:
    backend, run = ready("append")
    die_decided(backend, run)
    damage_decision(backend, run)
    before = rows(backend, FIRST), rows(backend, SECOND)
    for output in BOTH:
        assert repair(TableLog(backend.storage(), output))[-1].problems == ()
    assert state(backend) == before
    run.again(backend).publish()
    first, second = state(backend)
    assert first == second
    assert set(range(6)) <= set(first)
    assert attempts(backend, FIRST) == attempts(backend, SECOND)
    assert not backend.uploads


def test_an_output_that_is_published_needs_no_decision() -> None:
    """Its manifest is stored when the decision is damaged; the other output is not as far."""
    backend, run = ready("append")
    calls = requests(backend, run)
    stored = next(n for n in range(calls.index("complete"), len(calls)) if calls[n] == "put_new")
    killed(backend, run, stored, "after")
    damage_decision(backend, run)
    assert situations(backend, FIRST) == ["publish unfinished"]
    assert situations(backend, SECOND) == ["decision damaged"]
    meet(backend, FIRST)
    published = rows(backend, FIRST)
    assert set(range(6)) <= set(published)
    assert repair(TableLog(backend.storage(), SECOND))[-1].problems == ()
    assert state(backend)[0] == published
    run.again(backend).publish()
    assert state(backend) == (published, published)
    assert not backend.uploads


def test_a_decision_of_a_newer_release_is_left_to_it() -> None:
    backend, run = ready("append")
    die_decided(backend, run)
    uri = decision.decision_uri(FIRST, run.ledger.run, 1)
    later = decision.Decision(version=decision.DECISION_VERSION + 1, verdict="publish")
    backend.put(uri, seal_json(later.model_dump_json().encode()))
    before = dict(backend.stored)
    with pytest.raises(StateError, match=f"{uri} cannot be used: it has format"):
        repair(TableLog(backend.storage(), SECOND))
    assert backend.stored == before


@pytest.mark.parametrize("output", BOTH)
def test_uploads_vanish_before_it_is_decided(output: str) -> None:
    backend, run = ready("append")
    [name] = [n for n, (uri, _, _) in sorted(backend.uploads.items()) if uri.startswith(output)][:1]
    del backend.uploads[name]
    before = state(backend)
    with pytest.raises(UploadsVanishedError) as refused:
        publish_several(run.storage, run.again(backend).ledger)
    assert refused.value.commits == ()
    assert state(backend) == before
    run.again(backend).publish()
    assert set(range(6)) <= set(rows(backend, FIRST))
    assert rows(backend, FIRST) == rows(backend, SECOND)
    assert attempts(backend, FIRST) == attempts(backend, SECOND)
    assert not backend.uploads


@pytest.mark.parametrize("output", BOTH)
def test_uploads_vanish_after_it_is_decided(output: str) -> None:
    backend, run = ready("append")
    die_decided(backend, run)
    [name] = [n for n, (uri, _, _) in sorted(backend.uploads.items()) if uri.startswith(output)][:1]
    del backend.uploads[name]
    [problem] = diagnose(TableLog(backend.storage(), output)).problems
    assert "1 of them have vanished" in problem.message
    [other] = set(BOTH) - {output}
    assert f"and to {other}" in problem.message
    run.again(backend).publish()
    assert rows(backend, FIRST) == rows(backend, SECOND)
    assert set(range(6)) <= set(rows(backend, FIRST))


def lose_one(backend: MemoryBackend, output: str) -> None:
    """An upload of an output expires."""
    del backend.uploads[
        min(n for n, (uri, _, _) in backend.uploads.items() if uri.startswith(output))
    ]


@pytest.mark.parametrize("output", BOTH)
def test_what_is_visible_is_not_amended(output: str) -> None:
    """An upload expired in one output; in the other, all files were made visible."""
    backend, run = ready("append")
    die_decided(backend, run)
    [other] = set(BOTH) - {output}
    commit = TableLog(backend.storage(), other).commit(run.ledger.run)
    assert commit is not None
    assert not backend.complete(staged_of(other, commit.files))
    lose_one(backend, output)
    run.again(backend).publish()
    found = state(backend)
    assert found[0] == found[1]
    assert set(range(6)) <= set(found[0])
    assert not backend.uploads


def test_what_another_process_makes_visible_is_not_amended() -> None:
    """It has read the commit, and sleeps while a driver maps what expired in the other output."""
    backend, run = ready("append")
    die_decided(backend, run)
    lose_one(backend, FIRST)

    def amend() -> None:
        # It dies before it aborts duplicates.
        dying = Faulty(backend, dies_when("abort", after="complete"), KilledError)
        with suppress(KilledError):
            run.again(dying).publish()

    counted = Faulty(copied(backend), lambda n, name: None)
    finish_open_claim(TableLog(Storage({"s3": counted}, AT_ONCE), SECOND))
    number = counted.calls.index("complete")
    sleeper = Faulty(backend, stalled_at(number, amend))
    finish_open_claim(TableLog(Storage({"s3": sleeper}, AT_ONCE), SECOND))
    found = state(backend)
    assert found[0] == found[1]
    assert set(range(6)) <= set(found[0])
    run.again(backend).publish()
    assert state(backend) == found
    assert not backend.uploads


def test_commits_that_are_claimed_keep_their_attempts() -> None:
    """A driver chose attempts, and sleeps while another one publishes others and dies."""
    backend, run = ready("append")
    calls = requests(backend, run)
    for number in instants(calls.index("complete"), "claimed"):
        shared = copied(backend)

        def meanwhile(shared: MemoryBackend = shared) -> None:
            dying = Faulty(shared, dies_when("put_new", after="complete"), KilledError)
            other = run.again(dying)
            for index in range(len(PLAN)):
                other.complete(index, attempt=f"{index:032x}")  # Readers choose the smallest.
            with suppress(KilledError):
                other.publish()

        run.again(Faulty(shared, stalled_at(number, meanwhile))).publish()
        found = state(shared)
        assert found[0] == found[1], f"at request {number}"
        assert set(range(6)) <= set(found[0]), f"at request {number}"
        assert attempts(shared, FIRST) == attempts(shared, SECOND), f"at request {number}"


def test_all_outputs_have_the_same_attempt_of_a_chunk() -> None:
    """Another attempt is stored after the first output's commit was frozen."""
    backend, run = ready("error")
    calls = requests(backend, run)
    frozen = [n for n, name in enumerate(calls) if name == "put_new"]
    for number in frozen:
        shared = copied(backend)
        killed(shared, run, number, "after")
        again = run.again(shared)
        again.complete(attempt="0" * 32)  # Readers choose the smallest.
        again.publish()
        assert attempts(shared, FIRST) == attempts(shared, SECOND)
        assert state(shared) == (list(range(6)), list(range(6)))
        assert not shared.uploads


def test_an_attempt_that_one_output_lacks_is_mapped_again() -> None:
    backend, run = ready("error")
    [segment] = sorted(
        uri for uri in backend.stored if "second.chunkmap/runs/" in uri and "/completions/" in uri
    )[:1]
    del backend.stored[segment]
    again = run.again(backend)
    with pytest.raises(UploadsVanishedError):
        publish_several(again.storage, again.ledger)
    run.again(backend).publish()
    assert state(backend) == (list(range(6)), list(range(6)))
    assert attempts(backend, FIRST) == attempts(backend, SECOND)


@pytest.mark.parametrize("copied_bytes", [0, COPIED_BYTES], ids=["uploads", "copies"])
def test_on_s3(moto: Server, copied_bytes: int) -> None:
    """A driver dies once both outputs are claimed, and once it has decided."""
    moto.client().create_bucket(Bucket="out")
    real = S3Backend(moto.access, copied_bytes=copied_bytes)
    run = several_on(Storage({"s3": real}), "append", PLAN, f"on S3 {copied_bytes}")
    run.complete()
    counted = Faulty(real, dies_at(10**6, "before"), KilledError)
    for call in ("put_new", "complete"):
        dying = Faulty(real, dies_when(call, after="put_if"), KilledError)
        with suppress(KilledError):
            run.again(dying).publish()
    run.again(counted).publish()
    for output in BOTH:
        table_log = TableLog(Storage({"s3": real}), output)
        assert table_log.head()[0].publishing is None
        assert len(table_log.keys(table_log.manifest().commits)) == len(PLAN)
    for info in list(run.storage.objects("s3://out/")):
        run.storage.delete(info.uri)


def dies_when(call: str, after: str) -> Script:
    """End at the first call of a name that follows another call, as `dies_at`."""
    seen = [False, False]

    def script(number: int, name: str) -> Fault:
        if seen[1] or (seen[0] and name == call):
            seen[1] = True
            return "before"
        seen[0] |= name == after
        return None

    return script


def test_a_discarded_run_leaves_nothing_staged() -> None:
    backend, run = ready("error")
    vacuum(backend.storage(), SECOND, older_than=0.0)
    assert len(backend.uploads) == 6, "the run is unfinished"
    assert discard_run(backend.storage(), run.ledger) == 6
    assert not backend.uploads


def test_a_run_is_discarded_beside_a_damaged_decision_of_another() -> None:
    backend, run = ready("append")
    die_decided(backend, run)
    damage_decision(backend, run)
    theirs = single(backend, SECOND, "append")
    before = dict(backend.uploads)
    assert discard_run(theirs.storage, theirs.ledger) == len(EARLIER)
    assert len(backend.uploads) == len(before) - len(EARLIER)
    with pytest.raises(StateError, match="it is damaged"):
        discard_run(backend.storage(), run.again(backend).ledger)
    assert len(backend.uploads) == len(before) - len(EARLIER), "it may be published"
