"""Folders that cannot be read or written: an error that names them, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.job import load_job
from pipeline.config.settings import load_settings
from pipeline.runs.admin.known_outputs import remember_output
from pipeline.runs.driver.run import run_serially
from pipeline.storage import open_storage
from tests.support import forks

LOWERED = """
import ctypes, os
if os.getuid() == 0:  # Permissions count for root, too, and for what it starts.
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        assert libc.prctl(24, capability) == 0  # PR_CAPBSET_DROP
    header, sets = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for number in (0, 1):  # those in effect, and those permitted
        sets[number] &= ~0b110
    assert libc.capset(header, sets) == 0
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "in").mkdir()
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "in" / "a.parquet")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("transforms: {allow: [plain_shop]}\n")
    (tmp_path / "plain_shop.py").write_text("def same(lf):\n    return lf\n")
    job = {
        "name": "plain",
        "input": {"uri": str(tmp_path / "in")},
        "transform": "plain_shop:same",
        "output": {"uri": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    yield tmp_path
    for path in (tmp_path, tmp_path / ".chunkmap", tmp_path / "in"):
        if path.exists():
            path.chmod(0o700)


def give(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": forks.REPOSITORY, **more}
    return forks.give(*arguments, code=LOWERED + forks.MAIN, cwd=folder, variables=variables)


@pytest.mark.parametrize("command", ["up", "init", "down"])
def test_a_folder_that_cannot_be_written(shop: Path, command: str) -> None:
    shop.chmod(0o500)
    said = give(shop, command)
    assert "Traceback" not in said.stderr
    if command != "down":  # Nothing runs, so nothing is written.
        assert said.returncode == 1
        name = "first.yaml" if command == "init" else f"{shop}/.chunkmap"
        assert f"error: {name}: Permission denied" in said.stderr
        assert "next:" in said.stderr


@pytest.mark.sampled(5)
@pytest.mark.parametrize("command", ["status", "logs", "report", "up", "backfill list"])
def test_a_state_folder_that_cannot_be_read(shop: Path, command: str) -> None:
    remember_output(shop / ".chunkmap", str(shop / "out"))
    (shop / ".chunkmap").chmod(0)
    said = give(shop, *command.split(), "--json")
    assert said.returncode == 1
    error = json.loads(said.stdout)
    assert (error["error"], "Permission denied" in error["message"]) == ("FileError", True)
    assert "CHUNKMAP_STATE_DIR" in error["hint"]
    assert "Traceback" not in said.stderr


def test_a_state_folder_that_is_a_file(shop: Path) -> None:
    (shop / "file").touch()
    said = give(shop, "up", CHUNKMAP_STATE_DIR="file")
    assert (said.returncode, "Traceback" in said.stderr) == (1, False)
    assert "file: File exists" in said.stderr


def test_a_run_ends_well_where_no_report_can_be_kept(
    shop: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(shop)
    (shop / ".chunkmap").write_text("a file is where the folder should be")
    settings = load_settings()
    remember_output(settings.state_dir, str(shop / "out"))
    summary = run_serially(load_job("job.yaml"), settings, open_storage(settings))
    assert (summary.state, summary.local_report) == ("done", "")
    assert Path(summary.report.removeprefix("file://")).is_file()
    assert "is not remembered" in caplog.text and "no copy of the report" in caplog.text
    said = give(shop, "report", "last", "--output", str(shop / "out"))
    assert (said.returncode, "Traceback" in said.stderr) == (1, False)
    assert "File exists" in said.stderr or "Not a directory" in said.stderr


def test_a_local_input_gets_no_advice_about_s3(shop: Path) -> None:
    (shop / "in" / "a.parquet").chmod(0)
    said = give(shop, "check", "job.yaml")
    assert said.returncode == 2
    assert "no permission to read file://" in said.stderr
    assert "s3:" not in said.stderr and "AWS" not in said.stderr, said.stderr
