"""Ingests of a slow API beside a plain httpx loop, and dlt.

    python -m benchmarks.micro.ingesting --pages 1000 --milliseconds 20 --concurrency 32

An API in a process of its own answers numbered pages of records after some milliseconds. Plain
httpx asks for them with the same concurrency and writes one Parquet file: it stores nothing, checks
nothing, and cannot go on. dlt is measured where `--dlt` names a Python that has it. They take
turns, and the best of each counts, in seconds and in processor seconds of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import polars as pl

from pipeline.config.ingest import Ingest
from pipeline.config.settings import load_settings
from pipeline.ingest import ingest

RECORDS = 100
"""Records of a page."""
_SERVER = """
import asyncio, json, sys
from urllib.parse import parse_qs, urlsplit
pages, seconds, records = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

def body(page):
    first = (page - 1) * records
    rows = [{"id": first + i, "name": f"name-{i}", "price": i / 4} for i in range(records)]
    return json.dumps({"data": rows if page <= pages else [], "pages": pages}).encode()

async def answer(reader, writer):
    try:
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            query = parse_qs(urlsplit(line.split()[1].decode()).query)
            await asyncio.sleep(seconds)
            text = body(int(query["page"][0]))
            head = f"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\n"
            writer.write(f"{head}Content-Length: {len(text)}\\r\\n\\r\\n".encode() + text)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
_DLT = """
import sys
import dlt
from dlt.sources.helpers import requests

url, pages, workers, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

@dlt.resource(name="numbers")
def numbers():
    yield from range(1, pages + 1)

@dlt.transformer(data_from=numbers, name="orders")
@dlt.defer
def page(number):
    return requests.get(url, params={"page": number}).json()["data"]

dlt.config["extract.workers"] = int(workers)
dlt.config["extract.max_parallel_items"] = int(workers)
made = dlt.pipeline("bench", pipelines_dir=folder + "/state",
                    destination=dlt.destinations.filesystem(f"file://{folder}/out"))
made.run(page, loader_file_format="parquet")
print(made.last_trace.last_normalize_info.row_counts["orders"])
"""
Way = Callable[[Path], int]


def plain_httpx(url: str, pages: int, concurrency: int) -> Way:
    """Return a function that reads all pages with httpx, and writes one Parquet file."""

    async def read() -> list[dict[str, object]]:
        limit = asyncio.Semaphore(concurrency)
        limits = httpx.Limits(max_connections=concurrency)
        async with httpx.AsyncClient(limits=limits, verify=False) as client:

            async def page(number: int) -> list[dict[str, object]]:
                async with limit:
                    answer = await client.get(url, params={"page": number})
                records: list[dict[str, object]] = answer.json()["data"]
                return records

            found = await asyncio.gather(*(page(number) for number in range(1, pages + 1)))
        return [record for records in found for record in records]

    def run(folder: Path) -> int:
        frame = pl.DataFrame(asyncio.run(read()))
        frame.write_parquet(folder / "orders.parquet")
        return frame.height

    return run


def chunkmap_ingest(url: str, concurrency: int) -> Way:
    """Return a function that ingests all pages, without Prefect."""
    http = {
        "url": url,
        "records": "data",
        "pages": {"by": "page", "last": "pages"},
        "concurrency": concurrency,
    }

    def run(folder: Path) -> int:
        output = {"uri": f"file://{folder}/orders/"}
        definition = Ingest.model_validate({"name": "bench", "http": http, "output": output})
        return ingest(definition, load_settings()).rows

    return run


def dlt_run(python: str, url: str, pages: int, concurrency: int) -> Way:
    """Return a function that runs dlt in a process of its own; its start is in its time."""

    def run(folder: Path) -> int:
        command = [python, "-c", _DLT, url, str(pages), str(concurrency), str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(done.stdout.split()[-1])

    return run


Best = dict[str, tuple[float, float]]
"""Seconds and processor seconds of each way; dlt's are those of its own process."""


def measure(ways: dict[str, Way], rows: int, repeats: int) -> Best:
    """Measure in turns; returns the best of each."""
    best = dict.fromkeys(ways, (float("inf"), float("inf")))
    for number in range(repeats):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(prefix="chunkmap-ingest-") as folder:
                started, busy = time.perf_counter(), _processor_seconds()
                found = way(Path(folder))
                seconds = time.perf_counter() - started
                busy = _processor_seconds() - busy
            if found != rows:
                raise SystemExit(f"{name} brought {found:,} rows instead of {rows:,}")
            best[name] = (min(best[name][0], seconds), min(best[name][1], busy))
            print(f"{number + 1}  {name:<12}  {seconds:6.2f} s  {busy:6.2f} s", file=sys.stderr)
    return best


def _processor_seconds() -> float:
    """Return the processor time of this process, and of those that it has waited for."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def table(best: Best, pages: int) -> str:
    """Return the result as a table of Markdown."""
    first = best["plain httpx"][0]
    lines = [
        "| | seconds | processor seconds | pages/s | times plain httpx |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, (seconds, busy) in best.items():
        figures = f"{seconds:.2f} | {busy:.2f} | {pages / seconds:,.0f} | {seconds / first:.2f}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def main() -> int:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="of each answer")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dlt", help="Python of an environment that has dlt[filesystem,parquet]")
    parser.add_argument("--json", action="store_true", help="print the seconds as JSON")
    given = parser.parse_args()
    command = [sys.executable, "-c", _SERVER, str(given.pages), str(given.milliseconds / 1000)]
    with subprocess.Popen([*command, str(RECORDS)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/orders"
            ways = {
                "plain httpx": plain_httpx(url, given.pages, given.concurrency),
                "chunkmap": chunkmap_ingest(url, given.concurrency),
            }
            if given.dlt:
                ways["dlt"] = dlt_run(given.dlt, url, given.pages, given.concurrency)
            best = measure(ways, given.pages * RECORDS, given.repeats)
        finally:
            server.terminate()
    print(json.dumps(best) if given.json else table(best, given.pages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
