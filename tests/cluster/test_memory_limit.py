"""A worker knows how much memory it may use."""

import pytest
from distributed import Client, LocalCluster

from pipeline.cluster.futures import memory_limit

LIMIT = 700_000_000


@pytest.mark.integration
@pytest.mark.parametrize(("given", "found"), [(LIMIT, LIMIT), (0, 0)])
def test_a_worker_knows_its_limit(given: int, found: int) -> None:
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit=given,
            dashboard_address=None,
            host="127.0.0.1",
        ) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(memory_limit).result(60) == found


def test_another_process_has_none() -> None:
    assert memory_limit() == 0
