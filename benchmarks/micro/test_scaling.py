"""How the work of a run grows with its workers, and how soon a new worker is of use.

    chunkmap up && pytest benchmarks/micro/test_scaling.py --benchmark-enable -s

CPU-bound: one worker and two, on chunks of plain Python. Latency-bound: 1 to 32 workers (or those
in SCALING_WORKERS) behind a proxy that holds each request for 30 ms; a worker sends one request at
a time, and a chunk takes some twenty of them, so that a few cores are enough for many workers. Each
worker has the same work to do; efficiency is a worker's speed among others by its speed alone.
"""

from __future__ import annotations

import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import polars as pl
import pytest
from distributed.diagnostics.plugin import SchedulerPlugin

from benchmarks.suite.clusters import local_cluster
from benchmarks.suite.proxy import CountingProxy
from benchmarks.suite.settings import load_suite_settings
from pipeline.cluster import local
from pipeline.config.job import Job, parse_job
from pipeline.config.sections import DaskSettings
from pipeline.config.settings import Settings
from pipeline.flows.launch import launch
from pipeline.flows.server import connect
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.storage import Storage, open_storage

DELAY = 0.030
"""Seconds that the proxy holds each request."""
OBJECTS = 16
"""Of a latency-bound chunk: as many reads, one after the other."""
ROWS = 10
LATENT_CHUNKS, BUSY_CHUNKS = 16, 24
"""For each worker."""
LATENT = [int(count) for count in os.environ.get("SCALING_WORKERS", "1,2,4,8,16,32").split(",")]
BUSY_ROWS = 100_000
"""Of a CPU-bound chunk: about half a second of plain Python."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    workers: int
    chunks: int
    seconds: float
    """From the first chunk's start to the last one's end: neither planning nor publishing."""
    first: float
    """Until the first chunk began, from the run's start."""

    @property
    def speed(self) -> float:
        """Chunks a second."""
        return self.chunks / self.seconds


@pytest.fixture(scope="module")
def settings() -> Settings:
    found = load_suite_settings()
    if not all(service.state == "running" for service in local.status(found)):
        pytest.skip("the local stack is down: chunkmap up")
    connect(found.prefect)
    return found


@contextmanager
def cluster_of(
    settings: Settings, workers: int, endpoint: str, **more: str
) -> Iterator[tuple[Any, DaskSettings]]:
    """A cluster of its own, whose workers reach S3 at an endpoint."""
    environment = {
        **settings.s3.environment(),
        "AWS_ENDPOINT_URL_S3": endpoint,
        **settings.prefect.environment(),
        "POLARS_MAX_THREADS": "1",
        "CHUNKMAP_BATCHES__FLUSH_SECONDS": "60",
        "CHUNKMAP_LOGS__LEVEL": "warning",
        **more,
    }
    with local_cluster(workers, 1, environment, 2 << 30) as started:
        yield started


def fill(storage: Storage, prefix: str, shares: int, objects: int, rows: int) -> None:
    """Create objects for this many workers, unless they exist."""
    data = io.BytesIO()
    users = pl.int_range(rows, eager=True)
    pl.DataFrame({"user": users, "day": "2026-01-01"}).write_parquet(data)
    for share in range(shares):
        folder = f"{prefix}share-{share:02d}/"
        for number in range(len(storage.objects(folder)), objects):
            storage.put(f"{folder}{number:05d}.parquet", data.getvalue())


def job(name: str, source: str, transform: str, shares: int, chunks: str) -> Job:
    """Build a job over the objects of this many workers, with its own output."""
    uris = [f"{source}share-{share:02d}/" for share in range(shares)]
    return parse_job(
        f"""
name: {name}
input: {{uri: {uris}}}
chunks: {chunks}
transform: benchmarks.transforms:{transform}
output: {{uri: "s3://demo/scaling/{name}-{uuid.uuid4().hex[:8]}/"}}
"""
    )


def run(
    settings: Settings, own: DaskSettings, work: Job, workers: int
) -> tuple[Measured, Progress]:
    """Run a job on a cluster."""
    changed = settings.model_dump()
    changed["dask"] |= {"scheduler": own.scheduler, "tls": own.tls.paths()}
    changed["batches"] |= {"seconds": 2.0}
    here = Settings.model_validate(changed)
    begun = time.time()
    summary = launch(work, here, lambda *_: None, ResumeOptions())
    ledger = Ledger(open_storage(settings), summary.output, summary.run)
    progress = ledger.read()
    done = progress.completions
    ends = done["started"] + done["seconds"]
    first, last = float(done["started"].min()), float(ends.max())  # type: ignore[arg-type]
    return Measured(workers, done.height, last - first, first - begun), progress


