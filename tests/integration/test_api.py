"""The Python API on the real stack: the same output as on this machine alone."""

import json
import subprocess
import sys

import pytest
from polars.testing import assert_frame_equal

from tests.integration.world import World

pytestmark = pytest.mark.integration

PROGRAM = """
import asyncio
import json
import polars as pl
import chunkmap as cm

def job(uri):
    sales = cm.read("s3://demo/sales/", filter=pl.col("id") > 1499)
    return sales.map("shop.transforms:total", params={"rate": 2.0}).write(uri, name="sales")

async def in_an_event_loop():
    return job("s3://demo/out/api-stack/").run(progress=False)

on_stack = asyncio.run(in_an_event_loop())
FACTOR = 2.0

def by_value(uri):
    sales = cm.read("s3://demo/sales/", filter=pl.col("id") > 1499)
    double = lambda lf: lf.filter(pl.col("price") > 10).with_columns(total=pl.col("price") * FACTOR)
    return sales.map(double).write(uri)

sent = by_value("s3://demo/out/api-value/").run()
with cm.local(workers=1):
    here = job("s3://demo/out/api-local/").run()
print(json.dumps({
    "states": [on_stack.state, sent.state, here.state],
    "pages": [run.status().page for run in (on_stack, sent, here)],
}))
"""


def test_the_stack_and_this_machine_make_the_same_output(world: World) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=world.root,
        env=world.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["states"] == ["done", "done", "done"]
    assert all(result["pages"][:2]) and not result["pages"][2]
    places = ("stack", "value", "local")
    first, *others = (world.frame(f"s3://demo/out/api-{place}/").sort("id") for place in places)
    for other in others:
        assert_frame_equal(first, other)
    assert first.height > 1000
