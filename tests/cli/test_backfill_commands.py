"""`chunkmap backfill …` in this process, through the serial engine, on local files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.app import app
from pipeline.cli.backfill.progress import BackfillDisplay
from pipeline.cli.errors import describe, report_error
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.backfill.driver import BackfillDriver, Listener
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.plan import WindowSelection
from pipeline.runs.backfill.progress import WindowProgress
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.backfill.summary import BackfillIncompleteError, BackfillSummary
from pipeline.runs.driver.heartbeat import Heartbeat
from tests.support.backfills import Days, days
from tests.support.forks import give

LEAP = days("2024-02-26", 8)
BAD = ["2024-02-28", "2024-03-01"]


class Terminal:
    """Gives commands, and keeps what they say."""

    def __init__(self, world: Days, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self._capsys = capsys

    def file(self, job: Job) -> str:
        path = self.world.root / "job.yaml"
        path.write_text(job.to_yaml())
        return str(path)

    def failing(self) -> str:
        params = {"days": BAD, "fixed": str(self.world.root / "fixed")}
        return self.file(self.world.job("fails", params=params))

    def give(self, *arguments: str, code: int = 0) -> str:
        """Give a command; what it says, on both streams, must end with this exit code."""
        self._capsys.readouterr()
        said = ""
        try:
            found = app(["backfill", *arguments], standalone_mode=False) or 0
        except Exception as error:
            told = describe(error)
            assert told is not None, error
            found, said = told["exit_code"], f"{told['message']}\n{told['hint']}"
        shown = self._capsys.readouterr()
        assert found == code, f"{arguments} ended with {found}:\n{shown.out}{shown.err}{said}"
        return shown.out + shown.err + said

    def object(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The one object on stdout."""
        self._capsys.readouterr()
        try:
            app(["backfill", *arguments, "--json"], standalone_mode=False)
        except Exception as error:
            assert report_error(error, as_json=True) == code, error
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def only(self) -> BackfillStore:
        """The one backfill there is."""
        (record,) = backfills_of(self.world.storage, self.world.output)
        return BackfillStore(self.world.storage, record.output, record.backfill)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Days]:
    monkeypatch.chdir(tmp_path)
    one = Days(tmp_path)
    one.write(LEAP)
    yield one


