"""Session fixtures of the servers; a conftest imports them. Each xdist worker starts its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import CONTRACT_KEYS
from tests.servers import launching
from tests.servers.launching import Server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with launching.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with launching.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with launching.ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="session")
def external(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The service that CONTRACT_S3 names."""
    environ = request.config.stash[CONTRACT_KEYS]
    with launching.external(os.environ["CONTRACT_S3"], environ) as server:
        yield server
