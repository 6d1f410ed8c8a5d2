"""Servers that tests of the pipeline share."""

from tests.servers.fixtures import ministack, moto, seaweedfs

__all__ = ["ministack", "moto", "seaweedfs"]
