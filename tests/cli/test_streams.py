"""What a command's stdout holds, and what happens where it cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import polars as pl
import pytest

from tests.cli.test_command_line import COMMAND
from tests.support.forks import MAIN, REPOSITORY, program

TALKS = """
import os, sys

print("while imported")

def talks(lf):
    print("in the transform")
    os.write(1, b"past Python\\n")
    os.system("echo from a child")

    def inner(frame):
        print("in a thread of Polars")
        return frame

    return lf.map_batches(inner)
"""
SAID = (
    "while imported",
    "in the transform",
    "past Python",
    "from a child",
    "in a thread of Polars",
)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "in" / "a.parquet")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("transforms: {allow: [shop]}\n")
    (tmp_path / "shop.py").write_text(TALKS)
    job = {
        "name": "talks",
        "input": {"uri": str(tmp_path / "in")},
        "transform": "shop:talks",
        "output": {"uri": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    return tmp_path


def shell(
    folder: Path, line: str, *, own: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a line in which `chunkmap` is the command.

    Args:
        folder: Its folder.
        line: The line.
        own: Whether the command has an interpreter of its own, whose streams are made from these.
        environment: Further variables.
    """
    command = " ".join([*COMMAND, f"'{MAIN}'"])
    inherited: tuple[int, ...] = ()
    if not own:
        command = str(folder / "chunkmap")
        variables, descriptor = program(folder / "chunkmap", MAIN, flows=False)
        environment, inherited = {**environment, **variables}, (descriptor,)
    return subprocess.run(
        ["bash", "-c", f'chunkmap() {{ {command} "$@"; }}; {line}'],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": REPOSITORY, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        pass_fds=inherited,
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("command", ["check", "plan"])
def test_what_a_transform_prints_is_not_in_the_result(shop: Path, command: str) -> None:
    said = shell(shop, f"chunkmap {command} job.yaml --json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)
    for words in SAID if command == "check" else SAID[:-1]:
        assert words in said.stderr


def test_a_job_comes_from_a_pipe_with_values_set(shop: Path) -> None:
    line = "cat job.yaml | chunkmap plan - --set output.mode=append --set input.columns=[a]"
    said = shell(shop, line)
    assert said.returncode == 0, said.stderr
    assert "mode append" in said.stdout


@pytest.mark.sampled(4)
@pytest.mark.parametrize("command", ["config", "config --json", "--help", "plan job.yaml"])
def test_a_reader_that_leaves_is_no_failure(shop: Path, command: str) -> None:
    said = shell(shop, f"chunkmap {command} 2>errors | true; echo ${{PIPESTATUS[0]}}")
    assert said.stdout.strip() == "0"
    assert "Traceback" not in (shop / "errors").read_text()
    assert "BrokenPipe" not in (shop / "errors").read_text()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("command", ["config", "config --json", "--help", "plan job.yaml"])
def test_a_full_disk_is_named(shop: Path, command: str) -> None:
    said = shell(shop, f"chunkmap {command} > /dev/full")
    assert said.returncode == 1
    assert "error: stdout cannot be written: No space left on device" in said.stderr
    assert "Traceback" not in said.stderr


def test_progress_that_cannot_be_written_is_no_failure(shop: Path) -> None:
    assert shell(shop, "chunkmap plan job.yaml 2> /dev/full").returncode == 0


def test_closed_streams_are_no_failure(shop: Path) -> None:
    assert shell(shop, "chunkmap check job.yaml >&-", own=True).returncode == 0
    said = shell(shop, "chunkmap check job.yaml --json 2>&-", own=True)
    assert said.returncode == 0
    assert json.loads(said.stdout)["rows_in"] == 2


@pytest.mark.sampled(4)
@pytest.mark.parametrize("command", ["plan job.yaml --explain", "check job.yaml", "nosuch", "-h"])
def test_a_terminal_that_knows_ascii_alone(shop: Path, command: str) -> None:
    said = shell(shop, f"chunkmap {command}", own=True, PYTHONIOENCODING="ascii")
    assert "Traceback" not in said.stderr and "UnicodeEncodeError" not in said.stderr
    assert said.returncode == (2 if command == "nosuch" else 0)
    if command.startswith("plan"):
        assert "########" in said.stdout and " - " in said.stdout
