"""Storage that is away for a while."""

from __future__ import annotations

import pytest

from pipeline.errors import ObjectMissingError, TransientStorageError
from pipeline.storage import outages


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def away(times: int) -> list[str]:
    return ["away"] * times


def test_a_driver_waits_until_it_is_back() -> None:
    left = away(5)

    def ask() -> str:
        if left:
            left.pop()
            raise TransientStorageError("nobody answers")
        return "here"

    assert outages.retry_until_available(ask) == "here"


def test_what_will_not_pass_is_raised_at_once() -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise ObjectMissingError("s3://b/k")

    with pytest.raises(ObjectMissingError):
        outages.retry_until_available(ask)
    assert len(asked) == 1


def test_what_is_nice_to_have_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: Exception) -> None:
        raise error

    with outages.best_effort():
        fail(TransientStorageError("nobody answers"))
    assert "nobody answers" in caplog.text
    with pytest.raises(ObjectMissingError), outages.best_effort():
        raise ObjectMissingError("s3://b/k")
