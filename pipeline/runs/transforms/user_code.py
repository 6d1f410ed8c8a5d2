"""Run code of users, and of libraries that panic: the one door for whatever they may raise.

`except Exception` is not enough around it. A panic of Polars is a `BaseException`, `sys.exit()` in
a transform would end its worker, and a `KeyboardInterrupt` would pass for the user's own Ctrl-C:
Dask ends a worker for either. Here all of them become errors of ours, except what a signal raised.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import current_thread, main_thread
from types import CodeType, FrameType
from typing import Any

from pipeline.errors import ChunkmapError, TransformError
from pipeline.processes import was_interrupted


@contextmanager
def user_code(
    name: str, failed: str = "raised", kind: type[ChunkmapError] = TransformError
) -> Iterator[None]:
    """Turn whatever the block raises into an error of ours.

    Args:
        name: The code, such as `module:function`, or what it works on.
        failed: What it did if the block raises; the message goes on with the error.
        kind: The error's class.

    Raises:
        TransformError: or `kind`: it names the code and what was raised.
        ChunkmapError: an error of ours among the causes, such as a chunk that has changed.
            Libraries wrap what our own code raises when they call it.
        BaseException: a signal ended the block (Ctrl-C, or a process that is told to stop).
    """
    try:
        yield
    except BaseException as error:
        if is_from_signal(error):
            raise
        raise _own_cause(error) or kind(f"{name} {failed} {describe(error)}") from error


def _own_cause(error: BaseException) -> ChunkmapError | None:
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, ChunkmapError):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def describe(error: BaseException) -> str:
    """Name an error's type and message."""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def message_of(error: BaseException) -> str:
    """Return an error's message, whatever its own code does when it is asked for it."""
    try:
        return str(error)
    except BaseException as raised:
        if is_from_signal(raised):
            raise
        return "(its message cannot be shown)"


def is_from_signal(error: BaseException) -> bool:
    """Tell what a signal raised from what code raised by itself.

    Python runs the handlers of signals in the main thread alone, and an error of a handler carries
    the handler's frame. Python's own handler of Ctrl-C has none: where it is installed, a
    KeyboardInterrupt in the main thread counts as the user's.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, KeyboardInterrupt) and was_interrupted():
        return True  # Polars raises it in its own threads' callers.
    if current_thread() is not main_thread():
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    if isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers:
        return True
    codes = {_code(handler) for handler in handlers if callable(handler)}
    return any(frame.f_code in codes for frame in _frames(error))


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    found = getattr(handler, "__code__", None)
    return found if isinstance(found, CodeType) else None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
