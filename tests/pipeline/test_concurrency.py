"""A cache that lets one thread make what several ask for."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from pipeline.concurrency import single_flight
from pipeline.runs.worker.chunk import open_run


def test_threads_that_ask_together_get_one_result() -> None:
    made: list[str] = []

    @single_flight(4)
    def thing(name: str) -> object:
        made.append(name)
        time.sleep(0.05)
        return object()

    barrier = Barrier(8)

    def ask(number: int) -> object:
        barrier.wait()
        return thing("ab"[number % 2])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert sorted(made) == ["a", "b"]
    assert len(set(map(id, found))) == 2
    assert thing("a") is found[0]


def test_a_waiting_call_runs_again_after_an_error() -> None:
    calls: list[int] = []

    @single_flight(1)
    def thing() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("once")
        return "made"

    with pytest.raises(OSError, match="once"):
        thing()
    assert thing() == thing() == "made"
    assert len(calls) == 2


def test_the_last_ones_are_kept_and_can_be_forgotten() -> None:
    calls: list[int] = []

    @single_flight(2)
    def thing(number: int) -> int:
        calls.append(number)
        return number

    for number in (1, 2, 1, 3, 1, 2):
        assert thing(number) == number
    assert calls == [1, 2, 3, 2]
    thing.cache_clear()
    assert thing(2) == 2
    assert calls[-1] == 2 and len(calls) == 5


def test_it_travels_by_name_as_functions_do() -> None:
    assert pickle.loads(pickle.dumps(open_run)) is open_run
