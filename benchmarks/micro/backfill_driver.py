"""A backfill of synthetic chunks, driven in a process of its own: for test_backfill.py.

    python -m benchmarks.micro.backfill_driver create OUTPUT WINDOWS CHUNKS_EACH    prints its id
    python -m benchmarks.micro.backfill_driver ledger-only OUTPUT ID
    python -m benchmarks.micro.backfill_driver drive OUTPUT ID

Ledger only, chunks are neither read nor staged, and windows are not published: what is left is what
Prefect, Dask, the ledger and the driver cost.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

from typing_extensions import override

from benchmarks.micro.ledger_only import NO_INPUT, ManyObjects, ledger_only_task
from benchmarks.suite.settings import load_suite_settings
from partitioning import PlanRequest, plan_dataset
from partitioning.windows import Window
from pipeline.config.job import Job, parse_job
from pipeline.flows.executor import map_batch_task
from pipeline.flows.launch import launch_backfill
from pipeline.runs.backfill.plan import Drafting, WindowSelection, create
from pipeline.runs.backfill.records import BackfillResumeOptions, Options, digest
from pipeline.runs.backfill.selection import InputWindow, WindowDecision
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.driver.plan import UNKNOWN_PROBE, PlannedInput
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.transforms.loading import job_fingerprint, load_transform
from pipeline.storage import StorageReader, Tables, open_storage

FIRST = date(2022, 1, 1)


class ManyDays(ManyObjects):
    """Objects that exist only as a listing, in daily partitions."""

    def __init__(self, uri: str, windows: int, each: int) -> None:
        super().__init__(uri, windows * each)
        self._each = each

    @override
    def _name(self, number: int) -> str:
        return f"ds={FIRST + timedelta(days=number // self._each)}/{super()._name(number)}"


def job_of(output: str, source: str = NO_INPUT) -> Job:
    """A job over days whose transform does nothing."""
    return parse_job(
        f"""
name: backfill
input: {{uri: "{source}"}}
chunks: {{per_file: true}}
transform: benchmarks.transforms:identity
window: {{column: ds, grain: day}}
output: {{uri: "{output}", mode: overwrite-partitions}}
"""
    )


@dataclass(frozen=True, slots=True)
class SyntheticDrafting(Drafting):
    """Drafts backfills of input that exists only as a listing."""

    each: int = 100
    """Chunks in a window."""

    def _plan(self, todo: tuple[Window, ...], mapper: Any) -> PlannedInput:
        request = PlanRequest(NO_INPUT, per_file=True)
        result = plan_dataset(request, ManyDays(NO_INPUT, len(todo), self.each))
        transform = load_transform(self.job.transform, {}, self.settings.transforms)
        return PlannedInput(result, transform, UNKNOWN_PROBE, Tables())


def create_synthetic(output: str, windows: int, each: int) -> str:
    """Store a backfill with this many windows and chunks per window; return its id."""
    settings, job = load_suite_settings(), job_of(output)
    storage = open_storage(settings)
    code = job_fingerprint(job, settings.transforms)
    drafting = SyntheticDrafting(job, settings, storage, code, StorageReader(storage), each=each)
    end = FIRST + timedelta(days=windows)
    choices = [
        WindowDecision(window, InputWindow(each, 0, window.label), None)
        for window in drafting.rule.between(str(FIRST), str(end))
    ]
    drafted = drafting.draft(choices, WindowSelection(), Options(), partial(digest, output), base=0)
    created = create(storage, drafted)
    assert created is not None, "there is something to do"
    return created[0].backfill


def no_publish(*_: Any, **__: Any) -> int:
    """Nothing was staged, and nothing can be published."""
    return 0


def drive(output: str, backfill: str, *, ledger_only: bool) -> None:
    """Drive a backfill to its end; prints its figures and this process's peak memory as JSON."""
    settings = load_suite_settings()
    store = BackfillStore(open_storage(settings), output, backfill)
    started = time.perf_counter()
    task: Any = ledger_only_task if ledger_only else map_batch_task
    publish = no_publish if ledger_only else publish_run
    summary = launch_backfill(
        store,
        settings,
        lambda progress, phase: None,
        BackfillResumeOptions(),
        task_of_batch=task,
        publish=publish,
    )
    said = {
        "state": summary.state,
        "batches": summary.batches,
        "seconds": time.perf_counter() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        **summary.counts,
    }
    print(json.dumps(said))


def main(action: str, output: str, *given: str) -> None:
    """Do what the command line says."""
    if action == "create":
        print(create_synthetic(output, int(given[0]), int(given[1])))
    else:
        drive(output, given[0], ledger_only=action == "ledger-only")


if __name__ == "__main__":
    main(*sys.argv[1:])
