"""Local mode beside Polars in one process: the suite's `row-map` and `stations`, on this disk.

    python -m benchmarks.micro.local_mode --scale m --docs docs/guides/benchmarks.md

Each way is a process of its own that does the work several times; they take turns. The medians of
all but the first count. Both read and write local folders with zstd; worker processes of local mode
are started before the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
from polars.testing import assert_frame_equal

from benchmarks.peers import polars_process
from benchmarks.peers.protocol import Spec
from benchmarks.report.write import print_table
from benchmarks.suite.datasets import ensure
from benchmarks.suite.workloads import WORKLOADS, Workload
from pipeline.config.settings import load_settings
from pipeline.storage import open_storage

PLACE: Final = "local mode"
NAMES: Final = ("row-map", "stations")
ITERATIONS: Final = 4
_FACTS: Final = (pl.len(), pl.col(pl.Float64).sum().name.suffix(" sum"))
"""What results must have in common."""


def by_chunkmap(workload: Workload, source: str, target: str) -> list[float]:
    """Return the seconds of each run of local mode."""
    import chunkmap as cm

    reduce = {name: f"benchmarks.transforms:{f}" for name, f in workload.reduce.items()}
    dataset = cm.read(source)
    mapped = dataset.map(f"benchmarks.transforms:{workload.transform}")
    job = mapped.reduce(**reduce) if reduce else mapped
    times = []
    with cm.local(transforms={"allow": ["benchmarks.transforms"]}):
        for number in range(ITERATIONS):
            started = time.perf_counter()
            job.write(f"{target}/{number}/", name=workload.name).run(progress=False)
            times.append(time.perf_counter() - started)
    return times


def by_polars(workload: Workload, source: str, target: str) -> list[float]:
    """Return the seconds of each streamed query."""
    finalize = workload.reduce.get("finalize", "")
    spec = Spec(workload.name, source, target, workload.transform, finalize=finalize)
    times = []
    for number in range(ITERATIONS):
        output = Path(target, str(number))
        output.mkdir()
        started = time.perf_counter()
        polars_process.write({}, spec, f"{output}/")
        times.append(time.perf_counter() - started)
    return times


WAYS: Final = {"chunkmap": by_chunkmap, "polars": by_polars}


def measure(workload: Workload, source: str, repeats: int) -> dict[str, list[float]]:
    """Run both ways in turns; return the warm seconds of each."""
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    results: list[pl.DataFrame] = []
    for _ in range(repeats):
        for name in WAYS:
            with tempfile.TemporaryDirectory(prefix="chunkmap-local-") as target:
                command = [sys.executable, "-m", "benchmarks.micro.local_mode"]
                one = ["--one", name, workload.name, source, target]
                done = subprocess.run([*command, *one], check=True, stdout=subprocess.PIPE)
                results.append(pl.scan_parquet(f"{target}/0/**/*.parquet").select(_FACTS).collect())
            times = json.loads(done.stdout.splitlines()[-1])
            print(f"{workload.name}  {name:<9}", "  ".join(f"{t:.2f} s" for t in times), flush=True)
            samples[name] += times[1:]
    for result in results[1:]:
        assert_frame_equal(result, results[0])
    return samples


def table(rows: Sequence[tuple[str, int, dict[str, list[float]]]]) -> str:
    """What was measured, in Markdown."""
    text = ["| from disk to disk | chunkmap, local mode | Polars | ratio |", "|---|---:|---:|---:|"]
    for name, count, samples in rows:
        ours, theirs = (statistics.median(samples[way]) for way in WAYS)
        text.append(
            f"| {name}, {count / 1e6:,.0f} million rows | {ours:.2f} s | {theirs:.2f} s "
            f"| {ours / theirs:.2f} |"
        )
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--scale", choices=["s", "m", "l"], default="m")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--docs", type=Path, help="put the table into this page")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        way, name, source, target = given.one
        print(json.dumps(WAYS[way](WORKLOADS[name], source, target)))
        return
    rows: list[tuple[str, int, dict[str, list[float]]]] = []
    with tempfile.TemporaryDirectory(prefix="chunkmap-local-data-") as root:
        storage: Any = open_storage(load_settings())
        for name in NAMES:
            card = ensure(storage, f"file://{root}", WORKLOADS[name].dataset, given.scale, print)
            source = card.uri.removeprefix("file://")
            rows.append((name, card.rows, measure(WORKLOADS[name], source, given.repeats)))
    text = table(rows)
    print_table(text, PLACE, given.docs)


if __name__ == "__main__":
    main()
