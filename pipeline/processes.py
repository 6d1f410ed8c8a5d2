"""How this process ends when a library would keep it waiting, or keep from us that it is to."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

_at_once = False
_interrupted = False


@contextmanager
def noting_interrupts() -> Iterator[None]:
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


def leave_at_once() -> None:
    """End without waiting for background threads, once the exit code is known."""
    global _at_once  # noqa: PLW0603 - one process has one end
    _at_once = True


def is_leaving_at_once() -> bool:
    """Whether somebody has asked for it."""
    return _at_once


def leave(code: int) -> None:
    """Exit with a code: orderly where Prefect or Dask have something to end, else at once.

    The interpreter's own end takes as long as a short command, and the threads that some libraries
    leave behind have been seen to abort it (SIGABRT, after all was said and done).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _at_once or not {"prefect", "distributed"} & sys.modules.keys():
        os._exit(code)
    sys.exit(code)
