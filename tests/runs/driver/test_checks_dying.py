"""Checks are interrupted: any request of a worker or a driver may be its last, or lose its reply.

Whatever happens, no row is lost, none is there twice, and no reader sees what a check refuses.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.errors import ChecksFailedError, ChunkmapError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.plan import WindowSelection, create, draft
from pipeline.runs.backfill.records import BackfillResumeOptions, Options
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.backfill.summary import BackfillIncompleteError
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.worker import chunk
from pipeline.storage import Backend, Storage
from pipeline.table.evidence import find_rejected
from pipeline.table.log import TableLog
from tests.support.faulty_storage import (
    CHANGES,
    Fault,
    Faulty,
    KilledError,
    Script,
    dies_at,
    each,
    lost,
)
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import copied
from tests.support.small import Small

pytest.importorskip("dataframely", reason="the extra `checks` is not installed")

CODE = """
import dataframely as dy
import polars as pl

def same(lf: pl.LazyFrame) -> pl.LazyFrame:
    return lf.with_columns(part=pl.col("id") % 2)

def add(frames: list[pl.LazyFrame]) -> pl.LazyFrame:
    return pl.concat(frames)

class Sales(dy.Schema):
    id = dy.Int64()

    @dy.rule()
    def not_seven(cls) -> pl.Expr:
        return pl.col("id") % 7 != 0
"""
INPUT, OUTPUT, STATE = "s3://in/t/", "s3://out/t/", "s3://out/t.chunkmap/"
DAYS, ROWS = 3, 8
FAILING = [number for number in range(DAYS * ROWS) if number % 7 == 0]
PASSING = [number for number in range(DAYS * ROWS) if number % 7]
UNIQUE = {"check": "unique", "columns": ["id"]}
KINDS: dict[str, dict[str, Any]] = {
    "files of chunks": {},
    "merged files": {"output": {"partition_by": ["part"], "file_bytes": 400}},
    "a reduce": {"reduce": {"combine": "add"}},
}
WINDOWS: dict[str, Any] = {
    "output": {"mode": "overwrite-partitions"},
    "window": {"column": "ds", "grain": "day"},
    "retries": 0,
}
WINDOWED: dict[str, dict[str, Any]] = {
    "windows": WINDOWS,
    "windows of merged files": {
        **WINDOWS,
        "output": {**WINDOWS["output"], "partition_by": ["ds", "part"], "file_bytes": 400},
    },
}
ALL = KINDS | WINDOWED
NOTHING: Script = lambda number, name: None  # noqa: E731


@dataclass
class Seen:
    """What readers see."""

    rows: list[int]
    """Ids of the rows of every object under the output."""
    quarantine: list[int]
    """Ids of the rows of every object in the quarantine of a published commit."""
    elsewhere: list[str]
    """Objects in the quarantine of other commits."""
    manifest: int
    is_claimed: bool


@dataclass
class Case:
    """A job over objects in memory, and processes that run it."""

    small: Small
    patch: pytest.MonkeyPatch
    job: Job
    backend: MemoryBackend = field(default_factory=MemoryBackend)

    def write(self, day: int, ids: Sequence[int]) -> None:
        buffer = io.BytesIO()
        pl.DataFrame({"id": ids}, schema={"id": pl.Int64}).write_parquet(buffer)
        self.backend.put(f"{INPUT}ds=2024-01-0{day + 1}/0.parquet", buffer.getvalue())

    def write_all(self) -> Case:
        for day in range(DAYS):
            self.write(day, range(day * ROWS, (day + 1) * ROWS))
        return self

    def again(self) -> Case:
        """The same before anything has run."""
        return Case(self.small, self.patch, self.job, copied(self.backend))

    def run(
        self,
        driver: Script = NOTHING,
        worker: Script | None = None,
        error: Callable[[], BaseException] = KilledError,
    ) -> tuple[Faulty, Faulty]:
        """Run the job as a process does, or as two, if a worker has a script of its own."""
        own = Faulty(self.backend, driver, error)
        theirs = own if worker is None else Faulty(self.backend, worker, error)
        chunk.open_run.cache_clear()
        storage = self._storage(theirs)
        self.patch.setattr(chunk, "own_storage", lambda: storage)
        try:
            self._drive(self._storage(own))
        finally:
            self.calls = (own, theirs)
        return self.calls

    def dies(self, driver: Script = NOTHING, worker: Script | None = None) -> None:
        """Run the job to somebody's death; without its worker, a driver fails."""
        with suppress(KilledError, ChunkmapError):
            self.run(driver, worker)

    @staticmethod
    def _storage(backend: Backend) -> Storage:
        return Storage({"s3": backend}, AT_ONCE)

    def _drive(self, storage: Storage) -> None:
        settings = self.small.settings
        if self.job.window is None:
            run_serially(self.job, settings, storage, ResumeOptions(take_over=True))
            return
        records = backfills_of(storage, OUTPUT)
        if records:
            store = BackfillStore(storage, OUTPUT, records[-1].backfill)
        else:
            drafted = draft(self.job, settings, storage, WindowSelection(), Options())
            created = create(storage, drafted)
            assert created is not None
            store = created[0]
        resume = BackfillResumeOptions(take_over=True)
        BackfillDriver(store, settings, NoBackfillOrchestrator(), resume).run()

    def seen(self) -> Seen:
        log = TableLog(self.backend.storage(), OUTPUT)
        head, _ = log.head()
        manifest = log.manifest(head.current)
        folders = tuple(find_rejected(log, manifest).values())
        objects = [uri for uri in self.backend.stored if uri.startswith(f"{STATE}quarantine/")]
        return Seen(
            self._ids(uri for uri in self.backend.stored if uri.startswith(OUTPUT)),
            self._ids(uri for uri in objects if uri.startswith(folders)) if folders else [],
            [uri for uri in objects if not folders or not uri.startswith(folders)],
            head.current,
            head.publishing is not None,
        )

    def _ids(self, uris: Any) -> list[int]:
        frames = [pl.read_parquet(io.BytesIO(self.backend.get(uri).data)) for uri in uris]
        return sorted(number for frame in frames for number in frame["id"])

    def check_meanwhile(self, allowed: Sequence[int]) -> None:
        """What is visible is allowed to be, and is there once; the quarantine comes with it."""
        seen = self.seen()
        assert len(set(seen.rows)) == len(seen.rows) and set(seen.rows) <= set(allowed)
        if self.job.window is None and seen.manifest:
            assert (seen.rows, seen.quarantine) == (PASSING, FAILING)
        if not seen.manifest and not seen.is_claimed:
            assert not seen.rows and not seen.elsewhere

    def check(self, rows: Sequence[int], quarantine: Sequence[int]) -> None:
        """At the end: each row once, here or there, and nothing else."""
        seen = self.seen()
        assert seen == Seen(list(rows), list(quarantine), [], seen.manifest, False)
        left = [uri for uri in self.backend.stored if "/checks/" in uri or "/partials/" in uri]
        assert not left or seen.manifest == 0 or self.job.window is not None, left


