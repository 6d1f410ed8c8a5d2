"""The examples in docstrings run."""

from __future__ import annotations

import doctest

import fsspec
import pytest

from partitioning import planner


@pytest.fixture(autouse=True)
def empty_memory() -> None:
    fsspec.filesystem("memory").store.clear()


def test_the_example_of_plan_dataset_runs() -> None:
    failed, attempted = doctest.testmod(planner, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert attempted >= 5
    assert failed == 0
