"""Ingest, map and load as stages: once, again, after a kill anywhere, and for dates in turn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.pipelines.summary import PipelineSummary, StageConflictError, StageRefusedError
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.storage import RetryPolicy, Storage
from pipeline.storage.local_backend import LocalBackend
from tests.pipelines.conftest import Folder
from tests.servers.api import Api, Reply, serving
from tests.support.faulty_storage import Faulty, KilledError, dies_at
from tests.support.instants import instants

ORDERS = [
    {"id": n, "day": str(date(2024, 3, 1) + timedelta(n % 3)), "total": n % 7} for n in range(36)
]
CODE = """\
import polars as pl


def totals(orders):
    return orders.group_by("day").agg(pl.len().alias("orders"), pl.col("total").sum())


def tell(facts):
    pass
"""
STAGES = """\
  - name: orders
    ingest:
      name: orders
      http: {url: URL, records: data, pages: {by: page}, retries: 0}
      window: {from: "{{ date }}", to: "{{ date + 1d }}", parameters: [since, until]}
      output: {uri: orders, mode: append, partition_by: [day]}
  - name: totals
    map:
      name: totals
      input: {uri: orders/, filter: [[day, "==", "{{ date }}"]], hive_types: {day: date}}
      transform: MODULE:totals
      output: {uri: totals, mode: overwrite-partitions}
    when: rows > 0
  - name: warehouse
    load: {name: warehouse, input: {uri: totals/}, into: {uri: w.duckdb, table: totals}}
  - {name: tell, call: "MODULE:tell", when: input.changed}
