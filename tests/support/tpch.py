"""TPC-H lineitem, made once for all test processes: six million rows, with published answers."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.sharing import common_folder


def lineitem(factory: pytest.TempPathFactory) -> Path:
    """A folder of four files, as tpchgen-cli writes them at scale factor 1."""
    folder = common_folder(factory, "shared-tpch")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            tool = str(Path(sys.executable).parent / "tpchgen-cli")
            command = [tool, "parquet", "-s", "1", "--tables=lineitem", "--parts=4"]
            subprocess.run([*command, f"--output-dir={folder}"], check=True, capture_output=True)
            (folder / "made").touch()
    return folder / "lineitem"
