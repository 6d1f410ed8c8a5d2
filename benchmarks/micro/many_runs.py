"""Memory of the local stack's processes while one scheduler serves many runs of one driver.

    python -m benchmarks.micro.many_runs --docs docs/guides/cluster.md

Each run is a flow run of a tiny job, with an output of its own. After every ten, the resident
memory of the processes is taken: what grows with each of them would not last for months.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import psutil

from benchmarks.report.write import update_docs
from benchmarks.suite.settings import TRANSFORMS, load_suite_settings
from pipeline.cluster import local
from pipeline.cluster.local.state import StackState
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.flows.launch import launch
from pipeline.report.humanize import byte_size, count
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.storage import open_storage

PLACE = "memory of many runs"
RUNS, STEP = 50, 10
FILES, ROWS = 8, 1_000
"""Objects of the input, each a chunk, and rows of each."""
INPUT, OUTPUT = "s3://demo/many-runs/in/", "s3://demo/many-runs/out/"
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes after some runs."""

    runs: int
    scheduler: int
    workers: int
    prefect: int
    driver: int


@contextmanager
def stack() -> Iterator[tuple[Settings, StackState]]:
    """Run a stack in a temporary folder, in which its processes find the benchmarks' transforms."""
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    with TemporaryDirectory(prefix="chunkmap-bench-") as scratch:
        os.chdir(scratch)
        settings = load_suite_settings()
        state = local.up(settings, lambda line: None)
        try:
            yield load_suite_settings(), state
        finally:
            os.chdir(REPOSITORY)
            local.down(settings, lambda line: None)


def job_of(number: int) -> Job:
    """Return the job of a run."""
    return Job.model_validate(
        {
            "name": f"many-runs-{number}",
            "input": {"uri": INPUT},
            "chunks": {"per_file": True},
            "transform": f"{TRANSFORMS}:identity",
            "output": {"uri": f"{OUTPUT}{number}/"},
        }
    )


def memory_after(runs: int, state: StackState) -> Memory:
    """Take the memory of the stack's processes and of this one."""
    scheduler, workers = _resident(state.services["dask"].pid)
    server, others = _resident(state.services["prefect"].pid)
    return Memory(runs, scheduler, workers, server + others, _own())


def _resident(pid: int) -> tuple[int, int]:
    """Return the resident bytes of a process, and of all below it."""
    process = psutil.Process(pid)
    below = [child.memory_info().rss for child in process.children(recursive=True)]
    return process.memory_info().rss, sum(below)


def _own() -> int:
    return int(psutil.Process().memory_info().rss)


def measure(runs: int) -> Iterator[Memory]:
    """Yield the memory after the first run, and after every ten."""
    frame = pl.DataFrame({"id": pl.int_range(ROWS, eager=True)})
    with stack() as (settings, state):
        storage = open_storage(settings)
        for number in range(FILES):
            buffer = io.BytesIO()
            frame.write_parquet(buffer)
            storage.put(f"{INPUT}{number}.parquet", buffer.getvalue())
        for number in range(1, runs + 1):
            launch(job_of(number), settings, lambda phase, progress: None, ResumeOptions())
            if number == 1 or number % STEP == 0:
                yield memory_after(number, state)


def table(found: list[Memory]) -> str:
    """Return what was measured, in Markdown."""
    lines = ["| runs | scheduler | workers | Prefect server | driver |", f"|{'---:|' * 5}"]
    for each in found:
        sizes = (each.scheduler, each.workers, each.prefect, each.driver)
        lines.append(f"| {count(each.runs)} | {' | '.join(map(byte_size, sizes))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="put the table into this page")
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args()
    docs = given.docs.absolute() if given.docs is not None else None
    found = []
    for each in measure(given.runs):
        found.append(each)
        print(table([each]).splitlines()[-1], flush=True)
    if docs is not None:
        update_docs(docs, PLACE, table(found))


if __name__ == "__main__":
    main()
