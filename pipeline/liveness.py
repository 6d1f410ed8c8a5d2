"""Whether a process that was noted down still runs.

A process id alone says nothing, because ids are used again; with the start time it is unique.
"""

from __future__ import annotations

from pathlib import Path


def start_time(pid: int) -> float | None:
    """When a process started, in a unit that only compares for equality; None if it does not run.

    A zombie does not run.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _portable_start_time(pid)
    # The second field, the command in brackets, may itself hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else float(fields[19])


def _portable_start_time(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Whether the very process that was noted with this start time runs."""
    return start_time(pid) == started
