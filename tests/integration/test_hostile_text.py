"""Hostile names, values, labels and errors on the real stack: a terminal only ever shows text."""

from __future__ import annotations

from urllib.parse import quote

import polars as pl
import pytest

from pipeline.runs.backfill.store import backfills_of
from tests.integration.world import World, parquet
from tests.support.hostile_text import ESCAPES, HOSTILE, assert_harmless, give

pytestmark = pytest.mark.integration

INPUT = "s3://demo/hostile/"
FAILS = f"""

import polars as pl


def fails(frame: pl.LazyFrame) -> pl.LazyFrame:
    def fail(rows: pl.DataFrame) -> pl.DataFrame:
        if rows.height:
            raise ValueError({HOSTILE!r} + "\\nnext:  forged" + rows[rows.columns[0]][0])
        return rows

    return frame.map_batches(fail)
"""


@pytest.fixture(scope="module", autouse=True)
def data(world: World) -> None:
    """Two windows with hostile labels, which are percent-encoded in keys as Hive does."""
    frame = pl.DataFrame({HOSTILE: list(ESCAPES.values())})
    for number in range(2):
        label = quote(f"{number}{HOSTILE}", safe="")
        world.storage.put(f"{INPUT}kind={label}/0.parquet", parquet(frame))
    (world.root / "shop" / "hostile.py").write_text(FAILS)


def job(world: World, name: str) -> str:
    return world.job(
        name,
        "shop.hostile:fails",
        INPUT,
        window={"column": "kind", "grain": "value"},
        output={"mode": "overwrite-partitions"},
        rounds=1,
        retries=0,
    )


@pytest.mark.long
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_every_look_at_a_run_that_failed(world: World, terminal: bool) -> None:
    name = f"hostile-{'terminal' if terminal else 'pipe'}"
    variables = world.variables()
    path = job(world, name)
    uri = f"s3://demo/out/{name}/"

    def see(*arguments: str, code: int = 0) -> str:
        printed = give(world.root, *arguments, terminal=terminal, environment=variables)
        assert printed.code == code, printed.text
        assert_harmless(printed, terminal=terminal)
        assert "\nnext:  forged" not in printed.text.replace("\r", "")
        return "".join(printed.text.split())

    assert "\\x1b[31;1mred" in see("run", path, code=1)
    assert "\\x1b[31;1mred" in see("status", "-o", uri, world_run(world, uri))
    see("backfill", "plan", path)
    assert "\\x1b[31;1mred" in see("backfill", "create", path, code=1)
    [record] = backfills_of(world.storage, uri)
    for command in ("status", "logs"):
        assert "\\x1b[31;1mred" in see("backfill", command, record.backfill, "-o", uri)
    see("backfill", "report", record.backfill, "-o", uri)
    page = next((world.root / ".chunkmap" / "reports").rglob("report.html")).read_text()
    assert "\x1b" not in page


def world_run(world: World, uri: str) -> str:
    answer = world.chunkmap("status", "-o", uri, "--json")
    [run] = [run for run in answer.data["runs"] if run["job"].startswith("hostile")]
    return str(run["run"])
