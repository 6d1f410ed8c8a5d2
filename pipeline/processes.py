"""Processes: exit at once, remember a Ctrl-C, and identify one by its id and start time.

A process id alone identifies nothing, since ids are used again; with the start time it is unique.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

_at_once = False
_interrupted = False


@contextmanager
def record_interrupts() -> Iterator[None]:
    """Remember that the user pressed Ctrl-C during the block, besides raising KeyboardInterrupt.

    Pydantic turns a KeyboardInterrupt into an error of its own, and others catch that: what is
    raised may be something else, or nothing at all.
    """
    global _interrupted  # noqa: PLW0603 - so is Ctrl-C: one for the process

    def note(number: int, frame: FrameType | None) -> None:
        global _interrupted  # noqa: PLW0603
        _interrupted = True
        raise KeyboardInterrupt

    _interrupted = False
    if current_thread() is not main_thread():
        yield  # Python gives signals to the main thread alone.
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def was_interrupted() -> bool:
    """Whether the user has pressed Ctrl-C since interrupts are noted."""
    return _interrupted


def exit_without_waiting() -> None:
    """End without waiting for background threads, once the exit code is known."""
    global _at_once  # noqa: PLW0603 - one process has one end
    _at_once = True


def exits_without_waiting() -> bool:
    """Whether somebody has asked for it."""
    return _at_once


def exit_process(code: int) -> None:
    """Exit with a code: orderly where Prefect or Dask have something to end, else at once.

    The interpreter's own end takes as long as a short command, and the threads that some libraries
    leave behind have been seen to abort it (SIGABRT, after all was said and done).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _at_once or not {"prefect", "distributed"} & sys.modules.keys():
        os._exit(code)
    sys.exit(code)


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
