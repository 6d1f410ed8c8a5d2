"""Code of users: whatever it raises is an error of ours, except what a signal raised."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Any, NoReturn

import polars as pl
import pytest

from pipeline.errors import ObjectChangedError, TransformError
from pipeline.processes import record_interrupts
from pipeline.runs.transforms.user_code import describe, user_code


class Mute(Exception):
    """Has no message to show."""

    def __str__(self) -> str:
        raise SystemExit(3)


RAISED: list[BaseException] = [
    ValueError("no"),
    pl.exceptions.PanicException("no"),
    SystemExit(3),
    SystemExit(),
    GeneratorExit("no"),
    BaseExceptionGroup("several", [SystemExit(3)]),
    StopIteration("no"),
    MemoryError(),
    Mute(),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_code_raises_is_a_transform_error_that_names_it(error: BaseException) -> None:
    with (
        pytest.raises(TransformError, match=f"^m:f raised {type(error).__name__}") as caught,
        user_code("m:f"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_in_a_thread_too(error: BaseException) -> None:
    assert type(_in_thread(partial(_raise_in_user_code, error))) is TransformError


def test_a_keyboard_interrupt_of_a_thread_is_no_ctrl_c() -> None:
    """Signals arrive in the main thread alone."""
    found = _in_thread(partial(_raise_in_user_code, KeyboardInterrupt()))
    assert describe(found) == "TransformError: m:f raised KeyboardInterrupt"


def test_an_error_of_ours_below_a_panic_comes_out() -> None:
    with pytest.raises(ObjectChangedError), user_code("m:f"):
        try:
            raise ObjectChangedError("s3://b/k", "a", "b")
        except ObjectChangedError as error:
            raise pl.exceptions.PanicException("the source raised") from error


def test_ctrl_c_is_no_error_of_the_code() -> None:
    with pytest.raises(KeyboardInterrupt), user_code("m:f"):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), record_interrupts(), user_code("m:f"):
        signal.raise_signal(signal.SIGINT)


def test_a_keyboard_interrupt_without_a_signal_is_the_codes_where_that_can_be_told() -> None:
    with record_interrupts():
        assert type(_raised(partial(_raise_in_user_code, KeyboardInterrupt()))) is TransformError
    # Python's own handler leaves no trace, so it counts as the user's.
    assert type(_raised(partial(_raise_in_user_code, KeyboardInterrupt()))) is KeyboardInterrupt


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_process_that_is_told_to_stop_stops(wrapped: bool) -> None:
    def stop(*_: object) -> NoReturn:
        raise SystemExit(143)

    with _handling(signal.SIGTERM, partial(stop, 1) if wrapped else stop):
        with pytest.raises(SystemExit), user_code("m:f"):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TransformError), user_code("m:f"):
            raise SystemExit(143)


@contextmanager
def _handling(number: signal.Signals, handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _raise_in_user_code(error: BaseException) -> None:
    with user_code("m:f"):
        raise error


def _raised(call: Callable[[], None]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def _in_thread(call: Callable[[], None]) -> BaseException:
    found: list[BaseException] = []
    thread = Thread(target=lambda: found.append(_raised(call)))
    thread.start()
    thread.join()
    return found[0]


def test_the_first_ctrl_c_is_answered_at_once_and_once() -> None:
    heard: list[str] = []
    with record_interrupts(lambda: heard.append("stopping")):
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert heard == ["stopping"]
