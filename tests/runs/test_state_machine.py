"""Random histories of an output: runs, workers and drivers that die, sleep and lose replies.

Some runs are published whole, some by windows: any of them at a time, in any order. Vacuum, repair
and rollback run whenever somebody thinks of it, and sleep in the middle; requests arrive late; the
pointer is deleted, or restored from a backup. After every step the invariants hold; at the end,
giving each command once more brings every run to its end, or tells a conflict that is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from partitioning import Windowing, windows_of_plan
from pipeline.errors import ConflictError, OutputNotEmptyError, StorageError, UsageError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.ledger.ledger import Ledger, run_id
from pipeline.runs.ledger.records import Completion
from pipeline.storage import Storage, state_prefix
from pipeline.table.claims import finish_open_claim
from pipeline.table.errors import (
    FilesMissingError,
    HeadBehindError,
    ManifestConflictError,
    UploadsVanishedError,
    foreign_claim,
)
from pipeline.table.head import HeadFile
from pipeline.table.keys import original_key
from pipeline.table.log import TableLog
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.repair import repair
from tests.support.examples import fewer
from tests.support.faulty_storage import CHANGES, Fault, Faulty, KilledError, Script, lost
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import check_manifests, check_settled, rows, visible
from tests.support.runs_by_hand import OUTPUT, Run, job_of_run, plan_of, shifted
from tests.support.windowing import chunks_of_windows

PLANS = [plan_of(2, folders=(0, 1)), plan_of(2, folders=(1, 2)), plan_of(1, folders=(5,))]
MODES = ["error", "append", "overwrite", "overwrite-partitions"]
WINDOWS = {"column": "k", "grain": "value"}
LABELS = [windows_of_plan(plan, Windowing("k", "value")) for plan in PLANS]


@dataclass(frozen=True)
class Trouble:
    """What goes wrong at one request of a command, if anything does."""

    at: int = -1
    """Number of the request, among those that change something."""
    fault: Fault = None
    deadly: bool = False

    def script(self) -> Script:
        count = changes()

        def fail(number: int, name: str) -> Fault:
            now = count(name)
            if now == self.at and name in CHANGES:
                return self.fault
            return "before" if self.deadly and -1 < self.at < now else None

        return fail


def changes() -> Callable[[str], int]:
    """Counts a command's requests that change something: what comes before one is number 0."""
    seen = [-1]

    def count(name: str) -> int:
        seen[0] += name in CHANGES
        return seen[0]

    return count


def asleep(at: int, wake: Callable[[], None]) -> Script:
    """Sleep once, before the request that changes something, or the one that reads, of a number."""
    count = changes()
    slept: list[int] = []

    def script(number: int, name: str) -> Fault:
        if not slept and at == (count(name) if at % 2 == 0 else number):
            slept.append(number)
            wake()
        return None

    return script


TROUBLE = st.one_of(
    st.just(Trouble()),
    st.builds(
        Trouble, st.integers(0, 18), st.sampled_from(["before", "after", "late"]), st.booleans()
    ),
)


FOREIGN = ("s3://in/t/000.parquet", "s3://other/x.parquet", "s3://out/t2.chunkmap/HEAD.json")
LIES: dict[str, Callable[[Completion, str], dict[str, Any]]] = {
    "a foreign source": lambda honest, other: {"upload": FOREIGN[1]},
    "a foreign key": lambda honest, other: {"uri": FOREIGN[0]},
    "both": lambda honest, other: {"uri": FOREIGN[2], "upload": FOREIGN[2]},
    "another upload": lambda honest, other: {"upload": other},
    "another chunk": lambda honest, other: {"chunk": "0" * 32},
    "another index": lambda honest, other: {"index": honest.index + 1},
    "another run's key": lambda honest, other: {"uri": honest.uri.replace("-", "-0", 1)},
    "another attempt": lambda honest, other: {"attempt": "f" * 32},
    "no attempt": lambda honest, other: {"attempt": "../../x"},
    "negative rows": lambda honest, other: {"rows_out": -1},
    "another folder": lambda honest, other: {"uri": honest.uri.replace("/part-", "/k=9/part-")},
}
"""What a hostile worker writes into a ledger."""
COMMANDS = frozenset({"drive", "rollback", "vacuum", "discard", "repair"})
CODES = st.sampled_from(["a", "b", "by windows", "by windows"])


