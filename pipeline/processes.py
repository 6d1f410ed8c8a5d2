"""Exit without waiting, remember a Ctrl-C, identify processes, and freeze their imports.

A process id alone is not unique, since ids are reused; with the start time it is.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

_at_once = False
_interrupted = False
_INIT_NAME = Path("/proc/1/comm")
_CONTAINER_INITS = ("docker-init", "podman-init", "catatonit", "tini", "dumb-init")
"""Names of first processes of containers that do nothing but start a command and end with it."""


def freeze_imports() -> None:
    """Let the garbage collector skip what is imported by now, and stays.

    To look through what a worker imports takes a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def record_interrupts(announce: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Remember a Ctrl-C during the block, and raise KeyboardInterrupt.

    Libraries may swallow the exception, e.g. Pydantic turns it into a validation error.

    Args:
        announce: Called at the first Ctrl-C, since stopping takes a while.
    """
    global _interrupted  # noqa: PLW0603 - Ctrl-C concerns the whole process

    def handle(number: int, frame: FrameType | None) -> None:
        global _interrupted
        is_first, _interrupted = not _interrupted, True
        if is_first:
            with suppress(RuntimeError):  # The signal came while the terminal was written to.
                announce()
        raise KeyboardInterrupt

    _interrupted = False
    if current_thread() is not main_thread():
        yield  # Only the main thread receives signals.
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def was_interrupted() -> bool:
    """Whether the user has pressed Ctrl-C since `record_interrupts` began."""
    return _interrupted


def exit_without_waiting() -> None:
    """Make `exit_process` exit at once, without waiting for background threads."""
    global _at_once  # noqa: PLW0603 - one process has one end
    _at_once = True


def exits_without_waiting() -> bool:
    """Whether `exit_without_waiting` has been called."""
    return _at_once


def exit_process(code: int) -> None:
    """Exit with a code: normally if Prefect or Dask are loaded, else at once.

    A normal exit of the interpreter takes as long as a short command, and background threads of
    some libraries have aborted it (SIGABRT, after all work was done).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _at_once or not {"prefect", "distributed"} & sys.modules.keys():
        os._exit(code)
    sys.exit(code)


def start_time(pid: int) -> float | None:
    """Return when a process started, for equality tests only; None if it does not run.

    A zombie does not run. The unit depends on the system.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _portable_start_time(pid)
    # The second field, the command in brackets, may contain spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else float(fields[19])


def _portable_start_time(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def command_started() -> float:
    """Return when this process started, in Unix seconds: with its imports, as users measure it."""
    import psutil

    return psutil.Process().create_time()


def is_main_of_container() -> bool:
    """Whether this process is the command of a container, which ends with it."""
    if os.getpid() == 1:
        return True
    with suppress(OSError):
        init = _INIT_NAME.read_text(encoding="utf-8", errors="replace").strip()
        return os.getppid() == 1 and init in _CONTAINER_INITS
    return False


def is_alive(pid: int, started: float) -> bool:
    """Whether the process with this id and start time is running."""
    return start_time(pid) == started
