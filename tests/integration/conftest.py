"""One stack for all tests that give commands, however many processes they run in."""

from collections.abc import Iterator

import pytest

from tests.integration.world import World, shared
from tests.servers.sharing import common_folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with shared(common_folder(tmp_path_factory, "shared-world")) as one:
        yield one
