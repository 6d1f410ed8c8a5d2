"""A large CSV file in S3 becomes Parquet in S3, beside Polars and DuckDB in one process.

    python -m benchmarks.micro.csv_files --docs docs/guides/ingest.md

A SeaweedFS of its own holds the file. Each repeat is a process of its own, and they take turns; the
median counts. chunkmap looks at all values to find types that hold them, where the others look at
the first rows; it stages, publishes and records, in threads of one process, without Prefect and
Dask.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.micro.planning_server import BUCKET, Server, filesystem, serve
from benchmarks.peers.protocol import Spec
from benchmarks.report.write import print_table
from benchmarks.suite.environments import PEERS, PeerMissingError, environment_of
from pipeline.config.ingest import Ingest
from pipeline.config.settings import load_settings
from pipeline.report.humanize import byte_size
from pipeline.runs.worker.memory import take_peak

PLACE = "csv files"
SOURCE = f"s3://{BUCKET}/csv/sales.csv"
BLOCK_ROWS = 500_000
NAMES = {"chunkmap": "chunkmap", "polars": "Polars, one process", "duckdb": "DuckDB"}


def blocks(size: int) -> Iterator[bytes]:
    """Yield the pieces of a CSV file of at least this size in bytes."""
    made, number = 0, 0
    while made < size:
        ids = pl.int_range(number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS, eager=True)
        text = pl.DataFrame({"id": ids}).select(
            "id",
            day=pl.date(2024, 1, 1) + pl.duration(days=pl.col("id") // 90_000 % 366),
            customer=pl.format("customer-{}", pl.col("id") * 7919 % 100_000),
            product=pl.format("product {}, size {}", pl.col("id") * 31 % 977, pl.col("id") % 7),
            quantity=pl.col("id") * 13 % 50 + 1,
            price=(pl.col("id") * 104_729 % 100_000) / 100,
            discount=(pl.col("id") * 17 % 11) / 100,
            paid=pl.col("id") % 3 > 0,
        )
        data = text.write_csv(include_header=not number).encode()
        made, number = made + len(data), number + 1
        yield data


def upload(server: Server, size: int) -> int:
    """Write the file, block by block; return its size."""
    with filesystem(server).open(SOURCE.removeprefix("s3://"), "wb", block_size=64 << 20) as file:
        return sum(file.write(block) for block in blocks(size))


def ingest_here(output: str) -> dict[str, float]:
    """Ingest the file in this process."""
    from pipeline.ingest import ingest

    definition = Ingest.model_validate(
        {"name": "sales", "files": {"uri": SOURCE}, "output": {"uri": output}}
    )
    started = time.perf_counter()
    summary = ingest(definition, load_settings())
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": take_peak(), "rows": summary.rows}


def command(name: str, target: str) -> tuple[list[str], dict[str, str]]:
    """Return how a way is started, and its variables."""
    if name == "chunkmap":
        return [sys.executable, "-m", "benchmarks.micro.csv_files", "--one", target], {}
    environment = environment_of(PEERS[name], load_settings().state_dir, print)
    python = environment.command[0]
    spec = json.dumps(asdict(Spec("csv", SOURCE, target, "", cores=os.cpu_count() or 1)))
    parts = [python, "-m", "benchmarks.micro.csv_peers", name, SOURCE, f"{target}all.parquet", spec]
    return parts, dict(environment.variables)


def measure(server: Server, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Run all ways in turns; return what each came to."""
    samples: dict[str, list[dict[str, float]]] = {}
    for number in range(repeats):
        for name in NAMES:
            target = f"s3://{BUCKET}/out/{name}-{number}/"
            try:
                parts, variables = command(name, target)
            except PeerMissingError as error:
                print(error)
                continue
            done = subprocess.run(
                parts,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **server.environment(), **variables},
            )
            sample: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            peak = byte_size(int(sample["peak"]))
            print(f"{number + 1}  {name:<9} {sample['seconds']:7.2f} s  {peak}")
            samples.setdefault(name, []).append(sample)
            clear(server, target)
    return samples


def clear(server: Server, target: str) -> None:
    """Delete an output, and its state."""
    files: Any = filesystem(server)
    for folder in (target.rstrip("/"), f"{target.rstrip('/')}.chunkmap"):
        if files.exists(folder):
            files.rm(folder, recursive=True)


def table(size: int, samples: dict[str, list[dict[str, float]]]) -> str:
    """What was measured, in Markdown."""
    medians = {
        name: statistics.median(run["seconds"] for run in runs) for name, runs in samples.items()
    }
    text = [
        f"| a CSV file of {byte_size(size)} | median | ratio | peak memory |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in medians.items():
        peak = max(run["peak"] for run in samples[name])
        ratio = seconds / medians.get("polars", seconds)
        text.append(f"| {NAMES[name]} | {seconds:.1f} s | {ratio:.2f} | {byte_size(int(peak))} |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--docs", type=Path, help="put the table into this page")
    parser.add_argument("--one", metavar="OUTPUT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(ingest_here(given.one)))
        return
    with tempfile.TemporaryDirectory(prefix="chunkmap-csv-") as name, serve(Path(name)) as server:
        size = upload(server, int(given.gigabytes * 1e9))
        text = table(size, measure(server, given.repeats))
    print_table(text, PLACE, given.docs)


if __name__ == "__main__":
    main()
