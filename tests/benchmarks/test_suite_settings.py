"""The suite allows its own transforms, for itself."""

from __future__ import annotations

import os

import pytest

from benchmarks.suite.settings import TRANSFORMS, VARIABLE, suite_settings
from pipeline.config.settings import load_settings


@pytest.mark.parametrize("before", [None, "mine"])
def test_transforms_are_allowed_during_the_block_only(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    allowed = load_settings().transforms.allow
    with suite_settings() as settings:
        assert settings.transforms.allow == (*allowed, TRANSFORMS)
        assert os.environ[VARIABLE] == ",".join((*allowed, TRANSFORMS)), (
            "for processes started here"
        )
    assert os.environ.get(VARIABLE) == before
    assert load_settings().transforms.allow == allowed
