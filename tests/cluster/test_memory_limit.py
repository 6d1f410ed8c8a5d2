"""A worker knows how much memory it may use."""

import pytest

from pipeline.cluster.futures import memory_limit
from tests.support.plain_dask import plain_client


@pytest.mark.long
@pytest.mark.integration
def test_a_worker_without_a_limit_has_none() -> None:
    """One with a limit is in tests/integration/test_engine.py."""
    with plain_client(memory_limit=0) as client:
        assert client.submit(memory_limit).result(60) == 0


def test_another_process_has_none() -> None:
    assert memory_limit() == 0
