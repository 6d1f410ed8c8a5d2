"""Processor time and peak of mapping large chunks, by how long Polars' allocator keeps free pages.

    python -m benchmarks.micro.free_pages

Processes with and without the workers' setting of the allocator take turns. Each maps and encodes
the same line items several times, as one thread of a worker does.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from benchmarks.micro.layout_memory import lines
from benchmarks.transforms import row_map
from pipeline.cluster.resources import MALLOC
from pipeline.runs.worker.encoding import Compression, FileFormat, write_parquet

VARIABLE = "_RJEM_MALLOC_CONF"
PARTS = 8
"""Parts of line items in the chunk (see `lines`)."""
CHUNKS = 8
"""Times that a process maps the chunk; the first does not count."""
REPEATS = 3


def map_chunks(path: str) -> dict[str, float]:
    """Return the processor seconds of one chunk, and the peak of this process in MB."""
    seconds = []
    for _ in range(CHUNKS):
        before = _used()
        frame = row_map(pl.scan_parquet(path)).collect(engine="streaming")
        write_parquet(frame, FileFormat(Compression("zstd")))
        seconds.append(_used() - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": statistics.fmean(seconds[1:]), "peak": peak}


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(value: str | None, path: Path) -> dict[str, float]:
    """Map chunks in a process with this value of the variable; None: without it."""
    others = {name: text for name, text in os.environ.items() if name != VARIABLE}
    variables = others | ({} if value is None else {VARIABLE: value})
    command = [sys.executable, "-m", "benchmarks.micro.free_pages", str(path)]
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure both ways and print their medians."""
    if len(sys.argv) > 1:
        print(json.dumps(map_chunks(sys.argv[1])))
        return
    ways = {"Polars' own setting": None, "as in workers": MALLOC[VARIABLE]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with TemporaryDirectory(prefix="chunkmap-bench-") as scratch:
        path = Path(scratch, "lines.parquet")
        pl.concat([lines(number) for number in range(PARTS)]).write_parquet(path)
        for _ in range(REPEATS):
            for name, value in ways.items():
                found[name].append(measure(value, path))
    for name, each in found.items():
        seconds, peak = (statistics.median(run[key] for run in each) for key in ("seconds", "peak"))
        print(f"{name:<20} {seconds:.3f} s of processor time per chunk, peak {peak:,.0f} MB")


if __name__ == "__main__":
    main()
