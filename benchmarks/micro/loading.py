"""Loads into PostgreSQL beside plain ADBC COPY of the same files, and dlt.

    python -m benchmarks.micro.loading --rows 10000000 --repeats 3

Both read the same Parquet from this machine's disk and bring it into a new table in one
transaction; they take turns, and the best of each counts. Plain COPY records nothing and checks
nothing. dlt is measured once, where `--dlt` names a Python with `dlt[postgres]` and pyarrow; its
start is not in its time. Without `--into` it starts a server of its own (PostgreSQL's programs must
be installed), with fsync on.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.dataset as ds

from pipeline.cluster.local.processes import free_ports
from pipeline.config.job import Job
from pipeline.config.settings import Settings, load_settings
from pipeline.load.destination import TableName
from pipeline.load.loader import LoadRequest, load
from pipeline.load.postgresql import PostgreSQL
from pipeline.runs.driver.run import run_serially
from pipeline.storage import open_storage

FILES = 20
_DLT = """
import sys, time
import dlt
import pyarrow.dataset as ds

address, files, folder = sys.argv[1:]

@dlt.resource(name="by_dlt")
def rows():
    yield from ds.dataset(files, format="parquet").to_batches()

made = dlt.pipeline("bench", pipelines_dir=folder, dataset_name="public",
                    destination=dlt.destinations.postgres(address))
started = time.perf_counter()
made.run(rows, write_disposition="replace", loader_file_format="csv")
print(made.last_trace.last_normalize_info.row_counts["by_dlt"], time.perf_counter() - started)
"""


def published(folder: Path, rows: int, settings: Settings) -> str:
    """Publish an output of so many rows in some files; returns its URI."""
    (folder / "in").mkdir()
    each = rows // FILES
    for number in range(FILES):
        ids = pl.int_range(number * each, (number + 1) * each, eager=True)
        pl.DataFrame({"id": ids}).select(
            "id",
            day=pl.date(2024, 1, 1) + pl.duration(days=pl.col("id") % 366),
            cents=(pl.col("id") * 7919 % 100_000).cast(pl.Int32),
            price=pl.col("id") / 7,
            customer=pl.format("customer-{}", pl.col("id") % 100_000),
        ).write_parquet(folder / "in" / f"{number:02d}.parquet")
    job = Job.model_validate(
        {
            "name": "loading",
            "input": {"uri": f"file://{folder}/in/"},
            "transform": "benchmarks.transforms:identity",
            "chunks": {"per_file": True},
            "output": {"uri": f"file://{folder}/out/"},
        }
    )
    run_serially(job, settings, open_storage(settings))
    return job.output.uri


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start PostgreSQL in a folder, as another user than root; yields its address."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    path = os.pathsep.join([*map(str, reversed(programs)), os.environ["PATH"]])
    user: dict[str, Any] = {"env": {"PATH": path, "LC_ALL": "C"}, "cwd": folder}
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
        user |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
    data, port = folder / "data", free_ports(1)[0]
    initdb = ["initdb", "-D", str(data), "-U", "bench", "--auth=trust", "--no-locale", "-E", "UTF8"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **user)
    options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c max_wal_size=4GB"
    control = ["pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run(
        [*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, **user
    )
    try:
        yield f"postgresql://bench:none@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*control, "-m", "fast", "stop"], check=True, stdout=subprocess.DEVNULL, **user
        )


def plain_copy(uri: str, files: Path) -> Callable[[], int]:
    """Return a function that copies Parquet files into a new table with ADBC alone."""
    from adbc_driver_postgresql import dbapi

    def copy() -> int:
        with dbapi.connect(uri) as connection, connection.cursor() as cursor:
            batches = ds.dataset(files, format="parquet").scanner(batch_size=65_536).to_reader()
            rows = cursor.adbc_ingest("plain", batches, mode="create")
            connection.commit()
        return int(rows)

    return copy


def chunkmap_load(uri: str, output: str, settings: Settings) -> Callable[[], int]:
    """Return a function that loads the output into a new table."""
    request = LoadRequest(output, TableName(None, "loaded"))
    return lambda: load(request, PostgreSQL(uri), settings, open_storage(settings)).rows


def dlt_load(python: str, uri: str, files: Path) -> tuple[int, float]:
    """Load the files with dlt in a process of its own; return the rows and its seconds."""
    with tempfile.TemporaryDirectory(prefix="chunkmap-dlt-") as folder:
        command = [python, "-c", _DLT, uri, str(files), folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows, seconds = done.stdout.split()[-2:]
    return int(rows), float(seconds)


def _drop(uri: str) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri) as connection, connection.cursor() as cursor:
        for table in ("plain", "loaded", "_chunkmap_loads"):
            cursor.execute(f"DROP TABLE IF EXISTS {table}")
        connection.commit()
    # What the one before has written is not in the time of the next.
    with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")


def measure(uri: str, output: str, files: Path, settings: Settings, rows: int, repeats: int) -> int:
    """Measure both in turns, and print each time and the ratio of the best."""
    ways = {"plain COPY": plain_copy(uri, files), "chunkmap": chunkmap_load(uri, output, settings)}
    best = dict.fromkeys(ways, float("inf"))
    for number in range(repeats):
        for name, way in ways.items():
            _drop(uri)
            started = time.perf_counter()
            loaded = way()
            seconds = time.perf_counter() - started
            if loaded != rows:
                raise SystemExit(f"{name} brought {loaded:,} rows instead of {rows:,}")
            best[name] = min(best[name], seconds)
            print(f"{number + 1}  {name:<10}  {seconds:6.2f} s  {rows / seconds:12,.0f} rows/s")
    ratio = best["chunkmap"] / best["plain COPY"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"ratio of the best: {ratio:.2f} (aim: at most 1.15); peak memory {peak:,.0f} MiB")
    return 0


def main() -> int:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dlt", metavar="PYTHON", help="also measure dlt, with this Python")
    parser.add_argument("--into", help="URI of a database; default a server of its own")
    given = parser.parse_args()
    rows = given.rows // FILES * FILES
    os.environ["CHUNKMAP_TRANSFORMS__ALLOW"] = "benchmarks.transforms"
    settings = load_settings()
    with tempfile.TemporaryDirectory(prefix="chunkmap-load-") as name:
        folder = Path(name)
        output = published(folder, rows, settings)
        files = folder / "out"
        with ExitStack() as stack:
            uri = given.into
            if uri is None:
                home = stack.enter_context(tempfile.TemporaryDirectory(prefix="chunkmap-pg-"))
                uri = stack.enter_context(server(Path(home)))
            result = measure(uri, output, files, settings, rows, given.repeats)
            if given.dlt:
                loaded, seconds = dlt_load(given.dlt, uri, files)
                print(f"dlt: {loaded:,} rows in {seconds:.2f} s, {loaded / seconds:,.0f} rows/s")
            return result


if __name__ == "__main__":
    sys.exit(main())
