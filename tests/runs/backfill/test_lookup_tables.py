"""Backfills whose transform reads a table."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.errors import ConflictError
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage.lookup_tables import resolve_table
from tests.support.backfills import Days, days

TRANSFORM = """
from pipeline import read_table

def priced(frame, table):
    return frame.join(read_table(table).lazy(), how="cross")
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path)
    (tmp_path / f"{made.module}.py").write_text(TRANSFORM)
    made.write(days("2024-02-27", 3))
    price(made, 1.0)
    return made


def price(world: Days, value: float) -> None:
    path = world.root / "price.parquet"
    pl.DataFrame({"price": [value]}).write_parquet(path)
    os.utime(path, ns=(int(value * 1e9), int(value * 1e9)))


def table(world: Days) -> str:
    return f"file://{world.root}/price.parquet"


def job(world: Days) -> Job:
    return world.job("priced", params={"table": table(world)})


def test_all_runs_have_the_version_of_the_plan(world: Days) -> None:
    store = world.create(job(world))
    assert store.record().tables == (resolve_table(table(world)),)
    world.drive(store)
    for run in store.windows()["run"].unique():
        record = Ledger(world.storage, world.output, run).record()
        assert record.tables == store.record().tables


def test_windows_whose_table_was_replaced_have_changed(world: Days) -> None:
    first = world.run(job(world))
    assert first.counts["done"] == 3
    assert world.draft(job(world), reprocess="changed").record.todo == 0
    price(world, 2.0)
    assert world.draft(job(world)).record.todo == 0  # They are not missing.
    world.run(job(world), reprocess="changed")
    assert world.rows()["price"].unique().to_list() == [2.0]


def test_an_unfinished_backfill_does_not_go_on_with_another_version(world: Days) -> None:
    store = world.create(job(world), WindowSelection("2024-02-27", "2024-02-29"))
    price(world, 2.0)
    with pytest.raises(ConflictError, match=r"price\.parquet.* was replaced") as caught:
        world.create(job(world), WindowSelection("2024-02-27", "2024-02-29"))
    assert f"backfill cancel {store.backfill}" in str(caught.value.hint)
    other = world.create(job(world))
    assert other.backfill != store.backfill
