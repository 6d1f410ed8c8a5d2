"""What the benchmarks under pytest share: they measure on a stack that is up, and start none."""

from __future__ import annotations

import pytest

from benchmarks.suite.settings import TRANSFORMS, VARIABLE, load_suite_settings
from pipeline.cluster import local
from pipeline.config.settings import Settings


@pytest.fixture(scope="session")
def running() -> Settings:
    """The settings of a stack that is up and may run the workloads' transforms."""
    found = load_suite_settings()
    if not all(service.state == "running" for service in local.status(found)):
        pytest.skip(f"the local stack is down: {VARIABLE}=examples,{TRANSFORMS} chunkmap up")
    return found
