"""A row-wise map at TPC-H scale factor 4 (24 million rows), S3 to S3, and one Polars process.

    chunkmap up && pytest benchmarks/micro/test_map.py --benchmark-enable -s

Polars does `scan_parquet -> sink_parquet` on the same server with the same cores. Both are run in
turn; the ratio is of medians. The cluster is up before the clock starts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from typing import Any

import pytest

from benchmarks.suite.generating import tpch
from benchmarks.suite.settings import load_suite_settings
from pipeline.cluster import local
from pipeline.config.job import parse_job
from pipeline.config.settings import Settings
from pipeline.flows.launch import launch
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.storage import open_storage, scan_options

SCALE = 4
ROUNDS = 3
FILES = 16
PREFIX = f"s3://demo/bench/tpch-{SCALE}/lineitem/"

POLARS = """
import json, sys, time
import polars as pl
from benchmarks.transforms import row_map
said = json.loads(sys.argv[1])
lf = pl.scan_parquet(said["source"], storage_options=said["options"])
clock = time.perf_counter()
row_map(lf).sink_parquet(said["target"], storage_options=said["options"], compression="zstd")
print(time.perf_counter() - clock)
"""


@pytest.fixture(scope="module")
def settings() -> Settings:
    found = load_suite_settings()
    if not all(service.state == "running" for service in local.status(found)):
        pytest.skip("the local stack is down: chunkmap up")
    storage = open_storage(found)
    if len(storage.objects(PREFIX)) < FILES:
        for key, data in tpch("lineitem", SCALE, FILES, 250_000):
            storage.put(PREFIX + key, data)
    return found


def one_process(settings: Settings, target: str) -> float:
    """Seconds of Polars' own scan and sink, imports and start-up left out."""
    options = scan_options(settings, PREFIX)
    said = {"source": PREFIX + "*.parquet", "target": target, "options": options}
    done = subprocess.run(
        [sys.executable, "-c", POLARS, json.dumps(said)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    return float(done.stdout)


def engine(settings: Settings, target: str) -> tuple[float, int]:
    """Seconds of a whole run, from the job to the published output, and its rows."""
    job = parse_job(
        f"""
name: map-{SCALE}
input: {{uri: {PREFIX}}}
transform: benchmarks.transforms:row_map
output: {{uri: {target}}}
"""
    )
    clock = time.perf_counter()
    summary = launch(job, settings, lambda phase, progress: None, ResumeOptions())
    return time.perf_counter() - clock, summary.rows_out


@pytest.mark.timeout(1800)
def test_map_beside_one_polars_process(benchmark: Any, settings: Settings) -> None:
    root = f"s3://demo/bench/out/{uuid.uuid4().hex[:8]}"
    theirs: list[float] = []
    numbers = iter(range(ROUNDS + 1))

    def measured() -> tuple[tuple[str], dict[str, Any]]:
        number = next(numbers)
        theirs.append(one_process(settings, f"{root}/polars-{number}.parquet"))
        return (f"{root}/chunkmap-{number}/",), {}

    def run(target: str) -> None:
        _, rows = engine(settings, target)
        assert rows > 5_900_000 * SCALE

    benchmark.pedantic(run, setup=measured, rounds=ROUNDS, warmup_rounds=0)
    ours = benchmark.stats.stats.median
    ratio = ours / statistics.median(theirs)
    benchmark.extra_info |= {"polars_seconds": theirs, "ratio": ratio}
    print(f"\nrow-wise map, scale factor {SCALE}: {ours:.1f} s, Polars {theirs}, ratio {ratio:.2f}")
