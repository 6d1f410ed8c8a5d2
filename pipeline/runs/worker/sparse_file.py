"""A local file with holes: only the byte ranges that a chunk needs of a large object.

Polars then scans it natively, with every push-down it knows, while each byte came from a request
that was conditional on the planned version. In memory on Linux; an unlinked temporary file
elsewhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from types import TracebackType
from typing import Self

GAP_BYTES = 512 << 10
"""Ranges closer than this are read as one: on S3 a request costs about as much as 1 MiB."""
RANGE_BYTES = 16 << 20
"""Longer ranges are cut, so that several connections share the work."""


class SparseFile:
    """Bytes of an object at their own offsets; what was not written reads as zeros."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("chunkmap")
            self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
            self._name: str | None = None
        else:
            self._descriptor, self.path = tempfile.mkstemp(suffix=".parquet")
            self._name = self.path
        os.ftruncate(self._descriptor, size)
        self._open = True

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes at an offset."""
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + written, data[written:]

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from an offset on; fewer at the end."""
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        """Free the memory; scans that are still open keep theirs."""
        if self._open:
            self._open = False
            os.close(self._descriptor)
            if self._name:
                os.unlink(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def coalesce(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join half-open spans that overlap or nearly touch, then cut those that are long."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start - joined[-1][1] <= GAP_BYTES:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return [
        (start, min(start + RANGE_BYTES, stop))
        for first, stop in joined
        for start in range(first, stop, RANGE_BYTES)
    ]
