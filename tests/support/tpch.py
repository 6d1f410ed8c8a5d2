"""TPC-H lineitem, made once for all test processes: six million rows, with published answers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest


def lineitem(factory: pytest.TempPathFactory) -> Path:
    """A folder of four files, as tpchgen-cli writes them at scale factor 1."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-tpch"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            tool = str(Path(sys.executable).parent / "tpchgen-cli")
            command = [tool, "parquet", "-s", "1", "--tables=lineitem", "--parts=4"]
            subprocess.run([*command, f"--output-dir={folder}"], check=True, capture_output=True)
            (folder / "made").touch()
    return folder / "lineitem"
