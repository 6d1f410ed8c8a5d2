"""The wheel holds the packages whole, their templates and types included, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.contracts.source import ROOT, repository_files

PACKAGED = {"partitioning", "pipeline"}


def test_the_wheel_holds_the_packages_whole(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("chunkmap-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "chunkmap = pipeline.cli:main" in archive.read(entry_points).decode()
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in repository_files()
        if path.relative_to(ROOT).parts[0] in PACKAGED
    }
    assert held == expected
    assert {"pipeline/py.typed", "partitioning/py.typed"} <= held
