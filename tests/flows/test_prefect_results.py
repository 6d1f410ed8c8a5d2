"""What Prefect would store of our flows and tasks: nothing, and never as a pickle."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import Flow, Task
from prefect.results import ResultStore
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from pipeline import flows
from pipeline.config.settings import load_settings
from pipeline.flows import launch
from pipeline.flows.backfill import map_windows
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.store import BackfillStore
from tests.support.memory_storage import MemoryBackend


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


def test_prefect_is_not_asked_where_a_backfill_would_store_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(launch, "connect", lambda settings: "http://prefect/api")
    monkeypatch.setattr(launch, "_runner", lambda settings: ThreadPoolTaskRunner())
    monkeypatch.setattr(launch, "_run_flow", lambda url, ended, call, beats: started.append(call))
    store = BackfillStore(MemoryBackend().storage(), "s3://bucket/out/", "0" * 12)
    resume = BackfillResumeOptions()
    launch.launch_backfill(store, load_settings(), lambda progress, phase: None, resume)

    def ask() -> None:
        raise AssertionError("the server is asked")

    monkeypatch.setattr("prefect.results._read_server_default_result_storage_block_id", ask)
    with temporary_settings({PREFECT_API_URL: "http://prefect/api"}):
        nowhere: Any = ResultStore()
        of_flow = nowhere.update_for_flow(started[0].func, _sync=True)
        of_flow.update_for_flow(map_windows, _sync=True)
