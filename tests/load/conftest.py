"""An output in a folder of its own, and a fresh place in a database of each kind."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.targets import DuckDBTarget, PostgresTarget, Target
from tests.servers.postgres import Postgres, postgres
from tests.support.published_frames import Frames


@pytest.fixture
def output(tmp_path: Path) -> Frames:
    return Frames.of(tmp_path)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def in_postgres(output: Frames, server: Postgres) -> PostgresTarget:
    schema = f"s{uuid.uuid4().hex[:12]}"
    server.run(f"CREATE SCHEMA {schema}")
    return PostgresTarget(output, server, schema)


@pytest.fixture(params=["duckdb", pytest.param("postgresql", marks=pytest.mark.integration)])
def target(request: pytest.FixtureRequest, output: Frames, tmp_path: Path) -> Target:
    if request.param == "duckdb":
        return DuckDBTarget(output, tmp_path / "warehouse.duckdb")
    in_postgres: Target = request.getfixturevalue("in_postgres")
    return in_postgres
