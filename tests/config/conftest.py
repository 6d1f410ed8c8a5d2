"""Fixtures of this folder; see tests/support/fixtures.py."""

from tests.support.fixtures import external, folder, ministack, moto, seaweedfs, valid_charts

__all__ = ["external", "folder", "ministack", "moto", "seaweedfs", "valid_charts"]
