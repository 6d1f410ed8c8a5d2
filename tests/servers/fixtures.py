"""Session fixtures of the servers; a conftest imports them. All processes of tests share them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import CONTRACT_KEYS
from tests.servers import launching
from tests.servers.launching import Server
from tests.servers.sharing import shared


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with shared(tmp_path_factory, "moto") as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with shared(tmp_path_factory, "seaweedfs") as server:
        yield server


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with shared(tmp_path_factory, "ministack") as server:
        yield server


@pytest.fixture(scope="session")
def external(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The service that CONTRACT_S3 names."""
    environ = request.config.stash[CONTRACT_KEYS]
    with launching.external(os.environ["CONTRACT_S3"], environ) as server:
        yield server
