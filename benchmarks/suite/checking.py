"""Is a result right? Each is read again, unless it is byte for byte one that was found right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.suite.digest import digest_of
from benchmarks.suite.expected import Expected
from partitioning import ObjectInfo
from pipeline.storage import Storage

Contents = tuple[tuple[tuple[str, ...], str, int], ...]
"""Of each object: its Hive partitions, ETag, bytes. Names are left out: some are random."""


@dataclass(slots=True)
class Checker:
    """Holds results against what a workload must write.

    S3's ETag is a hash of what was stored, made by the server: the writer of a result does not get
    to say what is in it, here no more than where it is read.
    """

    storage: Storage
    expected: Expected
    _right: set[Contents] = field(default_factory=set)

    def problem(self, iterations: Iterable[Mapping[str, Any]]) -> str:
        """How the first wrong result differs from what was expected; empty if none does.

        Args:
            iterations: What a subject reported; `output` is the prefix that it wrote under.
        """
        for iteration in iterations:
            problem = self._difference(iteration["output"])
            if problem:
                return f"wrong result: {problem}"
        return ""

    def _difference(self, prefix: str) -> str:
        found = contents(self.storage.objects(prefix))
        if found in self._right:
            return ""
        try:
            read = digest_of(self.storage, prefix, self.expected.schema)
        except ValueError as error:
            return str(error)
        problem = read.difference(self.expected.digest)
        if not problem:
            self._right.add(found)
        return problem


def contents(objects: Iterable[ObjectInfo]) -> Contents:
    """What Parquet objects hold, whatever they are called and in whatever order they are listed."""
    return tuple(
        sorted(
            (_partition(info.uri), info.etag, info.size)
            for info in objects
            if info.uri.endswith(".parquet")
        )
    )


def _partition(uri: str) -> tuple[str, ...]:
    return tuple(part for part in uri.split("/")[:-1] if "=" in part)
