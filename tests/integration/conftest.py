"""One stack for all tests that give commands, however many processes they run in."""

import os
from collections.abc import Iterator

import pytest

from tests.integration.world import World, shared


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-world"
    folder.mkdir(exist_ok=True)
    with shared(folder) as one:
        yield one
