"""The commands that hints name: given as they stand, they go on with the same work."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.main import get_command

from pipeline.cli import cluster, demo, runs
from pipeline.cli import ingest as ingesting
from pipeline.cli import run as running
from pipeline.cli.app import app
from pipeline.cli.backfill import create
from pipeline.cli.hints import command, given_environment, with_environment, with_values
from pipeline.config.job import load_job
from pipeline.config.settings import load_settings
from pipeline.errors import RunInterruptedError
from pipeline.flows.finding import Finding
from pipeline.runs.backfill.records import BackfillResumeOptions
from tests.cli.test_ingest import FILE
from tests.support.forks import give

JOB = {
    "name": "plain",
    "input": {"uri": "in/"},
    "transform": "shop:same",
    "output": {"uri": "out/"},
}


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job, an ingest and the environment `prod`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "prod.yaml").write_text("s3: {endpoint_url: http://127.0.0.1:9}\n")
    (tmp_path / "my job.yaml").write_text(json.dumps(JOB))
    (tmp_path / "orders.yaml").write_text(FILE.format(url="http://127.0.0.1:9"))
    return tmp_path


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def no_workers(*_: object, **__: object) -> Any:
    return nullcontext(object())


def hint_of(caught: pytest.ExceptionInfo[RunInterruptedError]) -> list[str]:
    return shlex.split(str(caught.value.hint).partition("with: ")[2])


def test_words_are_quoted() -> None:
    values = with_values("--set", ["params.text=a b", "params.rate=1"])
    told = "chunkmap run --set 'params.text=a b' --set params.rate=1 --environment prod"
    assert command("run", *values, environment="prod") == told
    assert command("down", environment=None) == "chunkmap down"


def test_a_file_on_standard_input_is_given_again() -> None:
    told = command("run", "-", "--local", environment="prod")
    assert told == "chunkmap run - --local --environment prod < FILE.yaml"


def test_ctrl_c_during_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the environment, the command would run the job against another S3."""
    monkeypatch.setattr(running, "local_workers", no_workers)
    monkeypatch.setattr("pipeline.local.launch.run_locally", interrupt)
    with pytest.raises(RunInterruptedError) as caught:
        running.run(
            Path("my job.yaml"),
            "prod",
            changes=["output.mode=overwrite"],
            accept_code=True,
            replan=False,
            take_over=False,
            local=True,
            as_json=True,
        )
    told = ["chunkmap", "run", "my job.yaml", "--set", "output.mode=overwrite", "--accept-code"]
    assert hint_of(caught) == [*told, "--local", "--environment", "prod"]


def test_ctrl_c_during_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def run_job(job: object, settings: object, again: str, *_: object, **__: object) -> None:
        told.append(again)
        raise KeyboardInterrupt

    ledger = SimpleNamespace(run="3f2a", published=lambda: None, job=lambda: None)
    monkeypatch.setattr(runs, "_ledger", lambda *_: ledger)
    monkeypatch.setattr(running, "run_job", run_job)
    with pytest.raises(KeyboardInterrupt):
        runs.retry("3f", None, "prod", accept_code=False, only_failed=True, as_json=True)
    with pytest.raises(KeyboardInterrupt):
        runs.retry("3f", "s3://a b/", "prod", accept_code=False, only_failed=False, as_json=True)
    assert told == [
        "chunkmap retry 3f2a --failed --environment prod",
        "chunkmap retry 3f2a --output 's3://a b/' --environment prod",
    ]


