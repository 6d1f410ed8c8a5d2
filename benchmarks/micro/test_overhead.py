"""What the engine itself costs: chunks that are neither read nor staged.

    chunkmap up && pytest benchmarks/micro/test_overhead.py --benchmark-enable -s

Beside it, in the same run on the same workers: Prefect's own `task.map` with a task run for each
item, Dask's `Client.map`, and a plain loop. Figures are per chunk; memory is the driver's and the
scheduler's.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from prefect import flow, task, unmapped

from benchmarks.micro import ledger_only
from benchmarks.suite.settings import load_suite_settings
from pipeline.cluster import local
from pipeline.cluster.task_runner import task_runner
from pipeline.config.job import Job, parse_job
from pipeline.config.settings import Settings
from pipeline.flows.server import connect, talking_to

NAIVE = 300
"""Items for Prefect's own map: at some 50 ms each, more would only take longer."""


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    found = load_suite_settings()
    if not all(service.state == "running" for service in local.status(found)):
        pytest.skip("the local stack is down: chunkmap up")
    with talking_to(connect(found.prefect), 1):
        yield found


def runner(settings: Settings) -> Any:
    return task_runner(settings.dask, settings.s3.environment())


def job(name: str, source: str = "s3://demo/none/") -> Job:
    return parse_job(
        f"""
name: {name}
input: {{uri: {source}}}
chunks: {{per_file: true}}
transform: benchmarks.transforms:identity
output: {{uri: "s3://demo/overhead/{name}-{uuid.uuid4().hex[:8]}/"}}
"""
    )


def report(benchmark: Any, items: int, **extra: float) -> None:
    benchmark.extra_info["items"] = items
    benchmark.extra_info["ms_per_item"] = benchmark.stats.stats.median / items * 1000
    benchmark.extra_info |= extra
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


def scheduler_memory(settings: Settings) -> float:
    """MB held by the process of the local stack that runs the scheduler."""
    [dask] = [service for service in local.status(settings) if service.name == "dask"]
    return psutil.Process(dask.pid).memory_info().rss / 1e6


def driver_memory(chunks: int) -> float:
    """Return the peak MB of a process that drives this many chunks and does nothing else."""
    output = f"s3://demo/overhead/memory-{uuid.uuid4().hex[:8]}/"
    command = [sys.executable, "-m", "benchmarks.micro.ledger_only", str(chunks), output]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chunks", [1_000, 10_000, 100_000])
def test_ledger_only(benchmark: Any, settings: Settings, chunks: int) -> None:
    """Measure Prefect, Dask and the stored completions of this many chunks."""
    plan = ledger_only.synthetic_plan(chunks)

    def fresh() -> tuple[tuple[Any, str], dict[str, Any]]:
        ledger, code = ledger_only.ledger_only_run(settings, job(f"ledger-{chunks}"), plan)
        return (ledger, code), {}

    def run(ledger: Any, code: str) -> None:
        mapped = ledger_only.only(ledger_only.ledger_only_flow, runner(settings))
        assert mapped(ledger.prefix, code).completions.height == chunks

    benchmark.pedantic(run, setup=fresh, rounds=3 if chunks < 100_000 else 1)
    report(
        benchmark, chunks, driver_mb=driver_memory(chunks), scheduler_mb=scheduler_memory(settings)
    )


@task
def nothing(number: int, other: int) -> int:
    return number + other


@pytest.mark.timeout(1200)
def test_naive_prefect(benchmark: Any, settings: Settings) -> None:
    """A task run for each item, as Prefect's documentation shows it."""

    @flow(task_runner=runner(settings))
    def mapped() -> list[int]:
        return nothing.map(list(range(NAIVE)), unmapped(1)).result()

    assert len(benchmark.pedantic(mapped, rounds=1)) == NAIVE
    report(benchmark, NAIVE)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("items", [10_000, 100_000])
def test_client_map(benchmark: Any, settings: Settings, items: int) -> None:
    """Dask alone, a task for each item."""
    with runner(settings) as started:

        def mapped() -> int:
            client = started.client
            futures = client.map(_increment, range(items), key=f"map-{uuid.uuid4().hex}")
            return len(client.gather(futures))

        assert benchmark.pedantic(mapped, rounds=1) == items
    report(benchmark, items)


def test_plain_loop(benchmark: Any) -> None:
    """No engine at all."""
    benchmark(lambda: [_increment(number) for number in range(100_000)])
    report(benchmark, 100_000)


def _increment(number: int) -> int:
    return number + 1
