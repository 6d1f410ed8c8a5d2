"""Random histories of an output: runs, workers and drivers that die, sleep and lose replies.

Some runs are published whole, some by windows: any of them at a time, in any order. After every
step the invariants hold; at the end, giving each command once more brings every run to its end, or
tells a conflict that is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import polars as pl
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from partitioning import Windowing, windows_of_plan
from pipeline.catalog import Catalog
from pipeline.driver import publish_run
from pipeline.errors import ConflictError, OutputNotEmptyError, UsageError
from pipeline.ledger import Ledger, run_id
from pipeline.publish import UploadsVanishedError, foreign_claim, prepare_output, rollback, settle
from pipeline.storage import Storage
from pipeline.windowed import publish_windows
from tests.pipeline.outputs import check_manifests, check_settled, rows, visible
from tests.pipeline.runs import OUTPUT, Run, job_of, plan_of
from tests.pipeline.storage.faulty import Fault, Faulty, KilledError, Script, lost
from tests.pipeline.storage.memory import AT_ONCE, MemoryBackend

PLANS = [plan_of(2, folders=(0, 1)), plan_of(2, folders=(1, 2)), plan_of(1, folders=(5,))]
MODES = ["error", "append", "overwrite", "overwrite-partitions"]
WINDOWS = {"column": "k", "grain": "value"}
LABELS = [windows_of_plan(plan, Windowing("k", "value")) for plan in PLANS]


@dataclass(frozen=True)
class Trouble:
    """What goes wrong at one request of a command, if anything does."""

    at: int = -1
    fault: Fault = None
    deadly: bool = False


TROUBLE = st.one_of(
    st.just(Trouble()),
    st.builds(Trouble, st.integers(0, 40), st.sampled_from(["before", "after"]), st.booleans()),
)


CODES = st.sampled_from(["a", "b", "by windows", "by windows"])


class Output(RuleBasedStateMachine):
    """One output, and whoever works on it."""

    modes = MODES

    @initialize()
    def nothing(self) -> None:
        self.backend = MemoryBackend()
        self.runs: dict[str, tuple[Run, str]] = {}
        self.by_windows: set[str] = set()
        self.checked: Mapping[str, object] = {}
        self.frozen: dict[str, object] = {}
        self.keys: list[set[str]] = []
        """Keys that each manifest names, by its number."""
        self.rolled_back = False

    # -- commands -----------------------------------------------------------------------------

    def storage(self, script: Script, error: Callable[[], BaseException] = lost) -> Storage:
        return Storage({"s3": Faulty(self.backend, script, error)}, AT_ONCE)

    def troubled(self, trouble: Trouble, command: Callable[[Storage], object]) -> None:
        """Give a command; it may die, and may be refused for a good reason."""

        def script(number: int, name: str) -> Fault:
            if number == trouble.at or (trouble.deadly and -1 < trouble.at < number):
                return trouble.fault if number == trouble.at else "before"
            return None

        storage = self.storage(script, KilledError if trouble.deadly else lost)
        with suppress(KilledError, ConflictError, OutputNotEmptyError):
            command(storage)

    def seen_by(self, storage: Storage, run: Run) -> Run:
        return run.again(storage)

    def submit(self, storage: Storage, mode: str, plan: int, code: str) -> None:
        """What `chunkmap run` does before it maps anything."""
        if code == "by windows":  # In mode overwrite each would replace the others.
            mode = mode.replace("overwrite-partitions", "overwrite")
            mode = mode.replace("overwrite", "overwrite-partitions")
        job = job_of(mode, **({"window": WINDOWS} if code == "by windows" else {}))  # type: ignore[arg-type]
        run = run_id(PLANS[plan], job, code)
        manifest = prepare_output(Catalog(storage, OUTPUT), mode, run)
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
        prepare_output(Catalog(storage, OUTPUT), own.record.mode, own.ledger.run)
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
                    publish_windows(storage, own.ledger, windows, None, vanished)
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
        slept: list[int] = []

        def script(number: int, name: str) -> Fault:
            if number == at and not slept:
                slept.append(number)
                self.troubled(trouble, lambda storage: self.drive(storage, other, some[1]))
            return None

        with suppress(ConflictError, OutputNotEmptyError):
            self.drive(self.storage(script), run, some[0])

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), trouble=TROUBLE)
    def a_worker_maps_a_chunk(self, data: Any, trouble: Trouble) -> None:
        """It may be a zombie: nobody may have asked for it any more."""
        run = self.some_run(data)
        index = data.draw(st.integers(0, len(run.plan) - 1))
        self.troubled(trouble, lambda storage: run.again(storage).complete(index))

    @precondition(lambda self: self.backend.uploads)
    @rule(data=st.data())
    def an_upload_vanishes(self, data: Any) -> None:
        del self.backend.uploads[data.draw(st.sampled_from(sorted(self.backend.uploads)))]

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), trouble=TROUBLE)
    def a_ledger_is_folded(self, data: Any, trouble: Trouble) -> None:
        run = self.some_run(data)
        self.troubled(trouble, lambda storage: run.again(storage).ledger.fold())

    @rule(trouble=TROUBLE)
    def somebody_rolls_back(self, trouble: Trouble) -> None:
        def back(storage: Storage) -> None:
            with suppress(UsageError, UploadsVanishedError):
                rollback(Catalog(storage, OUTPUT))

        self.troubled(trouble, back)

    # -- what is always true ------------------------------------------------------------------

    @invariant()
    def it_holds(self) -> None:
        now = dict(self.backend.stored)
        if now != self.checked:
            self.checked = now
            self.what_is_frozen_stays()
            self.nothing_is_lost()
            self.a_glob_sees_whole_chunks_of_commits()

    def nothing_is_lost(self) -> None:
        """What the current manifest and the kept version name is there, whole."""
        check_manifests(self.backend)

    def what_is_frozen_stays(self) -> None:
        """Manifests and commit records are written once; a commit has a chunk once at most."""
        for uri, content in self.backend.stored.items():
            if "/manifests/" in uri or "/commits/" in uri:
                assert self.frozen.setdefault(uri, content) == content
        assert self.frozen.keys() <= self.backend.stored.keys()
        catalog = Catalog(self.backend.storage(), OUTPUT)
        for number in range(len(self.keys), catalog.head()[0].current + 1):
            manifest = catalog.manifest(number)
            for entry in manifest.commits:
                files = catalog.known(entry).files
                assert files["chunk"].is_unique().all()
                assert (files.height, files["rows"].sum()) == (entry.files, entry.rows)
            self.keys.append(set(catalog.snapshot(manifest)["key"]))
            self.rolled_back |= manifest.rollback_of is not None

    def a_glob_sees_whole_chunks_of_commits(self) -> None:
        catalog = Catalog(self.backend.storage(), OUTPUT)
        head, _ = catalog.head()
        named = set().union(*self.keys)
        for commit_name in head.publishing.commits if head.publishing is not None else ():
            commit = catalog.commit(commit_name)
            assert commit is not None
            named |= set(commit.files["key"])
        there = visible(self.backend)
        assert set(there) <= named
        for name, (run, _) in self.runs.items():
            own = rows({key: data for key, data in there.items() if name in key})
            assert max(Counter(own).values(), default=1) == 1
            assert set(own) <= set(range(2 * len(run.plan)))

    # -- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everybody gives the same command again, and nothing goes wrong any more."""
        storage = self.backend.storage()
        ended: dict[str, str] = {}
        for _ in range(3):  # A claim whose uploads vanished must be ended by its own run first.
            for name, (run, _) in self.runs.items():
                try:
                    self.drive(storage, run)
                    ended[name] = "published"
                except (ConflictError, OutputNotEmptyError):
                    ended[name] = "refused"
        settle(Catalog(storage, OUTPUT))
        check_settled(self.backend)
        self.check_ends(ended)

    def check_ends(self, ended: dict[str, str]) -> None:
        catalog = Catalog(self.backend.storage(), OUTPUT)
        last = catalog.head()[0].current
        manifests = [catalog.manifest(number) for number in range(last + 1)]
        for name, (run, mode) in self.runs.items():
            entries = {e.name: e for m in manifests for e in m.commits if e.run == name}
            frames = [catalog.known(entry).files for entry in entries.values()]
            files = pl.concat(frames) if frames else None
            windows = self.windows(run)
            if ended[name] == "refused":
                assert files is None or windows
                assert mode != "append" or windows, "but no window's rows are appended twice"
                assert {e.run for m in manifests for e in m.commits} - {name}, "by another's commit"
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
            attempts = {*known.completions["attempt"], *known.spares["attempt"]}
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
        if not self.rolled_back:
            assert set().union(*self.keys) <= set(visible(self.backend))


TestOutput = Output.TestCase
TestOutput.settings = settings(SETTINGS, max_examples=550)
TestAppends = Appends.TestCase
TestAppends.settings = settings(SETTINGS, max_examples=450)
