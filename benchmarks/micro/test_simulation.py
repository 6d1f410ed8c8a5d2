"""The simulation compared with real runs that wait, on 1 to 32 worker threads.

    chunkmap up && pytest benchmarks/micro/test_simulation.py --benchmark-enable -s

Every chunk waits half a second, 16 chunks for each thread, on a cluster of its own of Dask worker
processes with up to eight threads each: 32 processes would spend this machine's two cores and its
memory on imports alone, and threads that wait need neither. Parameters are those that were fitted
here (`--store here`); nothing of these runs goes into them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.simulation.answer import simulate
from benchmarks.simulation.case import Case
from benchmarks.simulation.fitting import HERE
from benchmarks.simulation.parameters import load_parameters
from benchmarks.suite.clusters import local_cluster
from benchmarks.suite.datasets import ensure
from benchmarks.suite.session import DEFAULT_ROOT
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.flows.launch import launch
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.storage import open_storage

WORKERS = (1, 2, 4, 8, 16, 32)
THREADS = 8
"""Most of one process."""
WAIT_SECONDS = 0.5
EACH = 16
"""Chunks for each thread."""
ROW_GROUP = 4
"""Rows of a chunk."""
NEAR = 0.20


@contextmanager
def cluster(settings: Settings, workers: int) -> Iterator[Settings]:
    """Start a cluster with this many threads; return the settings that name it."""
    threads = min(THREADS, workers)
    environment = {**settings.prefect.environment(), **settings.s3.environment()}
    with local_cluster(workers // threads, threads, environment) as (_, own):
        yield settings.model_copy(update={"dask": own})


def job(source: str, chunks: int) -> Job:
    return Job.model_validate(
        {
            "name": f"wait-{chunks}",
            "input": {"uri": source, "filter": [["id", "<", chunks * ROW_GROUP]]},
            "chunks": {"target": 1},
            "transform": "benchmarks.transforms:wait",
            "params": {"seconds": WAIT_SECONDS},
            "output": {"uri": f"s3://demo/simulation/{uuid.uuid4().hex[:12]}/"},
        }
    )


def actual(settings: Settings, source: str, workers: int) -> tuple[float, dict[str, float]]:
    """Seconds of a whole run, and when each phase began."""
    began: dict[str, float] = {}
    with cluster(settings, workers) as own:
        clock = time.perf_counter()

        def listen(phase: str, _: object) -> None:
            began.setdefault(phase, time.perf_counter() - clock)

        summary = launch(job(source, workers * EACH), own, listen, ResumeOptions())
        seconds = time.perf_counter() - clock
    assert summary.chunks == workers * EACH
    return seconds, began


@pytest.mark.timeout(1200)
def test_waiting_is_predicted(benchmark: Any, running: Settings) -> None:
    # Imports are no part of a run's time.

    settings = running
    card = ensure(open_storage(settings), DEFAULT_ROOT, "row-groups", "s")
    parameters = load_parameters(HERE)
    rows = []

    def run() -> None:
        for workers in WORKERS:
            chunks = workers * EACH
            predicted = simulate(
                Case(
                    workers=workers,
                    chunks=chunks,
                    stored_bytes=chunks * card.bytes / card.row_groups,
                    files=card.files,
                    wait_seconds=WAIT_SECONDS,
                    batches=settings.batches,
                ),
                parameters,
            )
            seconds, began = actual(settings, card.uri, workers)
            mapped = began["publish"] - began["map"]
            rows.append((workers, predicted.seconds, seconds, predicted.phases["mapping"], mapped))
            print(
                f"\n{workers:>3} threads: predicted {predicted.seconds:.1f} s, "
                f"actual {seconds:.1f} s ({predicted.seconds / seconds - 1:+.0%}); "
                f"of that mapping {predicted.phases['mapping']:.1f} s and {mapped:.1f} s",
                flush=True,
            )

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["threads, predicted, actual, mapping predicted, mapping actual"] = rows
    if benchmark.enabled:
        far = [row for row in rows if abs(row[1] / row[2] - 1) > NEAR]
        assert not far, f"more than {NEAR:.0%} off: {far}"