@pytest.fixture
def terminal(
    world: Days, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    def serially(
        store: BackfillStore,
        settings: Settings,
        listen: Listener,
        again: BackfillResumeOptions,
        **more: Any,
    ) -> BackfillSummary:
        return BackfillDriver(store, settings, NoBackfillOrchestrator(), again, listen).run()

    monkeypatch.setattr("pipeline.flows.launch.launch_backfill", serially)
    return Terminal(world, capsys)


def alive(store: BackfillStore) -> Heartbeat:
    """As if this process drove it."""
    driver = Heartbeat.of(store.storage, store.prefix)
    driver.write("running")
    return driver


def test_plan_shows_months_and_writes_nothing(terminal: Terminal) -> None:
    before = sorted(terminal.world.root.rglob("*"))
    job = terminal.file(terminal.world.job())
    said = terminal.give("plan", job, "--from", "2024-02-27", "--to", "2024-03-03")
    rows = [line.split() for line in said.splitlines() if line.startswith(("2024-0", "total"))]
    assert rows[0][:3] == ["2024-02", "3", "3"] and rows[1][:3] == ["2024-03", "2", "2"]
    assert rows[2][:3] == ["total", "5", "5"]
    assert "nothing was written" in said and "unknown: no earlier run" in said
    after = set(terminal.world.root.rglob("*")) - set(before)
    assert {path.name for path in after if "__pycache__" not in str(path)} == {"job.yaml"}
    told = terminal.object("plan", job, "--last", "3d", "--allow-missing")
    assert (told["windows"], told["todo"], len(told["missing"])) == (3, 0, 3)


def test_plan_says_why_windows_are_left_alone(terminal: Terminal) -> None:
    world = terminal.world
    world.run(world.job(), WindowSelection("2024-02-26", "2024-02-28"))
    job = terminal.file(world.job())
    said = terminal.give("plan", job)
    assert "2 done by" in said and "2024-02-26..2024-02-27" in said
    assert "estimated from" in said
    told = terminal.object("plan", job, "--reprocess", "all", "--canary", "2")
    assert (told["todo"], told["chunks"]) == (8, 16)
    assert told["forecast"]["seconds"] > 0
    assert sum(window["canary"] for window in told["window_list"]) == 2


def test_create_drives_and_is_one(terminal: Terminal) -> None:
    job = terminal.file(terminal.world.job())
    said = terminal.give("create", job, "--from", "2024-02-26", "--to", "2024-03-05")
    assert "8 of 8 published, 0 failed" in said
    assert "report.html" in said and list(terminal.world.root.rglob("report.html"))
    assert "Nothing to do" in terminal.give("create", job)
    told = terminal.object("create", job)
    assert told["state"] == "nothing to do"
    listed = terminal.object("list")["backfills"]
    assert [(backfill["state"], backfill["done"], backfill["todo"]) for backfill in listed] == [
        ("done", 8, 8)
    ]
    assert "is done" in terminal.give("resume", terminal.only().backfill[:4])
    assert terminal.only().backfill in terminal.give("status", "last")


def test_failures_are_told_as_they_happen(terminal: Terminal) -> None:
    said = terminal.give("create", terminal.failing(), code=1)
    # As many as had failed by then: all are in the end's count.
    told = re.findall(r"^✗ [1-4] chunks? failed: TransformError: .*", said, re.MULTILINE)
    assert len(told) == 1
    assert re.search(r"cannot do (\S+) \(e\.g\. window \1\)$", told[0])


def test_a_range_needs_one_bound(terminal: Terminal) -> None:
    job = terminal.file(terminal.world.job())
    told = terminal.object("plan", job, "--from", "2024-03-01")
    labels = [window["label"] for window in told["window_list"]]
    assert (labels[0], labels[-1]) == ("2024-03-01", "2024-03-04")
    assert told["asked"] == "2024-03-01 to the end of the input"
    told = terminal.object("plan", job, "--to", "2024-02-28")
    labels = [window["label"] for window in told["window_list"]]
    assert labels == ["2024-02-26", "2024-02-27"]


def test_failures_are_shown_and_retried(terminal: Terminal) -> None:
    job = terminal.failing()
    told = terminal.object("create", job, code=1)
    assert told["counts"]["failed"] == 2 and told["exit_code"] == 1
    assert list(terminal.world.root.rglob("report.html"))
    backfill = terminal.only().backfill
    said = terminal.give("status", backfill)
    assert said.count("✗1") == 2 and "4 chunks in 2 windows: TransformError" in said
    assert f"chunkmap backfill retry {backfill}" in said
    logs = terminal.give("logs", backfill, "--window", "2024-02-28")
    assert logs.count("cannot do 2024-02-28") >= 2 and "Traceback" in logs
    tries = terminal.object("logs", backfill)["attempts"]
    assert {attempt["window"] for attempt in tries} == set(BAD)
    (terminal.world.root / "fixed").touch()
    said = terminal.give("retry", backfill, "--window", BAD[0], code=1)
    assert "1 of 8 windows failed" in said
    assert terminal.object("status", backfill)["counts"]["failed"] == 1
    said = terminal.give("retry", backfill, "--failed")
    assert "8 of 8 published" in said
    assert terminal.object("status", backfill)["state"] == "done"
    assert "there is nothing to retry" in terminal.give("retry", backfill)


def test_a_canary_is_held_and_let_go(terminal: Terminal) -> None:
    job = terminal.file(terminal.world.job())
    said = terminal.give("create", job, "--canary", "25%", "--canary-hold", code=1)
    assert "2 windows done, 0 failed; 0 of 4 chunks failed (0.0%)" in said
    backfill = terminal.only().backfill
    assert terminal.object("status", backfill)["state"] == "held"
    assert "8 of 8 published" in terminal.give("resume", backfill)


def test_wishes_reach_who_drives(terminal: Terminal) -> None:
    world = terminal.world
    store = world.create(world.job())
    here = ("--output", world.output)
    backfill = store.backfill
    driver = alive(store)
    assert "no more are started" in terminal.give("pause", backfill, *here)
    assert store.control().paused
    assert "is resumed" in terminal.give("resume", backfill, *here)
    assert not store.control().paused and not store.control().approved
    terminal.give("set", backfill, "--max-active", "9", "--priority", "-2", *here)
    assert (store.control().max_active, store.control().priority) == (9, -2)
    assert terminal.object("retry", backfill, *here)["retries"] == 1
    refused = terminal.give("retry", backfill, "--window", "2024-02-27", *here, code=2)
    assert "drives backfill" in refused
    job = terminal.file(world.job())
    assert "drives it already" in terminal.give("create", job, "--detach")
    assert "stops within seconds" in terminal.give("cancel", backfill, *here)
    driver.write("cancelled")
    for command in ("resume", "retry", "pause"):
        assert "is cancelled and cannot be resumed" in terminal.give(
            command, backfill, *here, code=2
        )
    assert terminal.object("status", backfill, *here)["state"] == "cancelled"


def test_a_pause_names_the_command_that_ends_it(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    world = terminal.world
    store = world.create(world.job())
    with BackfillDisplay(f"chunkmap backfill resume {store.backfill}") as display:
        display.show(WindowProgress(store.windows()), "paused")
    assert f"to resume: chunkmap backfill resume {store.backfill}\n" in capsys.readouterr().err


def test_cancelling_says_what_stays(terminal: Terminal) -> None:
    world = terminal.world
    params = {"days": [str(day) for day in LEAP[1:]], "fixed": str(world.root / "fixed")}
    store = world.create(world.job("fails", params=params))
    with pytest.raises(BackfillIncompleteError):
        world.drive(store)
    said = terminal.give("cancel", store.backfill, "--output", world.output)
    assert "it had no driver; the output keeps 1 published window\n" in said


def test_other_code_is_a_conflict_until_it_is_accepted(terminal: Terminal) -> None:
    job = terminal.failing()
    terminal.give("create", job, code=1)
    backfill = terminal.only().backfill
    code = terminal.world.root / f"{terminal.world.module}.py"
    code.write_text(code.read_text().replace("cannot do", "still cannot do"))
    (terminal.world.root / "fixed").touch()
    for command in (("create", job), ("resume", backfill), ("retry", backfill)):
        assert "--accept-code" in terminal.give(*command, code=3)
    assert "8 of 8 published" in terminal.give("create", job, "--accept-code")


@pytest.mark.usefixtures("drawn")
def test_report(terminal: Terminal) -> None:
    terminal.give("create", terminal.failing(), code=1)
    told = terminal.object("report", terminal.only().backfill)
    page = Path(told["local_report"]).read_text()
    assert page.count("data-chart>") == 3 and "cannot do" in page
    assert terminal.world.storage.get(told["report"]).data.decode() == page


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "flags", "part"),
    [
        ({"window": {"column": "dsx", "grain": "day"}}, (), "no Hive column 'dsx'"),
        ({"window": {"column": "ds", "grain": "hour"}}, (), "a whole day"),
        ({"window": None}, (), "has no windows"),
        ({}, ("--from", "2024-03-02", "--to", "2024-03-01"), "empty range"),
        ({}, ("--from", "2025-03-01"), "is after the end of the input, whose last window is"),
        ({}, ("--to", "2024-01-01"), "is an empty range"),
        ({}, ("--from", "2024-03-01", "--to", "2024-03-08"), "2024-03-05 to 2024-03-07"),
        ({}, ("--values", "2024-02-30"), "not a date"),
        ({}, ("--last", "3x"), "'3x' is not a span"),
        ({}, ("--last", "3d", "--values", "a"), "exclude each other"),
        ({}, ("--exclude", "2020-01-01"), "names none of the 8 windows"),
        ({}, ("--canary", "150%"), "--canary 150% is not between 0% and 100%"),
        ({}, ("--max-failures", "many"), "neither a number nor a share"),
        ({}, ("--canary-hold",), "need a canary"),
        ({}, ("--all-or-nothing", "--windows-per-run", "2"), "drop --windows-per-run"),
        ({}, ("--windows-per-run", "2", "--bytes-per-run", "1GB"), "exclude each other"),
        ({}, ("--bytes-per-run", "much"), "a size such as 128MiB"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    terminal: Terminal, change: dict[str, Any], flags: tuple[str, ...], part: str
) -> None:
    job = terminal.file(terminal.world.job(**change))
    for command in ("plan", "create"):
        assert part in terminal.give(command, job, *flags, code=2)
    assert not list(terminal.world.root.glob("out*"))


def test_ids_that_do_not_exist(terminal: Terminal) -> None:
    assert "no output is known on this machine" in terminal.give("status", "abc", code=2)
    terminal.give("create", terminal.file(terminal.world.job()))
    backfill = terminal.only().backfill
    near = backfill[:-1] + ("0" if backfill[-1] != "0" else "1")
    said = terminal.give("status", near, code=2)
    assert f"there is no backfill '{near}'" in said and f"nearest: {backfill}" in said
    said = terminal.give("logs", backfill, "--window", "2024-07-01", code=2)
    assert "names none of the 8 windows" in said
    assert "nothing to set" in terminal.give("set", backfill, code=2)
    assert "nothing to retry" in terminal.give("retry", backfill, "-w", "2024-02-27", code=2)


def test_watching_ends_with_the_driver(terminal: Terminal) -> None:
    terminal.give("create", terminal.file(terminal.world.job()))
    began = time.monotonic()
    said = terminal.give("status", terminal.only().backfill, "--watch")
    assert "8/8" not in said.splitlines()[0] and "published" in said
    assert time.monotonic() - began < 20


def test_looking_at_one_needs_neither_prefect_nor_dask(terminal: Terminal) -> None:
    terminal.give("create", terminal.failing(), code=1)
    look = """
import sys
from pipeline.cli import app
app(["backfill", *sys.argv[1:]], standalone_mode=False)
print(sorted({"prefect", "distributed", "dask"} & set(sys.modules)), file=sys.stderr)
"""
    backfill = terminal.only().backfill
    for command in ("status", "report"):
        said = give(command, backfill, code=look, cwd=terminal.world.root)
        assert said.returncode == 0 and said.stderr.strip().endswith("[]"), (command, said.stderr)
