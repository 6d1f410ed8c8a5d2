"""What Prefect would store of our flows and tasks: nothing, and never as a pickle."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from prefect import Flow, Task

from pipeline import flows


def found() -> Iterator[tuple[str, Flow | Task]]:  # type: ignore[type-arg]
    for module in pkgutil.iter_modules(flows.__path__):
        loaded = importlib.import_module(f"pipeline.flows.{module.name}")
        for name, value in vars(loaded).items():
            if isinstance(value, Flow | Task):
                yield f"{module.name}.{name}", value


ALL = dict(found())


def test_they_are_found() -> None:
    assert {"map_dataset.map_dataset", "executor.map_batch_task"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_stored_and_never_as_a_pickle(name: str) -> None:
    """Whoever can write to a store of pickles can run code where they are read."""
    assert ALL[name].persist_result is False
    assert ALL[name].result_serializer == "json"
