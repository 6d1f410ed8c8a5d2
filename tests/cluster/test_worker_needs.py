"""How many batches a cluster can run at a time, by threads, concurrency and resources."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.task_runner import check_resources, slot_count
from pipeline.errors import EngineUnavailableError


def _runner(*workers: dict[str, Any]) -> Any:
    info = {"workers": {f"tcp://{number}": worker for number, worker in enumerate(workers)}}
    client = SimpleNamespace(status="running", scheduler_info=lambda n_workers: info)
    return SimpleNamespace(_client=client, client=client)


GPU = {"nthreads": 4, "resources": {"GPU": 2.0, "disk": 1.0}}
PLAIN = {"nthreads": 4, "resources": {}}


@pytest.mark.parametrize(
    ("concurrency", "resources", "slots"),
    [
        (None, {}, 8),
        (1, {}, 2),
        (9, {}, 8),
        (None, {"GPU": 1.0}, 2),
        (None, {"GPU": 2.0}, 1),
        (None, {"GPU": 3.0}, 0),
        (None, {"disk": 0.1}, 4),
        (3, {"disk": 0.25}, 3),
        (None, {"GPU": 1.0, "TPU": 1.0}, 0),
    ],
)
def test_batches_at_a_time(
    concurrency: int | None, resources: dict[str, float], slots: int
) -> None:
    assert slot_count(_runner(GPU, PLAIN), concurrency, resources) == slots


def test_a_cluster_without_the_resources_is_refused() -> None:
    check_resources(_runner(GPU, PLAIN), {"GPU": 2.0})
    check_resources(_runner(PLAIN), {})
    check_resources(_runner(), {"TPU": 1.0})  # Its workers may be about to come.
    with pytest.raises(EngineUnavailableError, match=r"offers \{GPU: 3\}") as refused:
        check_resources(_runner(GPU, PLAIN), {"GPU": 3.0})
    assert "CHUNKMAP_DASK__RESOURCES='{GPU: 3}'" in str(refused.value.hint)
