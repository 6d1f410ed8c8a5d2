"""A cluster that is started for a run, and scales itself with the work there is."""

from __future__ import annotations

import time

import pytest

from pipeline.cluster.task_runner import slot_count, task_runner
from pipeline.config.sections import DaskSettings
from tests.faults.world import await_that

pytestmark = pytest.mark.integration

PATIENCE = 120.0


def nap(number: int) -> int:
    time.sleep(2)
    return number


@pytest.mark.long
def test_workers_come_with_the_work_and_go_with_it() -> None:
    settings = DaskSettings.model_validate(
        {"workers": 1, "threads_per_worker": 1, "adapt": {"minimum": 1, "maximum": 2}}
    )
    with task_runner(settings, {}) as runner:
        client = runner.client
        futures = client.map(nap, range(8), pure=False)
        await_that(lambda: slot_count(runner) == 2, "a second worker", PATIENCE)
        assert client.gather(futures) == list(range(8))
        del futures
        await_that(lambda: slot_count(runner) == 1, "one worker", PATIENCE)
