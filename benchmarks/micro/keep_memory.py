"""Memory of a worker that adds columns beside kept ones, to larger and larger objects.

    python -m benchmarks.micro.keep_memory --docs docs/guides/columns.md

Each run has one object of line items and one worker, a process with the variables of a cluster's
worker. Its peak is taken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from benchmarks.micro.layout_memory import OneWorker, lines
from benchmarks.report.write import print_table
from benchmarks.suite.settings import TRANSFORMS
from pipeline.cluster.resources import for_machine
from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.report.humanize import byte_size, count
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import RunDriver
from pipeline.storage import own_storage

PLACE = "memory of kept columns"
GROUPS = (1, 10, 40)
"""Row groups of each object; each has ROWS rows."""


def write(path: Path, groups: int) -> None:
    """Write an object of line items."""
    first = lines(0).to_arrow()
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for number in range(groups):
            writer.write_table(lines(number).to_arrow().cast(first.schema))


def add_columns(folder: Path) -> dict[str, int]:
    """Run the job; return its rows and bytes, and the peak of its worker."""
    out = folder / "out"
    job = Job.model_validate(
        {
            "name": "keep-memory",
            "input": {"uri": f"file://{folder}/in/"},
            "transform": f"{TRANSFORMS}:measures",
            "output": {"uri": f"file://{out}/", "keep": "all"},
        }
    )
    settings, storage = load_settings(overrides={"state_dir": str(folder / "state")}), own_storage()
    planned = plan_run(job, settings, storage, ResumeOptions())
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        worker = OneWorker(pool=pool)
        driver = RunDriver(job, settings, storage, planned, worker, ResumeOptions())
        driver.heartbeat.begin(None, time.time())
        summary = driver.run()
    size = sum(path.stat().st_size for path in (folder / "in").iterdir())
    for used in (out, folder / "out.chunkmap"):
        shutil.rmtree(used)
    return {
        "rows": summary.rows_out,
        "object": size,
        "read": summary.bytes_in,
        "new": summary.bytes_out - size,
        "peak": worker.peaks["mapping"],
    }


def measure() -> Iterator[dict[str, int]]:
    """Yield what each size came to."""
    os.environ["CHUNKMAP_TRANSFORMS__ALLOW"] = TRANSFORMS
    # The variables of a worker, which its process finds when it starts.
    _, profile = for_machine(os.cpu_count() or 1, None, None, None, 0)
    os.environ.update(profile.environment())
    for groups in GROUPS:
        with TemporaryDirectory(prefix="chunkmap-bench-") as scratch:
            folder = Path(scratch)
            (folder / "in").mkdir()
            write(folder / "in" / "lines.parquet", groups)
            yield add_columns(folder)


def table(sizes: Sequence[dict[str, int]]) -> str:
    """What was measured, in Markdown."""
    text = ["| rows | object | read | new columns | peak memory |", f"|{'---:|' * 5}"]
    for found in sizes:
        parts = (byte_size(found[name]) for name in ("object", "read", "new", "peak"))
        text.append(f"| {count(found['rows'])} | {' | '.join(parts)} |")
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
