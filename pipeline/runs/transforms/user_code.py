"""Run code of users, and of libraries that panic, and convert everything that they raise.

`except Exception` is not enough: a panic of Polars is a `BaseException`, `sys.exit()` in a
transform would end its worker, and a `KeyboardInterrupt` would count as the user's Ctrl-C (Dask
ends a worker for either). All of these become a `ChunkmapError`, except what a signal raised.
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
    """Convert everything that the block raises into a `ChunkmapError`.

    Args:
        name: Name of the code, such as `module:function`, or of what it works on.
        failed: Verb of the message, between `name` and the error.
        kind: Class of the error.

    Raises:
        TransformError: or `kind`: names the code and what was raised.
        ChunkmapError: the first of our errors among the causes, e.g. that an object has changed.
            Libraries wrap what our code raises when they call it.
        BaseException: a signal ended the block (e.g. Ctrl-C).
    """
    try:
        yield
    except BaseException as error:
        if is_from_signal(error):
            raise
        own = _own_cause(error)
        if own is error:
            raise  # With its cause, which a traceback is shown from.
        raise own or kind(f"{name} {failed} {describe(error)}") from error


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
    """Return an error's message, even if its `__str__` raises."""
    try:
        return str(error)
    except BaseException as raised:
        if is_from_signal(raised):
            raise
        return "(its message cannot be shown)"


def is_from_signal(error: BaseException) -> bool:
    """Whether an error was raised by a signal handler rather than by the code itself.

    Python runs signal handlers in the main thread only, and an error of a handler has the handler's
    frame in its traceback. Python's default handler of Ctrl-C has no frame: if it is installed, a
    KeyboardInterrupt in the main thread counts as the user's.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, KeyboardInterrupt) and was_interrupted():
        return True  # Polars raises it in the callers of its threads.
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
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
