"""The programs in examples/, as a reader starts them, on one stack."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import date

import duckdb
import pytest

from pipeline.cluster.local.processes import free_ports
from pipeline.table.scan import scan
from tests.contracts.source import ROOT, imports_of, python_files
from tests.docs.pages import missing, read
from tests.integration.world import World, tear_down
from tests.servers.postgres import PASSWORD, Postgres, postgres

PROGRAMS = sorted(path.parent.name for path in (ROOT / "examples").glob("*/__main__.py"))
PUBLIC = {
    "pipeline",
    "pipeline.config.ingest",
    "pipeline.ingest",
    "pipeline.storage",
}
"""What an example may import of this repository."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack in an empty folder, without settings."""
    world = World(tmp_path_factory.mktemp("examples"))
    try:
        answer = world.chunkmap("up")
        assert answer.code == 0, answer.err
        yield world
    finally:
        tear_down(world)


def output_of(stack: World, example: str, *arguments: str, **variables: str) -> str:
    """Run an example; return what it shows."""
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{example}", *arguments],
        cwd=stack.root,
        env=stack.variables(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.long
@pytest.mark.integration
def test_many_files_equal_the_loop_over_them(stack: World) -> None:
    shown = output_of(stack, "many_files", "--files", "24")
    # It compares its result with the loop's before it says how fast it was.
    assert missing(("read … 24 files", "rows … 9,600", "…times as fast"), shown) is None


@pytest.mark.long
@pytest.mark.integration
def test_a_large_set_is_mapped_over_workers(stack: World) -> None:
    shown = output_of(stack, "distributed", "--objects", "2")
    lines = ("500,000 trips are in …", "rows … 500,000 in, … out", "…matches its manifest…")
    assert missing(lines, shown) is None


@pytest.mark.long
@pytest.mark.integration
def test_apis_are_asked_at_once(stack: World) -> None:
    shown = output_of(stack, "async_apis", "--latency", "0.02")
    requests = ("100 requests, 1 at a time: …", "100 requests, 50 at a time: …")
    assert missing((*requests, "│ USD ┆ 100 …"), shown) is None


@pytest.mark.long
@pytest.mark.integration
def test_map_aggregate_map_forecasts_each_product(stack: World) -> None:
    shown = output_of(stack, "map_aggregate_map")
    lines = ("groups … pieces mapped (2,400 reduced rows in, 40 out)", "│ p39 …")
    assert missing(lines, shown) is None


@pytest.mark.long
@pytest.mark.integration
def test_a_month_gets_from_parquet_to_duckdb(stack: World) -> None:
    shown = output_of(stack, "parquet_polars_duckdb")
    assert missing(("loaded … 1 commit, 44,444 rows…",), shown) is None
    with duckdb.connect(stack.root / "shop.duckdb", read_only=True) as connection:
        months = connection.sql("SELECT month, count(*) FROM orders GROUP BY ALL").fetchall()
    assert months == [("2024-01", 44444)]


@pytest.fixture(scope="module")
def warehouse() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.mark.long
@pytest.mark.integration
def test_daily_orders_get_into_both_databases_once(stack: World, warehouse: Postgres) -> None:
    day = ("daily_etl", "2024-03-05", "--port", str(free_ports(1)[0]))
    into = ("--postgres", warehouse.uri())
    first, again = (output_of(stack, *day, *into, PGPASSWORD=PASSWORD) for _ in range(2))
    assert PASSWORD not in first + again
    stages = ("orders", "revenue", "duckdb", "postgresql")
    done = [f"{stage} done, 33 rows …" for stage in stages]
    assert missing((*done, "announce done …"), first) is None
    assert "ANNOUNCEMENT: the 33 orders of 2024-03-05 are in the warehouse\n" in first
    unchanged = [f"{stage} unchanged, 33 rows …" for stage in stages]
    assert missing((*unchanged, "announce unchanged …"), again) is None
    assert "ANNOUNCEMENT" not in again
    query = "SELECT count(*), count(DISTINCT id), CAST(sum(revenue * 100) AS BIGINT) FROM revenue"
    with duckdb.connect(stack.root / "shop.duckdb", read_only=True) as connection:
        rows = connection.sql(query).fetchall()
    assert rows == warehouse.run(query)
    assert rows[0][:2] == (33, 33)


@pytest.mark.long
@pytest.mark.integration
def test_what_is_done_depends_on_the_data_and_the_day(stack: World) -> None:
    shown = output_of(stack, "conditional", "--port", str(free_ports(1)[0]))
    assert shown.count("ALARM: no orders on 2024-03-08\n") == shown.count("ALARM") == 1
    friday = ("alarm done …", "totals skipped …", "by_hour skipped …", "week skipped …")
    saturday = ("alarm skipped …", "totals skipped …", "by_hour done, 12 …", "week skipped …")
    sunday = ("alarm skipped …", "totals done, 2 rows …", "by_hour skipped …", "week done, 2 …")
    assert missing((*friday, *saturday, *sunday), shown) is None
    week = scan(stack.settings, "s3://demo/examples/conditional/2024-03-10/week/").collect()
    assert dict(week.select("day", "orders").iter_rows()) == {
        date(2024, 3, 9): 150,
        date(2024, 3, 10): 40,
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_has_each_example(name: str) -> None:
    page = read(ROOT / "docs" / "examples.md")
    assert f"$ python -m examples.{name}" in page
    assert f"](../examples/{name}/__main__.py)" in page


def test_examples_use_what_is_public() -> None:
    private = [
        f"{item.module}:{item.line} imports {item.target}"
        for path in python_files("examples")
        for item in imports_of(path)
        if item.target.partition(".")[0] in {"benchmarks", "partitioning", "pipeline", "tests"}
        and not item.target.startswith("pipeline.examples.")
        and item.target not in PUBLIC
    ]
    assert not private


def test_examples_of_a_reader_are_found_beside_these() -> None:
    """Of two folders `examples` on the import path, an `__init__.py` would hide the other one."""
    assert not (ROOT / "examples" / "__init__.py").exists()
