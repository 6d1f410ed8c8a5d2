"""Keep the byte ranges that a chunk needs of a large object in a local file with holes.

Polars scans it natively, with all its push-downs, while each byte comes from a request that is
conditional on the planned version. The file is in memory on Linux, and a temporary file elsewhere.
A small object, which is read whole, needs no file: Polars scans its bytes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from threading import Lock
from types import TracebackType
from typing import Self

GAP_BYTES = 512 << 10
"""Maximum gap between ranges that are read as one: on S3 a request costs about as much as 1 MiB."""
RANGE_BYTES = 16 << 20
"""Maximum length of a range; longer ones are cut, to be read over several connections."""


class SparseFile:
    """Bytes of an object at their offsets; bytes that were not written read as zeros."""

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

    @property
    def scanned(self) -> str | bytes:
        """What Polars scans."""
        return self.path

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at an offset."""
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + written, data[written:]

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes at an offset; fewer at the end of the file."""
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        """Free the memory; open scans keep theirs."""
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


class WholeFile:
    """All bytes of a small object; a `SparseFile` of them is made only where a path is needed."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._file: SparseFile | None = None
        self._lock = Lock()

    @property
    def scanned(self) -> str | bytes:
        """What Polars scans."""
        return self._data.obj if isinstance(self._data.obj, bytes) else bytes(self._data)

    @property
    def path(self) -> str:
        """Path of a file with these bytes."""
        with self._lock:
            if self._file is None:
                self._file = SparseFile(len(self._data))
                self._file.write(0, self._data)
            return self._file.path

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at an offset; before the path is used."""
        parts = (self._data[:offset], data, self._data[offset + len(data) :])
        self._data = memoryview(b"".join(parts))

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes at an offset; fewer at the end of the file."""
        return bytes(self._data[offset : offset + length])

    def close(self) -> None:
        """Free the memory; open scans keep theirs."""
        self._data = memoryview(b"")
        with self._lock:
            if self._file is not None:
                self._file.close()


def coalesce(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join half-open spans that overlap or nearly touch, then cut long ones."""
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
