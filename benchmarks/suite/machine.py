"""Where a session runs: what of the machine and of the code may change its figures."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.suite.record import Machine

PACKAGES = ("polars", "prefect", "prefect-dask", "distributed", "obstore", "s3fs", "pyarrow")


def describe(cluster_threads: int = 0) -> Machine:
    """This machine and this checkout, now."""
    return Machine(
        cpu=_cpu(),
        cores=cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        commit=_git("rev-parse", "--short=12", "HEAD") or "unknown",
        dirty=bool(_git("status", "--porcelain", "--untracked-files=no")),
        branch=_git("rev-parse", "--abbrev-ref", "HEAD"),
        packages={name: metadata.version(name) for name in PACKAGES},
        load=load(),
        cluster_threads=cluster_threads,
    )


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def load() -> float:
    """The load average of the last minute."""
    return round(psutil.getloadavg()[0], 2)


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    with suppress(OSError):
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""
