"""Drive runs from scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from threading import Event, Thread
from typing import TypeVar

from pipeline.errors import ChunkmapError
from pipeline.processes import record_interrupts, was_interrupted

T = TypeVar("T")


class Stop:
    """Asks a driver in another thread to stop."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        """Ask it."""
        self._event.set()

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was asked, as a Ctrl-C would."""
        if self._event.is_set() or was_interrupted():
            raise KeyboardInterrupt


@contextmanager
def hinting() -> Iterator[None]:
    """Have tracebacks show the hint of an error, too."""
    try:
        yield
    except ChunkmapError as error:
        note = f"next: {_in_python(error.hint or '')}"
        if error.hint and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _in_python(hint: str) -> str:
    """Name arguments of `run` where a hint names flags of the command of that name."""

    def argument(flag: re.Match[str]) -> str:
        return f"run({flag[1].replace('-', '_')}=True)"

    return re.sub(r"--(accept-code|replan|rebuild|take-over)\b", argument, hint)


def drive(work: Callable[[Stop], T]) -> T:
    """Do work here, or in a thread where an event loop runs in this one, as in a notebook.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the notebook's stop button; the work has ended.
    """
    stop = Stop()
    with hinting():
        if not _in_event_loop():
            with record_interrupts():
                return work(stop)
        future = _in_thread(work, stop)
        try:
            return future.result()
        except KeyboardInterrupt:
            stop.set()
            return future.result()


async def drive_async(work: Callable[[Stop], T]) -> T:
    """Do work in a thread, and wait for it; if the caller is cancelled, the work stops first."""
    stop = Stop()
    future = asyncio.wrap_future(_in_thread(work, stop))
    try:
        with hinting():
            return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([future])
        future.exception()
        raise


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_thread(work: Callable[[Stop], T], stop: Stop) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            with record_interrupts():
                future.set_result(work(stop))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=copy_context().run, args=(run,), name="chunkmap", daemon=True).start()
    return future
