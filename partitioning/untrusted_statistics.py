"""Decide which statistics to trust, by the writer's name in `created_by`.

Sources: Arrow's `ApplicationVersion::HasCorrectStatistics` (cpp/src/parquet/metadata.cc), which
follows parquet-java's `CorruptStatistics`: PARQUET-251 and PARQUET-297 (text and bytes ordered as
signed). Other wrong statistics were found in public files: null counts of dictionary columns by
parquet-cpp-arrow 4, and times by Parquet.Net.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import pyarrow as pa

from partitioning.parquet_footer import BYTE_ARRAY, Leaf

_CREATED_BY: Final = re.compile(
    r"(?P<name>.+?)(?: version)? v?(?P<version>\d+(?:\.\d+)*)", re.ASCII
)
Version = tuple[int, ...]
_UNSIGNED_SINCE: Final[dict[str, Version]] = {"parquet-mr": (1, 10), "parquet-cpp": (1, 3)}
"""First releases that order text and bytes by unsigned bytes."""


@dataclass(frozen=True, slots=True)
class Writer:
    """The program that wrote a file."""

    name: str
    """Name in lower case; empty if unknown."""
    version: Version


@dataclass(frozen=True, slots=True)
class Trust:
    """Trustworthy statistics of a writer."""

    null_counts: bool
    bytes: bool
    """Bounds of text, bytes, and decimals that are stored as bytes."""
    times: bool
    """Bounds of dates and times."""

    def bounds_of(self, leaf: Leaf, kind: pa.DataType) -> bool:
        """Whether the minimum and maximum of a column can be trusted."""
        if leaf.physical >= BYTE_ARRAY and not self.bytes:
            return False
        return self.times or not pa.types.is_temporal(kind)


@lru_cache(maxsize=256)
def parse_writer(created_by: str) -> Writer:
    """Return a writer's name and version."""
    match = _CREATED_BY.match(created_by)
    if match is None:
        return Writer(created_by.strip().lower()[:100], ())
    version = tuple(int(part) for part in match["version"].split(".")[:4] if len(part) < 10)
    return Writer(match["name"].strip().lower(), version)


@lru_cache(maxsize=256)
def writer_trust(created_by: str) -> Trust:
    """Return which statistics of a writer can be trusted."""
    writer = parse_writer(created_by)
    since = _UNSIGNED_SINCE.get(writer.name)
    return Trust(
        null_counts=not (writer.name == "parquet-cpp-arrow" and writer.version[:1] == (4,)),
        bytes=bool(writer.name) and (since is None or writer.version >= since),
        times=not writer.name.startswith("parquet.net"),
    )
