"""Help, of each command: short flags, groups, examples that parse, completion, the version."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli.app import app
from pipeline.cli.help import JOBS, OUTPUTS, RUNS, SETUP, START, examples_in
from tests.support.forks import MAIN, give

ROOT: Any = typer.main.get_command(app)


def commands(group: Any = ROOT, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        words = (*above, name)
        if hasattr(command, "commands"):
            yield from commands(command, words)
        elif not command.hidden:
            yield " ".join(words), command


COMMANDS = dict(commands())


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_is_its_name_alone(name: str) -> None:
    for option in COMMANDS[name].params:
        assert not option.secondary_opts, f"{name} {option.opts}"
    shown = give(*name.split(), "-h").stdout
    assert "<bool>" not in shown and "--no-no" not in shown
    assert "-h" in shown


@pytest.mark.parametrize("name", [name for name in COMMANDS if not name.startswith("bench")])
def test_the_help_has_examples_that_parse(name: str) -> None:
    command = COMMANDS[name]
    lines = examples_in(command.epilog)
    assert lines
    for line in lines:
        words = shlex.split(line.removeprefix("chunkmap ").partition(" > ")[0])
        assert " ".join(words).startswith(name), line
        command.make_context(name, words[len(name.split()) :])


def test_each_command_is_in_a_group() -> None:
    panels = {
        name: command.rich_help_panel
        for name, command in ROOT.commands.items()
        if not command.hidden
    }
    assert set(panels.values()) == {START, JOBS, RUNS, OUTPUTS, SETUP}, panels
    shown = give("--help").stdout
    assert [shown.index(title) for title in (START, JOBS, RUNS, OUTPUTS, SETUP)] == sorted(
        shown.index(title) for title in (START, JOBS, RUNS, OUTPUTS, SETUP)
    )


def test_the_version_is_the_package_s() -> None:
    said = give("--version")
    assert (said.returncode, said.stdout) == (0, f"chunkmap {metadata.version('chunkmap')}\n")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("st", {"status"}),
        ("backfill res", {"resume"}),
        ("run --acc", {"--accept-code"}),
        ("run job.yaml -e c", {"cloud"}),
        ("history s3://b", {"s3://b/one/", "s3://b/two/"}),
    ],
)
def test_the_shell_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]
) -> None:
    (tmp_path / "conf").mkdir()
    for name in ("base", "cloud", "local"):
        (tmp_path / "conf" / f"{name}.yaml").touch()
    (tmp_path / ".chunkmap").mkdir()
    (tmp_path / ".chunkmap" / "outputs.json").write_text('["s3://b/one/", "s3://b/two/"]')
    monkeypatch.setenv("_CHUNKMAP_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"chunkmap {typed}")
    code = f"import sys; sys.argv[0] = 'chunkmap'; {MAIN}"
    shown = give(cwd=tmp_path, code=code).stdout
    assert all(f'"{word}"' in shown.replace("\\", "") for word in offered), shown


def test_completion_scripts_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would look for a shell above this process, which may have none.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code = f"import sys; sys.argv[0] = 'chunkmap'; {MAIN}"
    assert "_CHUNKMAP_COMPLETE" in give("--show-completion", "bash", code=code).stdout