class Output(RuleBasedStateMachine):
    """One output, and whoever works on it."""

    modes = MODES

    def __init__(self) -> None:
        super().__init__()
        self.backend = MemoryBackend()
        for uri in FOREIGN:
            self.backend.put(uri, b"theirs")
        self.runs: dict[str, tuple[Run, str]] = {}
        self.by_windows: set[str] = set()
        self.checked: Mapping[str, object] = {}
        self.frozen: dict[str, object] = {}
        self.keys: list[set[str]] = []
        """Keys that each manifest names, by its number."""
        self.rolled_back = False
        self.released: set[str] = set()
        self.late: list[Callable[[], object]] = []
        """Requests that arrive when nobody thinks of them any more."""
        self.late_came = False
        self.pointers: list[bytes] = []
        self.is_tampered = False
        """The pointer was deleted or restored from a backup, and nobody has repaired it yet."""

    # -- commands -----------------------------------------------------------------------------

    def storage(self, script: Script, error: Callable[[], BaseException] = lost) -> Storage:
        faulty = Faulty(self.backend, script, error)
        faulty.late = self.late
        return Storage({"s3": faulty}, AT_ONCE)

    def troubled(self, trouble: Trouble, command: Callable[[Storage], object]) -> None:
        """Give a command; it may die, and may be refused for a good reason."""
        storage = self.storage(trouble.script(), KilledError if trouble.deadly else lost)
        with suppress(KilledError, ConflictError, OutputNotEmptyError), self.refused():
            command(storage)

    @contextmanager
    def refused(self) -> Iterator[None]:
        """With a pointer that was tampered with, and only then, commands may refuse."""
        try:
            yield
        except (HeadBehindError, ManifestConflictError):
            assert self.is_tampered

    def seen_by(self, storage: Storage, run: Run) -> Run:
        return run.again(storage)

    def submit(self, storage: Storage, mode: str, plan: int, code: str) -> None:
        """What `chunkmap run` does before it maps anything."""
        if code == "by windows":  # In mode overwrite each would replace the others.
            mode = mode.replace("overwrite-partitions", "overwrite")
            mode = mode.replace("overwrite", "overwrite-partitions")
        window = WINDOWS if code == "by windows" else None
        job = job_of_run(mode, PLANS[plan], code, window=window)
        run = run_id(PLANS[plan], job, code)
        manifest = prepare_output(TableLog(storage, OUTPUT), mode, run)
        ledger = Ledger.create(storage, job, PLANS[plan], code, manifest.number)
        self.by_windows |= {run} if job.window else set()
        self.runs.setdefault(run, (Run(storage, ledger, PLANS[plan]), mode))

    def drive(self, storage: Storage, run: Run, labels: Sequence[str] = ()) -> None:
        """What `chunkmap run`, or a backfill, does from there on; of some windows only, maybe."""
        own = run.again(storage)
        windows = self.windows(run, labels)
        wanted = {chunk for chunks in windows.values() for chunk in chunks}
        if own.ledger.published() is not None:
            return
        prepare_output(TableLog(storage, OUTPUT), own.record.mode, own.ledger.run)
        vanished: UploadsVanishedError | None = None
        for _ in range(3):
            left = own.ledger.read().left(len(own.plan))
            lost = vanished.chunks_of(own.ledger.run) if vanished is not None else set()
            some = wanted | lost  # What is claimed is ended first, whatever its windows.
            left = [i for i in left if not windows or own.plan.chunk_ids[i] in some]
            if left:
                own.complete(*left)
            try:
                if windows:
                    publish_run(storage, own.ledger, vanished, windows=chunks_of_windows(windows))
                else:
                    publish_run(storage, own.ledger, vanished)
                return
            except UploadsVanishedError as error:
                if not error.waits_for(own.ledger.run):
                    raise foreign_claim(OUTPUT, error) from error
                own.ledger.void(error.attempts)
                vanished = error
        raise AssertionError("uploads vanish once at most while a driver works")

    def windows(self, run: Run, labels: Sequence[str] = ()) -> dict[str, list[str]]:
        """Chunks of windows (of all, by default) of a run that is published by windows."""
        if run.ledger.run not in self.by_windows:
            return {}
        found: dict[str, list[str]] = {}
        owners = LABELS[[plan.id for plan in PLANS].index(run.plan.id)]
        for chunk, label in zip(run.plan.chunk_ids, owners, strict=True):
            if not labels or label in labels:
                found.setdefault(label, []).append(chunk)
        return found

    # -- steps --------------------------------------------------------------------------------

    @precondition(lambda self: len(self.runs) < 3)
    @rule(data=st.data(), plan=st.integers(0, 2), code=CODES, trouble=TROUBLE)
    def somebody_submits(self, data: Any, plan: int, code: str, trouble: Trouble) -> None:
        mode = data.draw(st.sampled_from(self.modes))
        self.troubled(trouble, lambda storage: self.submit(storage, mode, plan, code))

    def some_run(self, data: Any) -> Run:
        name = data.draw(st.sampled_from(sorted(self.runs)))
        return self.runs[name][0]

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), trouble=TROUBLE)
    def a_driver_works(self, data: Any, trouble: Trouble) -> None:
        run = self.some_run(data)
        self.troubled(trouble, lambda storage: self.drive(storage, run))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), trouble=TROUBLE)
    def a_driver_publishes_a_window(self, data: Any, trouble: Trouble) -> None:
        run = self.some_run(data)
        labels = sorted(self.windows(run))
        if labels:
            chosen = [data.draw(st.sampled_from(labels))]
            self.troubled(trouble, lambda storage: self.drive(storage, run, chosen))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), at=st.integers(0, 40), trouble=TROUBLE)
    def a_driver_sleeps_while_another_works(self, data: Any, at: int, trouble: Trouble) -> None:
        run, other = self.some_run(data), self.some_run(data)
        # Two processes of one run may have other windows in mind, too.
        some = [data.draw(st.sampled_from([(), *sorted(self.windows(r))])) for r in (run, other)]

        def wake() -> None:
            self.troubled(trouble, lambda storage: self.drive(storage, other, some[1]))

        with suppress(ConflictError, OutputNotEmptyError), self.refused():
            self.drive(self.storage(asleep(at, wake)), run, some[0])

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), at=st.integers(0, 40), trouble=TROUBLE)
    def somebody_sleeps_while_another_works(self, data: Any, at: int, trouble: Trouble) -> None:
        sleeper, other = (data.draw(st.sampled_from(sorted(COMMANDS))) for _ in "ab")
        run = self.some_run(data)

        def wake() -> None:
            self.troubled(trouble, lambda storage: self.do(other, storage, run))

        with suppress(ConflictError, OutputNotEmptyError), self.refused():
            self.do(sleeper, self.storage(asleep(at, wake)), run)

    def do(self, command: str, storage: Storage, run: Run) -> None:
        match command:
            case "drive":
                self.drive(storage, run)
            case "rollback":
                with suppress(UsageError, UploadsVanishedError, FilesMissingError):
                    rollback(TableLog(storage, OUTPUT))
            case "vacuum":
                with suppress(UploadsVanishedError, FilesMissingError):
                    vacuum(storage, OUTPUT, older_than=0.0)
            case "discard":
                with suppress(UploadsVanishedError, FilesMissingError):
                    vacuum(storage, OUTPUT, older_than=0.0, discard=[run.ledger.run])
            case "repair":
                repair(TableLog(storage, OUTPUT))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), command=st.sampled_from(["vacuum", "discard", "repair"]), trouble=TROUBLE)
    def somebody_cleans_up(self, data: Any, command: str, trouble: Trouble) -> None:
        run = self.some_run(data)
        self.troubled(trouble, lambda storage: self.do(command, storage, run))

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def a_late_request_arrives(self, data: Any) -> None:
        self.late_came = True
        late = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        with suppress(StorageError):
            late()

    @precondition(lambda self: len(self.pointers) > 1 and not self.is_tampered)
    @rule(data=st.data())
    def the_pointer_is_lost_or_old(self, data: Any) -> None:
        """Deleted by hand or by a lifecycle rule, or restored from a backup."""
        uri = HeadFile(self.backend.storage(), state_prefix(OUTPUT)).uri
        if not TableLog(self.backend.storage(), OUTPUT).head()[0].current:
            return  # Nothing was published: there is nothing by which it could be missed.
        old = data.draw(st.sampled_from([None, *self.pointers[:-1]]))
        if old is None:
            self.backend.delete(uri)
        else:
            self.backend.put(uri, old)
        self.is_tampered = True
        # Without a manifest that it cannot explain, an old pointer is as good as the newest one.
        for command in sorted(COMMANDS.difference({"repair"})) if old is None else ():
            before = dict(self.backend.stored)
            for run, _ in self.runs.values():
                with suppress(HeadBehindError):
                    self.do(command, self.backend.storage(), run)
                    assert run.ledger.published() is not None, "that is told without the pointer"
            assert self.backend.stored == before, "a refusal changes nothing"

    @precondition(lambda self: self.is_tampered)
    @rule(trouble=TROUBLE)
    def somebody_repairs_the_pointer(self, trouble: Trouble) -> None:
        self.troubled(trouble, lambda storage: self.do("repair", storage, None))  # type: ignore[arg-type]
        repair(TableLog(self.backend.storage(), OUTPUT))
        self.is_tampered = False

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), trouble=TROUBLE)
    def a_worker_maps_a_chunk(self, data: Any, trouble: Trouble) -> None:
        """It may be a zombie: nobody may have asked for it any more."""
        run = self.some_run(data)
        index = data.draw(st.integers(0, len(run.plan) - 1))
        self.troubled(trouble, lambda storage: run.again(storage).complete(index))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), lie=st.sampled_from(sorted(LIES)), index=st.integers(0, 1))
    def a_worker_lies(self, data: Any, lie: str, index: int) -> None:
        """Nothing that it claims may be copied, deleted, or counted."""
        run = self.some_run(data).again(self.backend.storage())
        honest = run.completion(index % len(run.plan))
        staged = sorted(self.backend.uploads)
        run.store(shifted(honest, **LIES[lie](honest, data.draw(st.sampled_from(staged)))))

    @precondition(lambda self: self.backend.uploads)
    @rule(data=st.data())
    def an_upload_vanishes(self, data: Any) -> None:
        del self.backend.uploads[data.draw(st.sampled_from(sorted(self.backend.uploads)))]

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), trouble=TROUBLE)
    def a_ledger_is_folded(self, data: Any, trouble: Trouble) -> None:
        run = self.some_run(data)
        self.troubled(trouble, lambda storage: run.again(storage).ledger.compact())

    @rule(trouble=TROUBLE)
    def somebody_rolls_back(self, trouble: Trouble) -> None:
        self.troubled(trouble, lambda storage: self.do("rollback", storage, None))  # type: ignore[arg-type]

    # -- what is always true ------------------------------------------------------------------

    @invariant()
    def it_holds(self) -> None:
        now = dict(self.backend.stored)
        if self.is_tampered:
            return
        if now != self.checked:
            self.note_pointer()
            self.nothing_of_others_is_touched()
            self.checked = now
            self.what_is_frozen_stays()
            self.nothing_is_lost()
            self.a_glob_sees_whole_chunks_of_commits()

    def note_pointer(self) -> None:
        """Keep each version of the pointer: one day somebody restores it."""
        blob = self.backend.stored.get(HeadFile(self.backend.storage(), state_prefix(OUTPUT)).uri)
        if blob is not None and blob.data not in self.pointers:
            self.pointers.append(blob.data)

    def nothing_is_lost(self) -> None:
        """What the current manifest and the kept version name is there, whole."""
        check_manifests(self.backend)

    def nothing_of_others_is_touched(self) -> None:
        for uri in FOREIGN:
            assert self.backend.stored[uri].data == b"theirs"

    def what_is_frozen_stays(self) -> None:
        """Manifests and commit records are written once; a commit has a chunk once at most."""
        for uri, content in self.backend.stored.items():
            if "/manifests/" in uri or "/commits/" in uri:
                assert self.frozen.setdefault(uri, content) == content
        assert self.frozen.keys() <= self.backend.stored.keys()
        table_log = TableLog(self.backend.storage(), OUTPUT)
        for number in range(len(self.keys), table_log.head()[0].current + 1):
            manifest = table_log.manifest(number)
            for entry in manifest.commits:
                if not entry.adds_files:
                    self.released |= set(entry.releases)
                    continue
                files = table_log.load(entry).files
                assert files["chunk"].is_unique().all()
                assert (files.height, files["rows"].sum()) == (entry.files, entry.rows)
            self.keys.append(set(table_log.snapshot(manifest)["key"]))
            self.rolled_back |= manifest.rollback_of is not None

    def a_glob_sees_whole_chunks_of_commits(self) -> None:
        table_log = TableLog(self.backend.storage(), OUTPUT)
        head, _ = table_log.head()
        named = set().union(*self.keys)
        current = set(table_log.snapshot(table_log.manifest(head.current))["key"])
        claimed = head.publishing.commits if head.publishing is not None else ()
        for commit_name in {*claimed, *self.released}:
            commit = table_log.commit(commit_name)
            assert commit is not None
            named |= set(commit.files["key"])
            current |= set(commit.files["key"]) if commit_name in claimed else set()
        there = visible(self.backend)
        assert {original_key(key) for key in there} <= {original_key(key) for key in named}
        for name, (run, _) in self.runs.items():
            # What was replaced may be back for a while, where a request came late.
            whole = self.late_came or self.rolled_back or self.released
            own = rows(
                {k: d for k, d in there.items() if name in k and (not whole or k in current)}
            )
            assert max(Counter(own).values(), default=1) == 1
            assert set(own) <= set(range(2 * len(run.plan)))

    # -- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everybody gives the same command again, and nothing goes wrong any more."""
        storage = self.backend.storage()
        for late in self.late:
            with suppress(StorageError):
                late()
        repair(TableLog(storage, OUTPUT))
        ended: dict[str, str] = {}
        for _ in range(3):  # A claim whose uploads vanished must be ended by its own run first.
            for name, (run, _) in self.runs.items():
                try:
                    self.drive(storage, run)
                    ended[name] = "published"
                except (ConflictError, OutputNotEmptyError):
                    ended[name] = "refused"
        finish_open_claim(TableLog(storage, OUTPUT))
        assert repair(TableLog(storage, OUTPUT))[-1].problems == ()
        check_settled(self.backend)
        self.check_ends(ended)

    def check_ends(self, ended: dict[str, str]) -> None:
        table_log = TableLog(self.backend.storage(), OUTPUT)
        last = table_log.head()[0].current
        manifests = [table_log.manifest(number) for number in range(last + 1)]
        for name, (run, mode) in self.runs.items():
            entries = {e.name: e for m in manifests for e in m.commits if e.run == name}
            frames = [table_log.load(entry).files for entry in entries.values()]
            files = pl.concat(frames) if frames else None
            windows = self.windows(run)
            if ended[name] == "refused":
                assert files is None or windows
                others = [e for m in manifests for e in m.commits if e.adds_files and e.run != name]
                assert others, "by another's commit"
                by_window = windows or any(entry.window is not None for entry in others)
                assert mode != "append" or by_window, "but no window's rows are appended twice"
            if files is None:
                assert ended[name] == "refused"
                continue
            assert files["chunk"].is_unique().all()
            published = [entry.window for entry in entries.values()]
            assert len(set(published)) == len(published)
            of_whole = [c for w in published if w is not None for c in windows[w]]
            if ended[name] == "published":
                assert sorted(files["index"]) == list(range(len(run.plan)))
            assert sorted(files["chunk"]) == sorted(of_whole if windows else run.plan.chunk_ids)
            known = run.again(self.backend.storage()).ledger.read()
            attempts = {*known.completions["attempt"], *known.duplicates["attempt"]}
            assert set(files["attempt"]) <= attempts


