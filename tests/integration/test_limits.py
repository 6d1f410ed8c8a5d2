"""Several runs share one S3: a limit in Prefect, of which each batch holds a slot."""

from itertools import pairwise

import polars as pl
import pytest

from pipeline.ledger import Ledger
from tests.integration.world import World

pytestmark = pytest.mark.integration


def make_limit(world: World, name: str, slots: int) -> None:
    limit = {"name": name, "limit": slots, "active": True}
    world.ask_prefect("v2/concurrency_limits/", limit)


def spans(world: World, run: str, output: str) -> list[tuple[float, float]]:
    """From the first chunk's beginning to the last one's end, of each batch, in order of time."""
    done = Ledger(world.storage, output, run).read().completions
    ends = done.group_by("batch").agg(
        pl.col("started").min(), ended=(pl.col("started") + pl.col("seconds")).max()
    )
    return sorted(ends.select("started", "ended").iter_rows())


def test_batches_take_turns_where_the_limit_is_one(world: World) -> None:
    make_limit(world, "one-at-a-time", 1)
    job = world.job("turns", "shop.transforms:slow", params={"seconds": 0.05})
    done = world.chunkmap("run", job, "--json", CHUNKMAP_BATCHES__CONCURRENCY_LIMIT="one-at-a-time")
    assert done.code == 0, done.err
    found = spans(world, done.data["run"], "s3://demo/out/turns/")
    assert len(found) > 2
    assert all(before[1] <= after[0] + 0.05 for before, after in pairwise(found))
