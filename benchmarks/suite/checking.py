"""Is a result right? Each is read again, unless it is byte for byte one that was found right."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.suite.digest import digest_of
from benchmarks.suite.expected import Expected
from partitioning import ObjectInfo, TailRequest
from pipeline.storage import Storage, StorageReader

Contents = tuple[tuple[tuple[str, ...], str, int], ...]
"""Of each object: its Hive partitions, ETag, bytes. Names are left out: some are random."""
_TAIL_BYTES = 64 * 1024
"""Bytes to read of a file's end, which hold most footers."""


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


@dataclass(frozen=True, slots=True)
class Written:
    """An output as S3 has it."""

    files: int | None
    """Parquet objects; None if nobody looked."""
    bytes: int | None
    codecs: tuple[str, ...] = ()
    """Compression of the column chunks of the first of them, e.g. ZSTD."""


NOT_LISTED = Written(None, None)


def written(storage: Storage, prefix: str) -> Written:
    """List an output, and read one of its footers."""
    found = [info for info in storage.objects(prefix) if info.uri.endswith(".parquet")]
    if not found:
        return Written(0, 0)
    return Written(len(found), sum(info.size for info in found), _codecs(storage, found[0]))


def _codecs(storage: Storage, info: ObjectInfo) -> tuple[str, ...]:
    """The codecs in an object's footer; none if it is no Parquet file, which the checker tells."""
    tail = _tail(storage, info, _TAIL_BYTES)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > len(tail):
        tail = _tail(storage, info, length)
    try:
        # To a reader of metadata, a footer alone is a file.
        footer = pq.read_metadata(io.BytesIO(b"PAR1" + tail[-length:]))
    except pa.ArrowException:
        return ()
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    chunks = (group.column(n) for group in groups for n in range(group.num_columns))
    return tuple(sorted({chunk.compression for chunk in chunks}))


def _tail(storage: Storage, info: ObjectInfo, length: int) -> bytes:
    (tail,) = StorageReader(storage).read_tails([TailRequest(info, length)], 1)
    return tail.data or b""


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
