"""Drivers that are started in the background."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import processes
from pipeline.cli import detached
from pipeline.cli.app import app
from pipeline.cli.detached import log_of, start_detached
from pipeline.config.settings import load_settings
from pipeline.errors import ChunkmapError, RunFailedError


def start(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Start a command in the background; returns its log once it has ended."""
    monkeypatch.setenv("CHUNKMAP_STATE_DIR", str(tmp_path / "state"))
    settings = load_settings()
    start_detached("run", "one", arguments, settings, lambda: None, take_over=False)
    return log_of(settings, "run", "one").read_text()


def test_a_users_package_of_the_same_name_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that the user has set comes before ours."""
    own = tmp_path / "own" / "pipeline"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text("raise ImportError('the package of the user')")
    monkeypatch.setenv("PYTHONPATH", str(own.parent))
    assert start(["--version"], tmp_path, monkeypatch).startswith("chunkmap ")


def test_an_early_end_is_an_error_with_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFailedError, match=r"exit code 2:(.|\n)*no-such-option"):
        start(["status", "--no-such-option"], tmp_path, monkeypatch)


def test_a_driver_that_has_not_begun_is_not_said_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(detached, "START_SECONDS", 0.0)
    start(["--version"], tmp_path, monkeypatch)
    assert [process.wait(60) for process in started] == [0]
    assert "has not begun with run one for 0 s" in capsys.readouterr().err


def container(pid: int, parent: int, init: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make this process look like one whose first process has that name."""
    comm = folder / "comm"
    comm.write_text(f"{init}\n")
    patch.setattr(processes, "_INIT_NAME", comm)
    patch.setattr(os, "getpid", lambda: pid)
    patch.setattr(os, "getppid", lambda: parent)


@pytest.mark.parametrize(
    ("pid", "parent", "init", "is_refused"),
    [
        (1, 0, "chunkmap", True),
        (7, 1, "docker-init", True),
        (8, 7, "docker-init", False),
        (7, 1, "systemd", False),
    ],
)
def test_a_container_that_ends_with_its_command_has_no_background(
    pid: int,
    parent: int,
    init: str,
    is_refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    container(pid, parent, init, tmp_path, monkeypatch)
    result = CliRunner().invoke(app, ["run", "--detach", str(tmp_path / "none.yaml")])
    assert ("ends with its command" in str(result.exception)) == is_refused
    assert isinstance(result.exception, ChunkmapError)
