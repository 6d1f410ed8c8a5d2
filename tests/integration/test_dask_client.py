"""A Dask cluster that the user has started, in the program that has its client."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from pipeline.cluster.versions import refuse_other_versions
from pipeline.errors import VersionMismatchError
from tests.integration.world import World, parquet

BATCHES = 20
SIZE = 2_000_000
"""Bytes of what a function by value holds."""
PROGRAM = """
import json
import os
import time

import polars as pl
from dask.distributed import Client, LocalCluster, get_client
from distributed.comm import tcp

import chunkmap as cm

written = 0


def count_written():
    write = tcp.TCP.write

    async def counted(self, message, *arguments, **options):
        global written
        size = await write(self, message, *arguments, **options)
        written += size
        return size

    tcp.TCP.write = counted


class Model:
    WEIGHTS = b""

    def __init__(self):
        self.size = len(self.WEIGHTS)
        self.now = self.most = 0

    def __call__(self, lf):
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.05)
        frame = lf.collect().with_columns(most=pl.lit(self.most))
        self.now -= 1
        return frame.lazy()


def job(output, **options):
    Model.WEIGHTS = os.urandom(SIZE)
    parts = cm.read("s3://demo/parts/")
    return parts.map(Model, chunks={"per_file": True}, **options).write(output)


def main():
    count_written()
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, resources={"GPU": 1}, **options) as cluster,
        Client(cluster) as client,
    ):
        cm.connect(client, batches={"max_chunks": 1, "seconds": 0.01})
        gpu = job("s3://demo/out/client-gpu/", resources={"GPU": 1})
        before = written
        run = gpu.run()
        sent = written - before
        try:
            job("s3://demo/out/client-tpu/", resources={"TPU": 1}).run()
        except cm.errors.EngineUnavailableError as error:
            refused = str(error)
        # As if all workers had joined after the start of the run: each asks for the function.
        import pipeline.flows.map_dataset as flow
        flow.check_code = lambda *_: None
        limited = job("s3://demo/out/client-limited/", concurrency=1).run()
        print(json.dumps({
            "batches": run.summary.batches,
            "sent": sent,
            "states": [run.state, limited.state],
            "refused": refused,
            "most": [cm.scan(r.output).collect()["most"].max() for r in (run, limited)],
            "default": get_client() is client and client.submit(sum, [1, 2]).result(),
        }))
    try:
        cm.connect(client)
    except cm.errors.UsageError as error:
        print(error)


if __name__ == "__main__":
    main()
"""


@pytest.mark.integration
def test_a_client_that_the_program_has(world: World, tmp_path: Path) -> None:
    for number in range(BATCHES):
        data = parquet(pl.DataFrame({"id": [number]}))
        world.storage.put(f"s3://demo/parts/{number:02d}.parquet", data)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("SIZE", str(SIZE)))
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=world.root,
        env=world.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line, closed = done.stdout.splitlines()[-2:]
    result = json.loads(line)
    assert result["batches"] == BATCHES
    assert result["states"] == ["done", "done"]
    assert result["most"] == [1, 1]
    assert "no worker of the Dask cluster offers {TPU: 1}" in result["refused"]
    assert result["default"] == 3
    assert "not connected: it is closed" in closed
    # To the scheduler, which is in the same process, and from it to two workers; the rest is what
    # the task runs take on both ways.
    assert 2 * SIZE < result["sent"] < 3 * SIZE + BATCHES * 100_000


def test_workers_without_chunkmap_are_refused() -> None:
    packages = {"distributed": "1", "polars": "1", "prefect": "1", "pyarrow": "1"}
    answer = {"host": {"python": "3.11.2"}, "packages": {**packages, "chunkmap": None}}

    async def get_versions(packages: list[str]) -> Any:
        return {"workers": {"tcp://10.0.0.7:1": answer}}

    client = SimpleNamespace(sync=lambda call: asyncio.run(call()), get_versions=get_versions)
    with pytest.raises(VersionMismatchError, match=r"none on tcp://10\.0\.0\.7:1") as refused:
        refuse_other_versions(client)
    assert "workers import chunkmap" in str(refused.value.hint)
