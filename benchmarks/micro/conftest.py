"""What the benchmarks under pytest share: they measure on a stack that is up, and start none."""

from __future__ import annotations

import pytest

from benchmarks.suite.session import TRANSFORMS
from pipeline.cluster import local
from pipeline.config.settings import Settings, load_settings


@pytest.fixture(scope="session")
def running() -> Settings:
    """The settings of a stack that is up and may run the workloads' transforms."""
    found = load_settings()
    if not all(one.state == "running" for one in local.status(found)):
        pytest.skip("the local stack is down: chunkmap up")
    if TRANSFORMS not in found.transforms.allow:
        pytest.skip(f"the settings do not allow {TRANSFORMS} as transforms")
    return found
