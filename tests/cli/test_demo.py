"""The demo says how the commands that it names are found."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.cli.demo import _on_path


def test_commands_that_the_shell_does_not_find_are_made_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "chunkmap").write_text("#!/bin/sh\necho found\n")
    (programs / "chunkmap").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    [command] = _on_path(programs)
    assert command == 'export PATH="$PWD/.venv/bin:$PATH"'
    said = subprocess.run(
        ["sh", "-c", f"{command}; chunkmap"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "found\n"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [*_on_path(programs)] == [f'export PATH="{programs}:$PATH"']
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/usr/bin")
    assert _on_path(programs) == {}
