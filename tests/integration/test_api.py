"""The Python API on the real stack: the same output as on this machine alone."""

import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.integration.world import REPOSITORY, World, parquet
from tests.support import forks
from tests.support.api_snippet import DAYS

pytestmark = pytest.mark.integration

PROGRAM = """
import asyncio
import sys
import json
import polars as pl
import chunkmap as cm

def job(uri):
    sales = cm.read("s3://demo/sales/", filter=pl.col("id") > 1499)
    return sales.map("shop.transforms:total", params={"rate": 2.0}).write(uri, name="sales")

async def in_an_event_loop():
    return job("s3://demo/out/api-stack/").run(progress=False)

on_stack = asyncio.run(in_an_event_loop())
sys.path.insert(0, sys.argv[1])
from tests.support.api_snippet import facts, run_snippet

ORDERS = "s3://demo/api-orders/"
there = facts(run_snippet(ORDERS, "s3://demo/out/api-eur-there/"))
with cm.local(workers=1):
    named = job("s3://demo/out/api-local/")
    here = named.run()
    named.to_yaml("api.yaml")
    again = cm.Job.from_yaml("api.yaml").run()
    assert (again.id, again.summary.mapped) == (here.id, 0)
    same = facts(run_snippet(ORDERS, "s3://demo/out/api-eur-here/"))
print(json.dumps({
    "states": [on_stack.state, here.state],
    "pages": [run.status.page for run in (on_stack, here)],
    "snippet": [there, same],
}))
"""


def test_the_stack_and_this_machine_make_the_same_output(world: World) -> None:
    for number, day in enumerate(DAYS):
        data = parquet(pl.DataFrame({"id": [number], "usd": [number * 10.0]}))
        world.storage.put(f"s3://demo/api-orders/ds={day}/a.parquet", data)
    variables = world.variables()
    done = forks.give(
        str(REPOSITORY),
        code=PROGRAM,
        cwd=world.root,
        variables=variables,
        seconds=250,
        flows=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["states"] == ["done", "done"]
    assert result["pages"][0] and not result["pages"][1]
    there, here = (world.frame(f"s3://demo/out/api-{place}/") for place in ("stack", "local"))
    assert_frame_equal(there, here)
    assert there.height > 1000
    there, here = result["snippet"]
    assert there == here
    assert there["total"] == pytest.approx((10 + 20 + 30) * 0.92)
    assert there["states"] == ["done"] * 4 and there["ids"]
    places = ("s3://demo/out/api-eur-there/", "s3://demo/out/api-eur-here/")
    assert_frame_equal(*(world.frame(place) for place in places))
