"""The wheel holds the packages whole, their templates and types included, and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.contracts.source import ROOT, repository_files

PACKAGED = {"chunkmap_main.py", "chunkmap", "partitioning", "pipeline"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (built,) = folder.glob("chunkmap-*.whl")
    return built


def test_the_wheel_holds_the_packages_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "chunkmap = chunkmap_main:main" in archive.read(entry_points).decode()
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in repository_files()
        if path.relative_to(ROOT).parts[0] in PACKAGED
    }
    assert held == expected
    assert {"chunkmap/py.typed", "pipeline/py.typed", "partitioning/py.typed"} <= held


def test_without_a_checkout_bench_says_where_the_suite_is(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "import sys; from pipeline.cli import main; sys.argv[0] = 'chunkmap'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "bench", "run", "--full"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2
    assert "not part of the installed package" in done.stderr