def test_ctrl_c_during_an_ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the window, the command would ingest that of the file, or everything."""
    monkeypatch.setattr(ingesting, "_run", interrupt)
    window = "window={from: 2024-01-01, to: 2024-01-02, parameters: [since, until]}"
    with pytest.raises(RunInterruptedError) as caught:
        ingesting.ingest(
            Path("orders.yaml"),
            "prod",
            changes=[window],
            start="2024-03-01",
            end="2024-04-01",
            refresh=True,
            as_json=True,
        )
    dates = ["--from", "2024-03-01", "--to", "2024-04-01", "--refresh"]
    told = ["chunkmap", "ingest", "orders.yaml", "--set", window, *dates]
    assert hint_of(caught) == [*told, "--environment", "prod"]


def test_ctrl_c_during_a_backfill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "_with_code", lambda store, settings, resume: resume)
    monkeypatch.setattr("pipeline.local.workers.LocalWorkers", no_workers)
    monkeypatch.setattr("pipeline.local.launch.backfill_locally", interrupt)
    store: Any = SimpleNamespace(backfill="9c1d")
    options = BackfillResumeOptions(accept_code=True)
    with pytest.raises(RunInterruptedError) as caught:
        create.drive(
            store, load_settings("prod"), options, "prod", local=True, detach=False, as_json=True
        )
    told = ["chunkmap", "backfill", "resume", "9c1d", "--accept-code", "--local"]
    assert hint_of(caught) == [*told, "--environment", "prod"]


def test_commands_that_follow_a_background_driver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = {"pid": 7, "log": "some.log", "begun": True}
    monkeypatch.setattr(create, "start_detached", lambda *_, **__: started)
    store: Any = SimpleNamespace(backfill="9c1d", output="s3://shop/out/", driver=lambda: None)
    create._detach(
        store, load_settings("prod"), "prod", BackfillResumeOptions(), local=False, as_json=False
    )
    said = capsys.readouterr().out
    assert "chunkmap backfill status 9c1d --watch --environment prod" in said
    assert "chunkmap backfill cancel 9c1d --environment prod" in said


@pytest.mark.parametrize(
    ("hint", "arguments", "shown"),
    [
        (
            "chunkmap retry 3f",
            ["run", "-e", "prod"],
            "chunkmap retry 3f\n(with --environment prod)",
        ),
        ("chunkmap up", ["--environment=my prod"], "chunkmap up\n(with --environment 'my prod')"),
        ("chunkmap up", ["run", "job.yaml"], "chunkmap up"),
        ("chunkmap up --environment prod", ["-e", "prod"], "chunkmap up --environment prod"),
        ("chunkmap does not delete it", ["-e", "prod"], "chunkmap does not delete it"),
        (None, ["-e", "prod"], None),
    ],
)
def test_hints_of_errors_name_the_environment(
    hint: str | None, arguments: list[str], shown: str | None
) -> None:
    assert with_environment(hint, given_environment(arguments)) == shown


def test_every_command_that_takes_an_environment_is_known_in_hints() -> None:
    def takes_one(command: Any) -> bool:
        if hasattr(command, "commands"):
            return any(map(takes_one, command.commands.values()))
        return any("--environment" in parameter.opts for parameter in command.params)

    for name, found in get_command(app).commands.items():  # type: ignore[attr-defined]
        if not found.hidden:
            said = with_environment(f"chunkmap {name}", "prod") != f"chunkmap {name}"
            assert said == takes_one(found), name


def test_the_environment_of_a_command_is_in_the_hint_of_its_error(shop: Path) -> None:
    told = json.loads(give("env", "--environment", "prod", "--json", cwd=shop).stdout)
    assert told["hint"] == "start it: chunkmap up\n(with --environment prod)"
    steps = json.loads(give("init", "--environment", "prod", "--json", cwd=shop).stdout)["next"]
    assert "chunkmap run first.yaml --environment prod" in steps


def test_fixes_of_the_doctor_name_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late = Finding("warning", "late runs", "no worker is online", "chunkmap env --prefect")
    monkeypatch.setattr("pipeline.flows.doctor.examine", lambda *_: iter([late]))
    with pytest.raises(typer.Exit):
        cluster.doctor(None, None, environment="prod")
    shown = capsys.readouterr().out.split()
    assert shown[-7:] == ["→", "chunkmap", "env", "--prefect", "(with", "--environment", "prod)"]


def test_what_to_do_after_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    stack = demo._Stack(load_settings("prod"), is_local=True, stays=True)
    demo._show_next(load_job("my job.yaml"), stack, "prod")
    shown = capsys.readouterr().out
    assert 'eval "$(chunkmap env --environment prod)"' in shown
    assert "chunkmap head out/ --environment prod" in shown
    assert "until you stop them: chunkmap down --environment prod" in " ".join(shown.split())
