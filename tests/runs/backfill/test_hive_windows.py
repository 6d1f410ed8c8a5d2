"""Backfills over folders of years, months and days, and what they say of what they leave out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.cli.backfill import create as create_command
from pipeline.cli.backfill import show
from pipeline.cli.backfill.plan_view import plan_to_dict, show_plan
from pipeline.cli.output import out
from pipeline.config.job import Job, parse_job
from pipeline.errors import JobError
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.plan import Draft, WindowSelection, create, draft
from pipeline.runs.backfill.records import BackfillRecord, Options
from pipeline.runs.backfill.status import read_status
from pipeline.runs.driver.dry_run import try_transform
from pipeline.table.scan import scan_output
from tests.runs.driver.test_hive_outputs import World

DAYS = {"columns": ["year", "month", "day"], "grain": "day"}
NULL = "__HIVE_DEFAULT_PARTITION__"
FOLDERS = {
    "year=2024/month=02/day=28": 0,
    "year=2024/month=02/day=29": 10,
    "year=2024/month=03/day=01": 20,
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    made = World(tmp_path)
    made.write(FOLDERS)
    yield made


def job_of(world: World, **more: Any) -> Job:
    window = more.pop("window", DAYS)
    return world.job("same", "overwrite-partitions", window=window, **more)


def drafted(world: World, job: Job, asked: WindowSelection | None = None, **options: Any) -> Draft:
    return draft(job, world.settings, world.storage, asked or WindowSelection(), Options(**options))


def test_a_backfill_of_days_in_folders_of_parts(world: World) -> None:
    world.backfill(job_of(world), WindowSelection("2024-02-28", "2024-03-01"))
    assert world.ids() == {
        "year=2024/month=02/day=28": [0, 1],
        "year=2024/month=02/day=29": [10, 11],
    }
    world.backfill(job_of(world))
    world.write({"year=2024/month=02/day=29": 50})
    world.backfill(job_of(world), reprocess="changed")
    assert world.ids() == {**{f: [n, n + 1] for f, n in FOLDERS.items()},
                           "year=2024/month=02/day=29": [50, 51]}  # fmt: skip
    leap = scan_output(world.output, window="2024-02-29").collect()
    assert leap.select("id", "year", "month", "day").rows() == [
        (50, 2024, 2, 29),
        (51, 2024, 2, 29),
    ]


def test_months_of_days_in_folders_of_parts(world: World) -> None:
    job = job_of(world, window={**DAYS, "grain": "month"})
    world.backfill(job, WindowSelection("2024-02", "2024-03"))
    assert sorted(world.ids()) == ["year=2024/month=02/day=28", "year=2024/month=02/day=29"]
    (world.root / "in/year=2024/month=02/day=29/a.parquet").unlink()
    world.backfill(job, reprocess="changed")
    assert sorted(world.ids()) == ["year=2024/month=02/day=28", "year=2024/month=03/day=01"]


def test_what_a_run_has_published_counts_as_held(world: World) -> None:
    world.run(world.job("same"))
    record = drafted(world, job_of(world)).record
    assert (record.windows, record.todo, record.column) == (3, 0, "year, month, day")


WINDOW = """
name: daily
input: {uri: s3://b/in/}
transform: pipeline.examples.revenue:revenue
output: {uri: s3://b/out/, mode: overwrite-partitions}
window: {columns: [year, month, day], grain: day}
"""


def test_columns_of_a_window_come_back_as_they_were() -> None:
    job = parse_job(WINDOW)
    assert job.window is not None
    assert job.window.windowing().columns == ("year", "month", "day")
    assert parse_job(job.to_yaml()) == job


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("window: {column: ds, columns: [year, month]}", "set `column`, or `columns`"),
        ("window: {grain: day}", "set `column`, or `columns`"),
        ("window: {columns: [year, month], grain: value}", "the grain cannot be value"),
        ("window: {columns: [year, year]}", "from coarse to fine"),
    ],
)
def test_columns_that_cannot_be(new: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        parse_job(WINDOW.replace(WINDOW.splitlines()[-1], new))


# -- what is left out ---------------------------------------------------------------------------


def dated(world: World) -> Job:
    """A job over daily folders of which one is null; three objects are not named as Parquet is."""
    world.write({"../dated/ds=2024-01-01": 0, f"../dated/ds={NULL}": 10})
    for name in ("x.csv", "y.gz", "z.txt"):
        (world.root / "dated" / "ds=2024-01-01" / name).write_text("x")
    window = {"column": "ds", "grain": "day"}
    return job_of(world, window=window, input={"uri": str(world.root / "dated")})


def test_what_is_in_no_window_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    planned = drafted(world, dated(world))
    record = planned.record
    size = (world.root / "dated" / f"ds={NULL}" / "a.parquet").stat().st_size
    assert (record.outside_objects, record.outside_bytes) == (1, size)
    assert record.outside_folders == (f"ds={NULL}",)
    told = f"1 object of the input ({size} B) is in no window, and no backfill reads it: ds={NULL}"
    assert record.outside == told
    show_plan(planned, None)
    shown = " ".join(capsys.readouterr().out.split())
    assert "is in no window" in shown
    found = plan_to_dict(planned, None)
    assert (found["outside_objects"], found["outside_bytes"]) == (1, size)
    created = create(world.storage, planned)
    assert created is not None, "there is something to do"
    store, _ = created
    summary = BackfillDriver(store, world.settings, NoBackfillOrchestrator()).run()
    assert summary.notes == (told,)
    seen = read_status(store)
    assert seen.to_dict()["record"]["outside_folders"] == (f"ds={NULL}",)
    out.print(show._render(seen, 10))
    assert "is in no window" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_do_tells_it_too(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = dated(world)
    world.backfill(job)
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    create_command.create(
        tmp_path / "job.yaml",
        WindowSelection(),
        Options(),
        None,
        accept_code=False,
        take_over=False,
        detach=False,
        as_json=True,
    )
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "nothing to do"
    assert "in no window" in found["notes"][0]


def test_many_values_in_no_window_are_counted(world: World) -> None:
    world.write({f"../dated/a={n}/ds={NULL}": n for n in range(3)})
    world.write({f"../dated/b={n}": n for n in range(7)} | {"../dated/ds=2024-01-01": 100})
    window = {"columns": ["ds", "h"], "grain": "hour"}
    world.write({"../dated/ds=2024-01-01/h=1": 0})
    source = {"uri": str(world.root / "dated"), "schema": "union"}
    record = drafted(world, job_of(world, window=window, input=source)).record
    assert (record.outside_objects, record.windows) == (11, 1)
    assert record.outside_folders == ("ds=2024-01-01/no h", f"ds={NULL}/no h", "no ds/no h")


def test_a_record_of_an_earlier_release_says_nothing_of_it(world: World) -> None:
    planned = drafted(world, dated(world))
    stored = planned.record.model_dump()
    old = {k: v for k, v in stored.items() if not k.startswith("outside")}
    assert BackfillRecord.model_validate(old).outside is None


def test_odd_names_are_told_by_run_check_and_backfill(world: World) -> None:
    job = dated(world)
    told = "3 objects are left out: not named *.parquet"
    assert any(note.startswith(told) for note in drafted(world, job).notes)
    whole = job.model_copy(update={"window": None})
    notes = try_transform(whole, world.settings, world.storage, 5).notes
    assert any(note.startswith(told) and "input.include" in note for note in notes)
    summary = world.run(whole)
    [note] = [note for note in summary.notes if note.startswith(told)]
    assert "x.csv (select them with input.include" in note
    assert pl.read_parquet(f"{world.output}/**/*.parquet").height == 4