SETTINGS = settings(
    deadline=None,
    stateful_step_count=8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Appends(Output):
    """Only appends, and one run in mode `error`: nothing ever leaves the output."""

    modes = ("error", "append", "append")  # type: ignore[assignment]

    def nothing_is_lost(self) -> None:
        """Nor does anything leave the output."""
        super().nothing_is_lost()
        if not self.rolled_back and not self.released:
            assert set().union(*self.keys) <= set(visible(self.backend))


class Repairs(Output):
    """It begins with an output that has a past, and a publish that died."""

    modes = ("append", "overwrite", "overwrite-partitions")  # type: ignore[assignment]

    @initialize(data=st.data(), at=st.integers(3, 14), rolled=st.booleans(), lost=st.booleans())
    def a_driver_has_died(self, data: Any, at: int, rolled: bool, lost: bool) -> None:
        for number, code in enumerate(("a", "b")):
            mode = data.draw(st.sampled_from(self.modes))
            self.submit(self.backend.storage(), mode, number, code)
            run = list(self.runs.values())[-1][0]
            self.drive(self.backend.storage(), run)
            self.note_pointer()
            self.nothing_of_others_is_touched()
        if rolled:
            rollback(TableLog(self.backend.storage(), OUTPUT))
        mode = data.draw(st.sampled_from(self.modes))
        self.submit(self.backend.storage(), mode, data.draw(st.integers(0, 2)), "c")
        dead = list(self.runs.values())[-1][0]
        fault = data.draw(st.sampled_from(["before", "after", "late"]))
        self.troubled(Trouble(at, fault, True), lambda storage: self.drive(storage, dead))
        if lost and self.backend.uploads:
            del self.backend.uploads[data.draw(st.sampled_from(sorted(self.backend.uploads)))]


def _tested(machine: type[Output], examples: int) -> Any:
    longer: Any = type(machine.__name__, (machine,), {})
    case = longer.TestCase
    case.settings = settings(SETTINGS, max_examples=examples)
    return case


TestOutput = _tested(Output, fewer(40))
TestRepairs = _tested(Repairs, fewer(15))
TestAppends = _tested(Appends, fewer(30))
# Many more, in `make test-long`.
TestOutputLonger = pytest.mark.long(_tested(Output, 1_000))
TestRepairsLonger = pytest.mark.long(_tested(Repairs, 500))
TestAppendsLonger = pytest.mark.long(_tested(Appends, 500))
