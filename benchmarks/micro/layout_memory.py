"""Memory of a process that lays out more and more line items into the 84 partitions of their month.

    python -m benchmarks.micro.layout_memory --docs docs/guides/layouts.md

Each run is a process of its own that plans, maps and merges: what a worker holds, and a driver.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from benchmarks.report.write import update_docs
from benchmarks.suite.settings import TRANSFORMS
from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.report.humanize import byte_size, count
from pipeline.runs.driver.run import run_serially
from pipeline.storage import own_storage

PLACE = "memory of layouts"
FILES, ROWS = 8, 200_000
"""Objects of the smallest input, and rows of each: a chunk."""
FACTORS = (1, 2, 4, 8)
LAYOUTS: dict[str, dict[str, object]] = {
    "unsorted": {"file_bytes": "1MiB"},
    "sorted": {"file_bytes": "1MiB", "sort_by": ["l_shipdate", "l_orderkey"]},
}
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


def lay_out(folder: Path, layout: str) -> None:
    """Run the job in this process; print what it came to, as JSON."""
    job = Job.model_validate(
        {
            "name": "layout-memory",
            "input": {"uri": f"file://{folder}/in/"},
            "chunks": {"per_file": True},
            "transform": f"{TRANSFORMS}:by_month",
            "output": {
                "uri": f"file://{folder}/{layout}/",
                "partition_by": ["month"],
                **LAYOUTS[layout],
            },
        }
    )
    settings = load_settings(overrides={"state_dir": str(folder / "state")})
    summary = run_serially(job, settings, own_storage())
    files = len(list((folder / layout).rglob("*.parquet")))
    print(json.dumps({"rows": summary.rows_out, "files": files, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # What it reports as its usage may be that of the process which began it.
        lines = status.read_text("ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure() -> Iterator[dict[str, dict[str, int]]]:
    """Yield what each size came to, by layout."""
    with TemporaryDirectory(prefix="chunkmap-bench-") as scratch:
        folder, made = Path(scratch), 0
        (folder / "in").mkdir()
        for factor in FACTORS:
            for number in range(made, factor * FILES):
                lines(number).write_parquet(folder / "in" / f"{number:04d}.parquet")
            made = factor * FILES
            yield {layout: _in_a_process(folder, layout) for layout in LAYOUTS}


def _in_a_process(folder: Path, layout: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.micro.layout_memory", "--one", layout, str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, "CHUNKMAP_TRANSFORMS__ALLOW": TRANSFORMS},
    )
    for name in (layout, f"{layout}.chunkmap"):
        shutil.rmtree(folder / name)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(sizes: Sequence[dict[str, dict[str, int]]]) -> str:
    """What was measured, in Markdown."""
    names = [f"peak, {layout}" for layout in LAYOUTS]
    text = [f"| rows | files | {' | '.join(names)} |", f"|{'---:|' * (2 + len(names))}"]
    for by_layout in sizes:
        one = by_layout["unsorted"]
        peaks = (byte_size(found["peak"]) for found in by_layout.values())
        text.append(f"| {count(one['rows'])} | {count(one['files'])} | {' | '.join(peaks)} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="put the table into this page")
    parser.add_argument("--one", nargs=2, metavar=("LAYOUT", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        lay_out(Path(given.one[1]), given.one[0])
        return
    text = table(list(measure()))
    if given.docs is not None:
        update_docs(given.docs, PLACE, text)
    print(text, end="")


if __name__ == "__main__":
    main()