def report(benchmark: Any, found: list[Measured]) -> None:
    """Print the table, and keep it with the benchmark."""
    alone = found[0].speed / found[0].workers
    print("\n| workers | chunks/s | efficiency |\n| ---: | ---: | ---: |")
    for point in found:
        efficiency = point.speed / point.workers / alone
        print(f"| {point.workers} | {point.speed:.2f} | {efficiency:.0%} |")
        benchmark.extra_info[f"efficiency_{point.workers}"] = round(efficiency, 3)
        benchmark.extra_info[f"chunks_per_second_{point.workers}"] = round(point.speed, 3)


@pytest.mark.timeout(900)
def test_cpu_bound(benchmark: Any, settings: Settings) -> None:
    """One worker, then two."""
    source = "s3://demo/scaling-input/busy/"
    fill(open_storage(settings), source, 2, BUSY_CHUNKS, BUSY_ROWS)
    endpoint = str(settings.s3.endpoint_url)

    def measure() -> list[Measured]:
        found = []
        for workers in (1, 2):
            work = job(f"busy-{workers}", source, "python_function", workers, "{per_file: true}")
            with cluster_of(settings, workers, endpoint) as (_, own):
                found.append(run(settings, own, work, workers)[0])
        return found

    report(benchmark, benchmark.pedantic(measure, rounds=1))


@pytest.mark.timeout(1800)
def test_latency_bound(benchmark: Any, settings: Settings) -> None:
    """1 to 32 workers, whose requests take 30 ms longer."""
    source = "s3://demo/scaling-input/latent/"
    fill(open_storage(settings), source, max(LATENT), LATENT_CHUNKS * OBJECTS, ROWS)

    def measure() -> list[Measured]:
        found = []
        with CountingProxy(str(settings.s3.endpoint_url), DELAY) as proxy:
            for workers in LATENT:
                with cluster_of(
                    settings, workers, proxy.endpoint, CHUNKMAP_S3__MAX_REQUESTS="1"
                ) as (_, own):
                    chunks = f"{{max_rows: {OBJECTS * ROWS}}}"
                    work = job(f"latent-{workers}", source, "identity", workers, chunks)
                    found.append(run(settings, own, work, workers)[0])
        return found

    report(benchmark, benchmark.pedantic(measure, rounds=1))


class Joined(SchedulerPlugin):
    """Notes when workers join."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self.at[str(scheduler.workers[worker].name)] = time.time()


@pytest.mark.timeout(600)
def test_new_worker(benchmark: Any, settings: Settings) -> None:
    """From the moment a second worker joins, in the middle of a run, to its first chunk."""
    source = "s3://demo/scaling-input/latent/"
    fill(open_storage(settings), source, 3, LATENT_CHUNKS * OBJECTS, ROWS)
    joined = Joined()
    chunks = f"{{max_rows: {OBJECTS * ROWS}}}"
    work = job("joined", source, "identity", 3, chunks)

    def measure() -> float:
        with (
            CountingProxy(str(settings.s3.endpoint_url), DELAY) as proxy,
            cluster_of(settings, 1, proxy.endpoint, CHUNKMAP_S3__MAX_REQUESTS="1") as (
                cluster,
                own,
            ),
        ):
            cluster.scheduler.add_plugin(joined)
            over = Event()
            scaling = Thread(target=_scale_when_busy, args=(cluster, over))
            scaling.start()
            try:
                _, progress = run(settings, own, work, 2)
            finally:
                over.set()
                scaling.join()
        by = progress.completions.filter(pl.col("worker") == "1")
        assert by.height, "the new worker has mapped nothing"
        return float(by["started"].min()) - joined.at["1"]  # type: ignore[arg-type]

    seconds = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["seconds_to_first_chunk"] = round(seconds, 2)
    print(f"\nfrom joining to its first chunk: {seconds:.2f} s")


def _scale_when_busy(cluster: Any, over: Event) -> None:
    while not over.wait(0.05):
        if any(worker.processing for worker in list(cluster.scheduler.workers.values())):
            cluster.scale(2)
            return
