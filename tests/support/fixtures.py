"""Fixtures that a conftest imports: servers, a folder of inputs, and charts that are validated."""

import pytest

from pipeline.report import charts
from tests.servers.fixtures import external, ministack, moto, seaweedfs
from tests.support.sources import folder

__all__ = ["external", "folder", "ministack", "moto", "seaweedfs", "valid_charts"]


@pytest.fixture(autouse=True)
def valid_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chart that a test makes is held against the schema of Vega-Lite."""
    monkeypatch.setattr(charts, "VALIDATED", True)
