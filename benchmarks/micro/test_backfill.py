"""Backfills of a thousand windows: what they cost, and that a killed driver costs little.

    chunkmap up && pytest benchmarks/micro/test_backfill.py --benchmark-enable -s

1,000 windows of 100 chunks that are neither read nor staged, then 1,000 windows of 10 chunks that
are. Meanwhile the status is asked for, and the driver is killed in the middle and another goes on.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import psutil
import pytest
from prefect.client.orchestration import get_client

from benchmarks.micro.backfill_driver import FIRST, job_of
from benchmarks.suite.settings import load_suite_settings
from pipeline.cluster import local
from pipeline.config.settings import Settings
from pipeline.flows.server import connect, talking_to
from pipeline.runs.backfill.plan import WindowSelection, create, draft
from pipeline.runs.backfill.records import Options
from pipeline.runs.backfill.status import read_status
from pipeline.runs.backfill.store import BackfillStore
from pipeline.storage import open_storage
from pipeline.table.log import TableLog

WINDOWS = 1_000
LEDGER_ONLY, STAGED = 100, 10
"""Chunks in a window."""
MOST_RUNS = 600
"""Prefect flow and task runs of one backfill, at most."""
MOST_STATUS_SECONDS = 2.0


@pytest.fixture(scope="module")
def settings() -> Settings:
    found = load_suite_settings()
    if not all(service.state == "running" for service in local.status(found)):
        pytest.skip("the local stack is down: chunkmap up")
    return found


def prefect_runs(settings: Settings, since: datetime) -> int:
    """Flow and task runs that began since then."""
    total = 0
    with talking_to(connect(settings.prefect), 1), get_client(sync_client=True) as client:
        for kind in ("flow_runs", "task_runs"):
            body = {kind: {"start_time": {"after_": since.isoformat()}}}
            total += int(client._client.post(f"/{kind}/count", json=body).json())
    return total


class Drive:
    """A driver at work in a process of its own, and how big it is as it goes on."""

    def __init__(self, action: str, store: BackfillStore) -> None:
        command = [sys.executable, "-m", "benchmarks.micro.backfill_driver", action]
        self.store = store
        self.status_seconds: list[float] = []
        self.megabytes: list[tuple[float, float]] = []
        """(share of the windows that are over, MB held)."""
        self._process = subprocess.Popen(
            [*command, store.output, store.backfill], stdout=subprocess.PIPE, text=True
        )

    def run(self, until: float = 1.0) -> dict[str, Any] | None:
        """Ask for the status every few seconds until the end, or kill it at this share."""
        process = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            clock = time.perf_counter()
            counts = read_status(self.store).counts
            self.status_seconds.append(time.perf_counter() - clock)
            over = (counts["done"] + counts["failed"]) / WINDOWS
            self.megabytes.append((over, process.memory_info().rss / 1e6))
            if over >= until and until < 1:
                self._process.send_signal(signal.SIGKILL)
                self._process.communicate()
                return None
            time.sleep(1.0)
        out, _ = self._process.communicate()
        assert self._process.returncode == 0
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found


def report(benchmark: Any, **figures: Any) -> None:
    benchmark.extra_info |= figures
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


def growth(megabytes: list[tuple[float, float]]) -> float:
    """MB that the driver has grown by from a quarter to nine tenths of its windows."""
    quarter = [size for share, size in megabytes if share <= 0.25]
    late = [size for share, size in megabytes if share <= 0.9]
    return late[-1] - quarter[-1] if quarter else 0.0


@pytest.mark.timeout(1800)
def test_ledger_only(benchmark: Any, settings: Settings) -> None:
    """100,000 chunks in 1,000 windows; the driver is killed halfway and another goes on."""
    storage = open_storage(settings)
    output = f"s3://demo/backfills/{uuid.uuid4().hex[:8]}/"
    command = [sys.executable, "-m", "benchmarks.micro.backfill_driver", "create", output]
    made = subprocess.run(
        [*command, str(WINDOWS), str(LEDGER_ONLY)], check=True, capture_output=True, text=True
    )
    store = BackfillStore(storage, output, made.stdout.split()[-1])
    since = datetime.now(UTC)
    drives: list[Drive] = []

    def whole() -> dict[str, Any] | None:
        drives.append(Drive("ledger-only", store))
        assert drives[-1].run(until=0.5) is None
        drives.append(Drive("ledger-only", store))
        return drives[-1].run()

    said = benchmark.pedantic(whole, rounds=1)
    asked = [seconds for drive in drives for seconds in drive.status_seconds]
    runs = prefect_runs(settings, since)
    report(
        benchmark,
        ms_per_chunk=benchmark.stats.stats.median / (WINDOWS * LEDGER_ONLY) * 1000,
        prefect_runs=runs,
        status_median=sorted(asked)[len(asked) // 2],
        status_worst=max(asked),
        driver_peak_mb=said["peak_mb"],
        driver_growth_mb=growth(drives[0].megabytes),
        chunks=said["chunks_done"],
    )
    assert said["chunks_done"] == WINDOWS * LEDGER_ONLY
    # Of two drivers: the one that was killed has made half of its runs.
    assert runs <= MOST_RUNS * 1.5
    assert sorted(asked)[len(asked) // 2] < MOST_STATUS_SECONDS


@pytest.mark.timeout(1800)
def test_staged(benchmark: Any, settings: Settings) -> None:
    """10,000 chunks of 4 KiB in 1,000 windows: read, staged and published window by window."""
    storage = open_storage(settings)
    source = f"s3://demo/backfill-input-{WINDOWS}x{STAGED}/"
    _fill(settings, source)
    output = f"s3://demo/backfills/{uuid.uuid4().hex[:8]}/"
    job = job_of(output, source)
    created = create(storage, draft(job, settings, storage, WindowSelection(), Options()))
    assert created is not None, "there is something to do"
    store, _ = created
    since = datetime.now(UTC)
    said = benchmark.pedantic(lambda: Drive("drive", store).run(), rounds=1)
    runs = prefect_runs(settings, since)
    manifest = TableLog(storage, output).manifest()
    report(
        benchmark,
        ms_per_chunk=benchmark.stats.stats.median / (WINDOWS * STAGED) * 1000,
        prefect_runs=runs,
        driver_peak_mb=said["peak_mb"],
        manifests=manifest.number,
    )
    assert (len(manifest.commits), said["done"]) == (WINDOWS, WINDOWS)
    assert runs <= MOST_RUNS


def _fill(settings: Settings, source: str) -> None:
    storage = open_storage(settings)
    data = io.BytesIO()
    pl.DataFrame({"id": range(500), "n": [i * 7 for i in range(500)]}).write_parquet(data)
    there = {info.uri for info in storage.objects(source)}
    wanted = [
        f"{source}ds={FIRST + timedelta(days=window)}/{part}.parquet"
        for window in range(WINDOWS)
        for part in range(STAGED)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: storage.put(uri, data.getvalue()), set(wanted) - there))
