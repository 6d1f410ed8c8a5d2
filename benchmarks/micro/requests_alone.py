"""What the S3 requests of small files take without anything else: the floor of `small-files`.

    python -m benchmarks.micro.requests_alone --files 20000

A run reads each file twice (to plan and to map), writes its result, copies that to where it is
published, and deletes what was staged. Here as many processes as there are cores do just that, with
obstore and bytes that nobody decodes, against an S3 server on the same cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import obstore
from obstore.store import S3Store

from benchmarks.micro.planning_server import BUCKET, KEY, SECRET, serve
from pipeline.concurrency import map_concurrently
from pipeline.storage.s3_copies import DELETED_KEYS

THREADS: Final = 8
"""Threads of each process."""

Step = Callable[[S3Store, Sequence[int], bytes], None]


def put_input(store: S3Store, numbers: Sequence[int], data: bytes) -> None:
    """Write the files that are read; not measured."""
    map_concurrently(lambda n: obstore.put(store, f"in/{n}", data), numbers, THREADS)


def read(store: S3Store, numbers: Sequence[int], data: bytes) -> None:
    """Read each file, which planning and mapping both do."""
    map_concurrently(lambda n: obstore.get(store, f"in/{n}").bytes(), numbers, THREADS)


def put(store: S3Store, numbers: Sequence[int], data: bytes) -> None:
    """Write each result where it is staged."""
    map_concurrently(lambda n: obstore.put(store, f"staged/{n}", data), numbers, THREADS)


def copy(store: S3Store, numbers: Sequence[int], data: bytes) -> None:
    """Copy each staged object on the server's side."""
    map_concurrently(lambda n: obstore.copy(store, f"staged/{n}", f"out/{n}"), numbers, THREADS)


def delete(store: S3Store, numbers: Sequence[int], data: bytes) -> None:
    """Delete the staged objects, many per request."""
    starts = range(0, len(numbers), DELETED_KEYS)
    parts = [[f"staged/{n}" for n in numbers[at : at + DELETED_KEYS]] for at in starts]
    map_concurrently(lambda part: obstore.delete(store, part), parts, THREADS)


STEPS: Final[dict[str, Step]] = {
    "read, to plan": read,
    "read, to map": read,
    "write": put,
    "copy": copy,
    "delete": delete,
}


def _do(step: Step, endpoint: str, size: int, numbers: Sequence[int]) -> None:
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    step(store, numbers, os.urandom(size))


def measure(files: int, size: int, processes: int) -> Iterator[tuple[str, float]]:
    """Yield the seconds of each step for all files, of a size in bytes."""
    shares = [range(files)[number::processes] for number in range(processes)]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chunkmap-requests-"))
        server = stack.enter_context(serve(Path(folder)))
        pool = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn")))
        list(pool.map(partial(_do, put_input, server.endpoint, size), shares))
        for name, step in STEPS.items():
            clock = time.perf_counter()
            list(pool.map(partial(_do, step, server.endpoint, size), shares))
            yield name, time.perf_counter() - clock


def main() -> None:
    """Measure, and print the milliseconds of each step per file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=4096, help="size of a file")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    total = 0.0
    for name, seconds in measure(given.files, given.bytes, given.processes):
        total += seconds
        print(f"{name:<14}{seconds / given.files * 1000:6.2f} ms per file", flush=True)
    print(f"{'together':<14}{total / given.files * 1000:6.2f} ms per file")


if __name__ == "__main__":
    main()
