"""A worker knows how much memory it may use."""

import pytest

from pipeline.cluster.futures import memory_limit
from tests.support.plain_dask import plain_client

LIMIT = 700_000_000


@pytest.mark.sampled(2)
@pytest.mark.integration
@pytest.mark.parametrize(("given", "found"), [(LIMIT, LIMIT), (0, 0)])
def test_a_worker_knows_its_limit(given: int, found: int) -> None:
    with plain_client(memory_limit=given) as client:
        assert client.submit(memory_limit).result(60) == found


def test_another_process_has_none() -> None:
    assert memory_limit() == 0
