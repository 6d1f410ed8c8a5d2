"""Datasets in memory, and readers that misbehave on purpose."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from partitioning import Chunk, ObjectInfo, Tail, TailRequest


class DictReader:
    """A store in a dict of URI -> bytes; counts what it is asked for."""

    def __init__(self, objects: Mapping[str, bytes], *, shuffle: int | None = None) -> None:
        self.objects = dict(objects)
        self.shuffle = shuffle
        self.lengths: list[int] = []

    def info(self, uri: str) -> ObjectInfo:
        data = self.objects[uri]
        return ObjectInfo(uri, f'"{hashlib.md5(data).hexdigest()}"', len(data))

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        found = [self.info(uri) for uri in self.objects if uri.startswith(uri_prefix)]
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(found)
        return iter(found)

    def head(self, uri: str) -> ObjectInfo:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        return self.info(uri)

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        taken = [self._tail(request) for request in requests]
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(taken)
        yield from taken

    def _tail(self, request: TailRequest) -> Tail:
        self.lengths.append(request.length)
        if self.info(request.object.uri) != request.object:
            return Tail(request.object, None, "replaced since it was listed")
        return Tail(request.object, self.objects[request.object.uri][-request.length :])


def parquet(table: pa.Table, rows: int = 1 << 20, **options: object) -> bytes:
    """Return a table as a Parquet file with row groups of so many rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows, **options)
    return sink.getvalue()


def ids(start: int, stop: int, **columns: object) -> pa.Table:
    """Return a table of consecutive ids, and further columns."""
    return pa.table({"id": pa.array(range(start, stop), pa.int64()), **columns})


def read(chunk: Chunk, objects: Mapping[str, bytes]) -> list[pa.Table]:
    """Return the rows of a chunk, a table a fragment, as the plan pins them."""
    found = []
    for fragment in chunk.fragments:
        file = pq.ParquetFile(pa.BufferReader(objects[fragment.uri]))
        groups = list(range(fragment.row_group_start, fragment.row_group_stop))
        before = sum(file.metadata.row_group(i).num_rows for i in range(fragment.row_group_start))
        table = file.read_row_groups(groups)
        if fragment.part is not None:
            start, stop = fragment.part
            assert len(groups) == 1 and 0 <= start < stop <= table.num_rows
            table, before = table.slice(start, stop - start), before + start
        assert (table.num_rows, before) == (fragment.rows, fragment.row_start)
        found.append(table)
    return found


def dataset(files: int = 4, rows: int = 10, group: int = 4) -> dict[str, bytes]:
    """Return a small unpartitioned dataset."""
    return {
        f"s3://b/t/{i:03d}.parquet": parquet(ids(i * rows, (i + 1) * rows), group)
        for i in range(files)
    }
