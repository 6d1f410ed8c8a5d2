"""Store several Arrow tables in an immutable file, which is decoded one record batch at a time.

Layout: magic bytes, the tables as Arrow IPC files (zstd buffers), a JSON directory, a SHA-256 of
all before it, the directory's length as 8 little-endian bytes, and magic bytes. Files of earlier
releases have no checksum, and other magic bytes at their end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.ipc

from partitioning.errors import PlanFormatError

MAGIC: Final = b"CMPLAN01"
MAGIC_CHECKED: Final = b"CMPLAN02"
"""Magic bytes at the end of a file with a checksum."""
_DIGEST_BYTES: Final = 32
BATCH_ROWS: Final = 16_384
"""Number of rows of a record batch: few, so that reading a chunk decodes little."""
_CACHED_BATCHES: Final = 16


def pack_tables(tables: Mapping[str, pa.Table], meta: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file; equal tables and meta give equal bytes."""
    sink = pa.BufferOutputStream()
    sink.write(MAGIC)
    directory: dict[str, tuple[int, int]] = {}
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for name, table in tables.items():
        part = pa.BufferOutputStream()
        with pa.ipc.new_file(part, table.schema, options=options) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=BATCH_ROWS)
        buffer = part.getvalue()
        # Arrow reads without a copy only from aligned offsets.
        sink.write(b"\0" * (-sink.tell() % 64))
        directory[name] = (sink.tell(), buffer.size)
        sink.write(buffer)
    trailer = json.dumps({"tables": directory, "meta": meta}, sort_keys=True).encode()
    sink.write(trailer)
    body = sink.getvalue().to_pybytes()
    ends = hashlib.sha256(body).digest(), len(trailer).to_bytes(8, "little"), MAGIC_CHECKED
    return b"".join((body, *ends))


class TableFile:
    """Reads a file from `pack_tables`; a batch is decompressed on the first access to its rows."""

    def __init__(self, data: bytes | memoryview | pa.Buffer) -> None:
        self._buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
        ends = len(MAGIC) + 8
        size = self._buffer.size
        if size < len(MAGIC) + ends or self._bytes(0, len(MAGIC)) != MAGIC:
            raise PlanFormatError(f"not a plan file ({size} bytes without its magic bytes)")
        magic = self._bytes(size - len(MAGIC), len(MAGIC))
        if magic not in (MAGIC, MAGIC_CHECKED):
            raise PlanFormatError(f"truncated plan file ({size} bytes, no magic bytes at its end)")
        self.has_checksum = magic == MAGIC_CHECKED
        length = int.from_bytes(self._bytes(size - ends, 8), "little")
        ends += _DIGEST_BYTES if self.has_checksum else 0
        if length > size - ends:
            raise PlanFormatError(f"damaged plan file: directory of {length} in {size} bytes")
        if self.has_checksum:
            found = hashlib.sha256(self._buffer.slice(0, size - ends)).digest()
            if found != self._bytes(size - ends, _DIGEST_BYTES):
                raise PlanFormatError("damaged plan file: its bytes do not have its checksum")
        try:
            trailer = json.loads(self._bytes(size - ends - length, length))
            self.meta: dict[str, Any] = trailer["meta"]
            self._readers = {
                name: pa.ipc.open_file(self._buffer.slice(offset, count))
                for name, (offset, count) in trailer["tables"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise PlanFormatError(f"damaged plan file: {error}") from error
        self._batch = lru_cache(_CACHED_BATCHES)(self._read_batch)

    @property
    def data(self) -> pa.Buffer:
        """The whole file."""
        return self._buffer

    def _bytes(self, offset: int, length: int) -> bytes:
        return self._buffer.slice(offset, length).to_pybytes()  # type: ignore[no-any-return]

    def _read_batch(self, name: str, index: int) -> pa.RecordBatch:
        return self._readers[name].get_batch(index)

    def table(self, name: str) -> pa.Table:
        """Return one table, all of it."""
        return self._readers[name].read_all()

    def rows(self, name: str, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) of one table, decoding only the batches they are in."""
        reader = self._readers[name]
        if stop <= start:
            return reader.schema.empty_table()
        first, last = start // BATCH_ROWS, (stop - 1) // BATCH_ROWS
        if last - first >= _CACHED_BATCHES:
            batches = [reader.get_batch(i) for i in range(first, last + 1)]
        else:
            batches = [self._batch(name, i) for i in range(first, last + 1)]
        offset = start - first * BATCH_ROWS
        return pa.Table.from_batches(batches).slice(offset, stop - start)