NewCase = Callable[..., Case]


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewCase:
    monkeypatch.chdir(tmp_path)
    # Most of what a run of a few rows takes.
    monkeypatch.setattr("pipeline.runs.driver.report.render_html", lambda report: "")
    small = Small(tmp_path, CODE)
    with (tmp_path / "conf" / "base.yaml").open("a") as file:
        file.write("batches: {max_chunks: 1}\n")  # Each chunk's completion is stored at once.

    def make(*run: dict[str, Any], **more: Any) -> Case:
        rows = {"schema": f"{small.module}:Sales", "severity": "quarantine"}
        if "reduce" in more:
            more["reduce"] = {"combine": f"{small.module}:{more['reduce']['combine']}"}
        output = {"uri": OUTPUT, "mode": "error", **more.pop("output", {})}
        checks = {"rows": rows, "run": [UNIQUE, *run]}
        job = small.job(input={"uri": INPUT}, output=output, checks=checks, **more)
        return Case(small, monkeypatch, job).write_all()

    return make


def some(count: int, *case: object) -> Sequence[int]:
    """One of a process's requests, another for each case; all with CHAOS set.

    Planning, which comes first, is not changed by checks.
    """
    chosen = [number for number in instants(count, *case) if number >= count // 5]
    at = crc32(repr(case).encode()) % len(chosen)
    return chosen if "CHAOS" in os.environ else chosen[at : at + 1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("kind", ALL)
def test_any_request_may_be_the_last(new: NewCase, kind: str, fault: Fault) -> None:
    """Of a process that plans, maps, puts rows in quarantine, checks and publishes."""
    case = new(**ALL[kind])
    whole = case.again()
    requests = len(whole.run()[0].calls)
    whole.check(PASSING, FAILING)
    for number in some(requests, kind, fault):
        again = case.again()
        again.dies(dies_at(number, fault))
        again.check_meanwhile(PASSING)
        again.run()
        vacuum(again.backend.storage(), OUTPUT)  # It may have died before it cleaned up.
        again.check(PASSING, FAILING)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("kind", ALL)
def test_any_request_may_be_the_last_of_a_worker(new: NewCase, kind: str, fault: Fault) -> None:
    """While it checks rows, stores those in quarantine, and what the checks of the whole need."""
    case = new(**ALL[kind])
    whole = case.again()
    requests = len(whole.run(worker=NOTHING)[1].calls)
    for number in some(requests, kind, fault):
        again = case.again()
        again.dies(worker=dies_at(number, fault))
        again.check_meanwhile(PASSING)
        again.run()
        vacuum(again.backend.storage(), OUTPUT)
        again.check(PASSING, FAILING)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_check_refuses_is_never_visible(new: NewCase, kind: str, fault: Fault) -> None:
    case = new({"check": "row_count", "max": 3}, **KINDS[kind])
    whole = case.again()
    with pytest.raises(ChecksFailedError):
        whole.run()
    requests = len(whole.calls[0].calls)
    for number in some(requests, "refused", kind, fault):
        again = case.again()
        again.dies(dies_at(number, fault))
        assert again.seen() == Seen([], [], [], 0, False)
        with pytest.raises(ChecksFailedError):
            again.run()
        assert again.seen() == Seen([], [], [], 0, False)
        assert not [uri for uri in again.backend.stored if uri.startswith(f"{STATE}commits/")]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_that_a_check_refuses_is_never_visible(
    new: NewCase, kind: str, fault: Fault
) -> None:
    """The others are published, each with its rows in quarantine."""
    case = new(**WINDOWED[kind])
    case.write(1, [8, 9, 9])
    good = [*range(ROWS), *range(2 * ROWS, 3 * ROWS)]
    rows = [number for number in good if number % 7]
    quarantine = [number for number in good if number % 7 == 0]
    whole = case.again()
    with pytest.raises(BackfillIncompleteError):
        whole.run()
    whole.check(rows, quarantine)
    requests = len(whole.calls[0].calls)
    for number in some(requests, "refused", kind, fault):
        again = case.again()
        again.dies(dies_at(number, fault))
        again.check_meanwhile(rows)
        with pytest.raises(BackfillIncompleteError):
            again.run()
        again.check(rows, quarantine)


NAMES = sorted({*CHANGES - {"abort"}, "stage", "get", "get_ranges", "objects"})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_the_reply_to_a_request_is_lost(new: NewCase, name: str) -> None:
    kinds = list(ALL) if "CHAOS" in os.environ else [list(ALL)[NAMES.index(name) % len(ALL)]]
    for kind in kinds:
        case = new(**ALL[kind])
        own, _ = case.run(each(name, 3, "after"), error=lost)
        case.check(PASSING, FAILING)
        assert name in own.calls


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["put", "put_new", "copy", "put_if"])
def test_a_request_arrives_late(new: NewCase, name: str) -> None:
    """It was made again meanwhile; then it changes nothing any more."""
    for layout in (KINDS if name == "put" else WINDOWED).values():
        case = new(**layout)
        own, _ = case.run(each(name, 3, "late"), error=lost)
        for request in own.late:
            with suppress(ChunkmapError):
                request()
        vacuum(case.backend.storage(), OUTPUT)
        case.check(PASSING, FAILING)


def test_a_check_that_is_stricter_than_that_of_a_dead_driver(new: NewCase) -> None:
    """What it had checked is checked again; but what it had claimed is decided."""
    case = new({"check": "row_count", "max": 3, "severity": "warn"})
    strict = new({"check": "row_count", "max": 3}).job
    calls = case.again().run()[0].calls
    # The claim is the last object that is new before the rows are copied.
    claim = calls[: calls.index("copy")].count("put_new")
    claim = [number for number, name in enumerate(calls) if name == "put_new"][claim - 1]
    for number, is_decided in ((claim - 1, False), (claim, True)):
        again = case.again()
        again.dies(dies_at(number, "after"))
        assert again.seen().is_claimed == is_decided and not again.seen().rows
        again.job = strict
        if is_decided:
            again.run()
            again.check(PASSING, FAILING)
            continue
        with pytest.raises(ChecksFailedError):
            again.run()
        assert again.seen() == Seen([], [], [], 0, False)