"""


def of_day(params: Any) -> list[dict[str, Any]]:
    return [o for o in ORDERS if params["since"] <= str(o["day"]) < params["until"]]


@pytest.fixture
def shop(folder: Folder) -> Iterator[Api]:
    folder.code(CODE)
    with serving(Api(ORDERS, only=of_day)) as api:
        yield api


def daily(folder: Folder, api: Api, day: str, stages: str = STAGES) -> Any:
    return folder.pipeline(stages.replace("URL", api.url), "{date: date}", date=day)


def in_table(path: Path) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path / "w.duckdb")) as connection:
        sql = "SELECT day::VARCHAR, * EXCLUDE (day) FROM totals ORDER BY ALL"
        return list(connection.execute(sql).fetchall())


def expected(*days: str) -> list[tuple[Any, ...]]:
    """What a plain loop computes."""
    by_day = {day: [o for o in ORDERS if o["day"] == day] for day in days}
    return [(d, len(some), sum(int(str(o["total"])) for o in some)) for d, some in by_day.items()]


def rows(summary: PipelineSummary) -> list[int]:
    return [stage.rows for stage in summary.stages]


def test_days_in_turn_and_again(folder: Folder, shop: Api) -> None:
    first = folder.run(daily(folder, shop, "2024-03-01"))
    assert folder.states(first) == ["done"] * 4
    assert rows(first) == [12, 1, 1, 0]
    folder.run(daily(folder, shop, "2024-03-02"))
    assert in_table(folder.root) == expected("2024-03-01", "2024-03-02")
    asked = len(shop.queries)
    again = folder.run(daily(folder, shop, "2024-03-01"))
    assert folder.states(again) == ["unchanged", "unchanged", "unchanged", "skipped"]
    assert (folder.ran, len(shop.queries)) == ([], asked)
    assert rows(again)[:2] == [12, 1]
    assert in_table(folder.root) == expected("2024-03-01", "2024-03-02")


def test_a_day_without_orders_is_passed_over(folder: Folder, shop: Api) -> None:
    summary = folder.run(daily(folder, shop, "2024-06-01"))
    assert folder.states(summary) == ["done", "skipped", "skipped", "skipped"]
    assert not (folder.root / "w.duckdb").exists()


def test_lost_notes_repeat_checks_alone(folder: Folder, shop: Api) -> None:
    pipeline = daily(folder, shop, "2024-03-01")
    folder.run(pipeline)
    (folder.root / "notes" / "runs" / f"{pipeline.run}.json").unlink()
    asked = len(shop.queries)
    summary = folder.run(pipeline)
    assert folder.states(summary) == ["unchanged", "unchanged", "unchanged", "skipped"]
    assert len(shop.queries) == asked and in_table(folder.root) == expected("2024-03-01")


def test_a_changed_transform_runs_again_with_what_follows(folder: Folder, shop: Api) -> None:
    stages = STAGES.replace("table: totals}", "table: totals, mode: replace}")
    folder.run(daily(folder, shop, "2024-03-01", stages))
    folder.code(CODE.replace('pl.col("total").sum()', 'pl.col("total").sum() * 2'))
    summary = folder.run(daily(folder, shop, "2024-03-01", stages))
    assert folder.states(summary) == ["unchanged", "done", "done", "done"]
    [(day, count, total)] = expected("2024-03-01")
    assert in_table(folder.root) == [(day, count, total * 2)]


def test_an_overwritten_result_is_not_taken_for_another(folder: Folder, shop: Api) -> None:
    """The date of an earlier run has been overwritten: to load it would load another date."""
    stages = STAGES.replace("totals, mode: overwrite-partitions", "totals, mode: overwrite")
    stages = stages.replace("table: totals}", "table: totals, mode: replace}")
    folder.run(daily(folder, shop, "2024-03-01", stages))
    folder.run(daily(folder, shop, "2024-03-02", stages))
    with pytest.raises(StageConflictError, match=r"stage totals: .*no longer has") as caught:
        folder.run(daily(folder, shop, "2024-03-01", stages))
    assert caught.value.exit_code == 3 and "overwrite-partitions" in str(caught.value.hint)
    assert in_table(folder.root) == expected("2024-03-02")


def test_a_source_that_refuses_stops_the_pipeline(folder: Folder, shop: Api) -> None:
    shop.script = lambda query, times: Reply(401)
    with pytest.raises(StageRefusedError, match=r"stage orders: .*401") as caught:
        folder.run(daily(folder, shop, "2024-03-01"))
    assert caught.value.exit_code == 2
    shop.script = lambda query, times: None
    assert folder.states(folder.run(daily(folder, shop, "2024-03-01"))) == ["done"] * 4


@pytest.mark.sampled(3)
@pytest.mark.faults
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("stage", ["orders", "totals", "warehouse"])
def test_killed_at_a_stage_and_repeated(folder: Folder, shop: Api, stage: str, after: bool) -> None:
    pipeline = daily(folder, shop, "2024-03-01")
    with pytest.raises(KilledError):
        folder.run(pipeline, dies=stage, after=after)
    summary = folder.run(pipeline)
    assert in_table(folder.root) == expected("2024-03-01")
    assert not shop.twice()
    # Whoever did the work, the stage after it sees that its input has changed.
    assert summary.stages[-1].state == "done" and summary.attempt == 1
    assert all(result.changed for result in summary.stages)


@pytest.mark.faults
def test_killed_at_a_request_of_storage_and_repeated(folder: Folder, shop: Api) -> None:
    """The driver ends at one of its requests; the next one goes on, until none ends."""
    pipeline = daily(folder, shop, "2024-03-01")
    ended = 0
    for number in instants(400, "pipeline", step=12):
        dying = Faulty(LocalBackend(), dies_at(number, "after"), KilledError)
        storage = Storage({"file": dying, "s3": dying}, RetryPolicy(attempts=1))
        try:
            # The driver that died seems to be alive: it is this process.
            folder.run(pipeline, storage=storage, resume=ResumeOptions(take_over=True))
        except KilledError:
            ended += 1
            continue
        break
    assert ended >= 5
    assert in_table(folder.root) == expected("2024-03-01")
    folder.run(daily(folder, shop, "2024-03-02"))
    assert in_table(folder.root) == expected("2024-03-01", "2024-03-02")


PRICES = """\
  - name: prices
    refresh: true
    ingest:
      name: prices
      http: {url: URL, records: data, pages: {by: page}, retries: 0}
      output: {uri: prices, mode: overwrite}
  - {name: tell, call: "MODULE:tell", when: input.changed}
"""


@pytest.mark.faults
@pytest.mark.parametrize("after", [False, True])
def test_a_refreshed_ingest_asks_again_once_each_time(folder: Folder, after: bool) -> None:
    folder.code(CODE)
    with serving(Api(ORDERS[:12])) as api:
        pipeline = folder.pipeline(PRICES.replace("URL", api.url))
        assert folder.states(folder.run(pipeline)) == ["done", "done"]
        asked = len(api.queries)
        with pytest.raises(KilledError):
            folder.run(pipeline, dies="prices", after=after)
        folder.run(pipeline)
        assert len(api.queries) == 2 * asked
        # The call before was of the ingest before; it is made again for this one.
        assert folder.ran == (["tell"] if after else ["prices", "tell"])
        folder.run(pipeline)
        assert len(api.queries) == 3 * asked
