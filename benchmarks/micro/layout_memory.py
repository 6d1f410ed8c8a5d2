"""Memory of a worker that lays out more and more line items into the 84 partitions of their month.

    python -m benchmarks.micro.layout_memory --docs docs/guides/layouts.md

Each run has one worker, a process with the variables of a cluster's worker, which maps and merges.
Its peak in each stage is taken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from typing_extensions import override

from benchmarks.report.write import print_table
from benchmarks.suite.settings import TRANSFORMS
from pipeline.cluster.resources import for_machine
from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.report.humanize import byte_size, count
from pipeline.runs.driver.executor import Executor, Outcome, SerialExecutor
from pipeline.runs.driver.orchestrator import NoOrchestrator
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import RunDriver
from pipeline.runs.ledger.merge_plan import number_of
from pipeline.runs.worker.batch import Batch, BatchResult
from pipeline.runs.worker.memory import take_peak
from pipeline.runs.worker.run_batch import run_batch
from pipeline.storage import own_storage

PLACE = "memory of layouts"
FILES, ROWS = 8, 200_000
"""Objects of the smallest input, and rows of each: a chunk."""
FACTORS = (1, 4, 16)
LAYOUTS: dict[str, dict[str, object]] = {
    "unsorted": {"file_bytes": "1MiB"},
    "sorted": {"file_bytes": "1MiB", "sort_by": ["l_shipdate", "l_orderkey"]},
}
STAGES = ("mapping", "merging")
_FIRST, _DAYS = 8035, 2557
"""The first day of 1992 since 1970, and the days of seven years."""


def lines(number: int) -> pl.DataFrame:
    """The columns of line items that `by_month` reads."""
    rng, ids = np.random.default_rng(number), np.arange(number * ROWS, (number + 1) * ROWS)
    return pl.DataFrame(
        {
            "l_orderkey": ids // 4,
            "l_linenumber": ids % 4,
            "l_suppkey": rng.integers(0, 100_000, ROWS),
            "l_shipdate": pl.Series(_FIRST + rng.integers(0, _DAYS, ROWS))
            .cast(pl.Int32)
            .cast(pl.Date),
            "l_extendedprice": rng.random(ROWS) * 1e5,
            "l_discount": rng.integers(0, 10, ROWS) / 100,
            "l_tax": rng.integers(0, 8, ROWS) / 100,
        }
    )


def work(run_uri: str, fingerprint: str, batch: Batch) -> tuple[BatchResult, int]:
    """Run a batch in this process; return also the most memory that it has held meanwhile."""
    result = run_batch(run_uri, fingerprint, batch)
    return result, take_peak()


@dataclass
class OneWorker(NoOrchestrator):
    """Runs batches in one process, one after the other."""

    pool: ProcessPoolExecutor = field(kw_only=True)
    peaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    """The most bytes in each stage."""

    @override
    def executor(self, run_uri: str, fingerprint: str) -> Executor:
        return _WorkerExecutor(run_uri, fingerprint, self)


class _WorkerExecutor(SerialExecutor):
    def __init__(self, run_uri: str, fingerprint: str, worker: OneWorker) -> None:
        super().__init__(run_uri, fingerprint)
        self._worker = worker

    @override
    def submit(self, batch: Batch) -> None:
        result, peak = self._worker.pool.submit(work, *self._run, batch).result()
        stage = "mapping" if number_of(batch.name) is None else "merging"
        self._worker.peaks[stage] = max(self._worker.peaks[stage], peak)
        self._outcomes.append(Outcome.of_result(batch, result))


def lay_out(folder: Path, layout: str) -> dict[str, int]:
    """Run the job; return its rows and files, and the peaks of its worker."""
    out = folder / layout
    job = Job.model_validate(
        {
            "name": "layout-memory",
            "input": {"uri": f"file://{folder}/in/"},
            "chunks": {"per_file": True},
            "transform": f"{TRANSFORMS}:by_month",
            "output": {"uri": f"file://{out}/", "partition_by": ["month"], **LAYOUTS[layout]},
        }
    )
    settings, storage = load_settings(overrides={"state_dir": str(folder / "state")}), own_storage()
    planned = plan_run(job, settings, storage, ResumeOptions())
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        worker = OneWorker(pool=pool)
        driver = RunDriver(job, settings, storage, planned, worker, ResumeOptions())
        driver.heartbeat.begin(None, time.time())
        rows = driver.run().rows_out
    files = len(list(out.rglob("*.parquet")))
    for used in (out, folder / f"{layout}.chunkmap"):
        shutil.rmtree(used)
    return {"rows": rows, "files": files, **worker.peaks}


def measure() -> Iterator[dict[str, dict[str, int]]]:
    """Yield what each size came to, by layout."""
    os.environ["CHUNKMAP_TRANSFORMS__ALLOW"] = TRANSFORMS
    # The variables of a worker, which its process finds when it starts.
    _, profile = for_machine(os.cpu_count() or 1, None, None, None, 0)
    os.environ.update(profile.environment())
    with TemporaryDirectory(prefix="chunkmap-bench-") as scratch:
        folder, made = Path(scratch), 0
        (folder / "in").mkdir()
        for factor in FACTORS:
            for number in range(made, factor * FILES):
                lines(number).write_parquet(folder / "in" / f"{number:04d}.parquet")
            made = factor * FILES
            yield {layout: lay_out(folder, layout) for layout in LAYOUTS}


def table(sizes: Sequence[dict[str, dict[str, int]]]) -> str:
    """What was measured, in Markdown."""
    names = [f"{stage}, {layout}" for stage in STAGES for layout in LAYOUTS]
    text = [f"| rows | files | {' | '.join(names)} |", f"|{'---:|' * (2 + len(names))}"]
    for by_layout in sizes:
        one = by_layout["unsorted"]
        peaks = (byte_size(found[stage]) for stage in STAGES for found in by_layout.values())
        text.append(f"| {count(one['rows'])} | {count(one['files'])} | {' | '.join(peaks)} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="put the table into this page")
    given = parser.parse_args()
    text = table(list(measure()))
    print_table(text, PLACE, given.docs)


if __name__ == "__main__":
    main()
