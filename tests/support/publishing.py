"""Runs that are ready to be published, and publishing them."""

from __future__ import annotations

from partitioning import Plan
from pipeline.runs.driver.publish import publish_run
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from tests.support.faulty_storage import Faulty
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import copied
from tests.support.runs_by_hand import OUTPUT, Run, job_of_run, plan_of, run_of, run_of_job

PLAN = plan_of(3, folders=(0, 1))
OTHER = plan_of(4, folders=(1, 2))
APART = plan_of(2, folders=(7,))
MODES = ["error", "append", "overwrite", "overwrite-partitions"]


def publish(run: Run) -> int:
    return publish_run(run.storage, run.ledger)


def published(backend: MemoryBackend, plan: Plan, mode: str, code: str = "code") -> Run:
    """A run of a job of its own, mapped and published."""
    run = run_of_job(backend.storage(), job_of_run(mode, plan, code), plan, code)
    run.complete()
    publish(run)
    return run


def ready(mode: str, plan: Plan = PLAN) -> tuple[MemoryBackend, Run]:
    """An output (published before, where the mode allows it), and a run that is mapped."""
    backend = MemoryBackend()
    if mode != "error":
        published(backend, OTHER, "append", "earlier")
    run = run_of(backend.storage(), plan, mode)
    run.complete()
    return backend, run


def head(backend: MemoryBackend) -> int:
    return TableLog(backend.storage(), OUTPUT).head()[0].current


def requests(backend: MemoryBackend, run: Run) -> int:
    counted = Faulty(copied(backend), lambda n, name: None)
    publish(run.again(Storage({"s3": counted}, AT_ONCE)))
    return len(counted.calls)
