"""Many CSV files in parallel, then one table; measured against a loop.

Each branch of a shop sends a CSV file of its sales, with towns as clerks typed them. chunkmap
ingests the files, maps a slow Python function over them on all cores, and adds up what comes out. A
loop over the files computes the same, so that speed and result can be compared.

    chunkmap up
    python -m examples.many_files [--files 200]
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import polars as pl

from examples.commands import chunkmap
from examples.many_files.transforms import TOWNS, add, in_order, sums
from pipeline import scan_output

HERE = Path(__file__).parent
ROWS = 400
"""Rows of a file."""


def write_files(folder: Path, files: int) -> None:
    """Write CSV files, in each town two letters swapped."""
    chance = random.Random(1)
    for number in range(files):
        rows = []
        for _ in range(ROWS):
            town, at = chance.choice(TOWNS), chance.randrange(4)
            typed = town[:at] + town[at + 1] + town[at] + town[at + 2 :]
            rows.append((f"2024-03-{1 + number % 31:02d}", typed, chance.randrange(100, 9999)))
        frame = pl.DataFrame(rows, schema=["day", "town", "cents"], orient="row")
        frame.write_csv(folder / f"branch-{number:04d}.csv")


def main() -> None:
    """Compute the table twice, and compare."""
    parser = argparse.ArgumentParser(description="Many CSV files in parallel, then one table.")
    parser.add_argument("--files", type=int, default=200, help="Number of files.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, parser.parse_args().files)

        clock = time.perf_counter()
        parts = [sums(pl.scan_csv(path)).collect().lazy() for path in folder.iterdir()]
        expected = in_order(add(parts)).collect()
        loop = time.perf_counter() - clock

        ingested = chunkmap("ingest", HERE / "ingest.yaml", "--set", f"files.uri={folder}/")
    mapped = chunkmap("run", HERE / "job.yaml")
    towns = scan_output("s3://demo/examples/town-sales/").collect()
    print(towns.head(5))
    assert towns.equals(expected), "the loop has another result"
    print(
        f"a loop     {loop:5.1f} s, one file after the other",
        f"chunkmap   {mapped:5.1f} s on {os.cpu_count()} cores: {loop / mapped:.1f} times as fast",
        f"           {ingested:5.1f} s before, to put the files into S3 as Parquet",
        sep="\n",
    )


if __name__ == "__main__":
    main()
