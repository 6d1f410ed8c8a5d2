"""Fixtures of this folder; see tests/support/fixtures.py."""

from tests.servers.fixtures import external, ministack, moto, seaweedfs
from tests.support.fixtures import valid_charts
from tests.support.sources import folder

__all__ = ["external", "folder", "ministack", "moto", "seaweedfs", "valid_charts"]
