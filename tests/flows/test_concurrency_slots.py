"""Batches never wait for ever for a slot of Prefect's limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.flows.concurrency_slots import Slots


def test_batches_run_without_slots_if_there_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the file of certificates is missing, which the client reads when it is made."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file", "ca.pem")

    monkeypatch.setattr("pipeline.flows.concurrency_slots.get_client", refuse)
    slots = Slots(["few"])
    for name in ("a", "b"):
        slots.request(name)
        assert slots.granted(5.0) == [name]
        slots.release(name)


def test_batches_run_without_slots_after_an_unknown_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def no_client(**_: Any) -> Iterator[None]:
        yield

    def fail(*_: Any) -> Any:
        raise KeyError("an answer of another version")

    monkeypatch.setattr("pipeline.flows.concurrency_slots.get_client", no_client)
    monkeypatch.setattr(Slots, "_ask", fail)
    slots = Slots(["few"])
    slots.request("a")
    assert slots.granted(5.0) == ["a"]
