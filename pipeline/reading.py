"""Reading a chunk: pinned versions, only the columns that are asked for, as a LazyFrame.

Two ways to hold a version were compared. Polars' own S3 scan with a HEAD after it sees a
replacement only afterwards, and misses one that is put back. Conditional range requests (If-Match)
cannot mix versions, and cost nothing beyond the requests that are needed anyway. Hence the second.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from threading import Lock
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from partitioning import Chunk, Fragment, ObjectInfo
from pipeline.errors import ObjectChangedError
from pipeline.page_checksums import verify_pages
from pipeline.sparse import SparseFile, coalesce
from pipeline.storage import Storage

WHOLE_BYTES = 512 << 10
"""Objects up to this size are read whole: one request instead of two."""
FRAGMENTS_AT_ONCE = 8
"""Small fragments of one chunk that are read at a time."""
STEP_BYTES = 32 << 20
"""Decoded bytes of row groups that are decoded together. Each step reads the footer again, which
for a hundred columns takes as long as decoding a small row group; more would only cost memory."""
SMALL_BYTES = 1 << 20
"""Decoded bytes up to which Polars' in-memory engine is the faster one."""

Engine = Literal["in-memory", "streaming"]


def engine_for(decoded_bytes: float) -> Engine:
    """Which of Polars' engines to collect with.

    The streaming engine keeps memory low and works on what fits into a core's cache; what is small
    needs neither, and is done in a quarter of the time.
    """
    return "in-memory" if decoded_bytes <= SMALL_BYTES else "streaming"


@lru_cache(maxsize=8)
def polars_schema(schema: pa.Schema) -> pl.Schema:
    """The dataset's schema as Polars reads it from Parquet."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    buffer.seek(0)
    return pl.scan_parquet(buffer).collect_schema()


class FragmentCopy:
    """The local copy of one fragment, filled column by column."""

    def __init__(self, storage: Storage, fragment: Fragment, *, verified: bool = False) -> None:
        self._verified = verified
        self.partition = dict(fragment.partition)
        self.engine = engine_for(fragment.decoded_bytes)
        self._storage = storage
        self._fragment = fragment
        self._info = ObjectInfo(fragment.uri, fragment.etag, fragment.size)
        self._file = SparseFile(fragment.size)
        self._held: set[str] = set()
        self._lock = Lock()
        self.bytes_read = 0
        self._whole = fragment.size <= WHOLE_BYTES
        try:
            start = 0 if self._whole else fragment.size - fragment.footer_size
            self._fetch([(start, fragment.size)])
            self._metadata = self._parse()
            if not self._whole:
                self._file.write(0, memoryview(b"PAR1"))
        except BaseException:
            self._file.close()
            raise

    def _fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        for (start, _), data in zip(
            spans, self._storage.get_ranges(self._info, spans), strict=True
        ):
            self._file.write(start, data)
            self.bytes_read += len(data)

    def _parse(self) -> pq.FileMetaData:
        """The footer, held against the plan: the conditional read vouches for its version."""
        with open(self._file.path, "rb") as file:
            metadata = pq.read_metadata(file)
        part = self._fragment
        groups = range(part.row_group_start, part.row_group_stop)
        if metadata.num_row_groups < part.row_group_stop:
            raise ObjectChangedError(part.uri, part.etag, None)
        if sum(metadata.row_group(g).num_rows for g in groups) != part.rows:
            raise ObjectChangedError(part.uri, part.etag, None)
        return metadata

    @property
    def columns(self) -> set[str]:
        """Top-level columns that the object has."""
        return set(self._metadata.schema.to_arrow_schema().names)

    def fetch(self, columns: Iterable[str]) -> None:
        """Bring columns of this fragment's row groups here, unless they are."""
        with self._lock:
            wanted = (set(columns) & self.columns) - self._held
            if wanted and not self._whole:
                self._fetch(coalesce(self._spans(wanted)))
            if wanted and self._verified:
                self._verify(wanted)
            self._held |= wanted

    def _verify(self, columns: set[str]) -> None:
        schema = self._metadata.schema
        leaves = {n for n in range(len(schema)) if _belongs(schema.column(n).path, columns)}
        part = self._fragment
        groups = range(part.row_group_start, part.row_group_stop)
        verify_pages(self._file.path, part.uri, groups, leaves)

    def _spans(self, columns: set[str]) -> Iterator[tuple[int, int]]:
        for number in range(self._fragment.row_group_start, self._fragment.row_group_stop):
            group = self._metadata.row_group(number)
            for index in range(group.num_columns):
                chunk = group.column(index)
                if _belongs(chunk.path_in_schema, columns):
                    start = chunk.data_page_offset
                    if chunk.dictionary_page_offset:
                        start = min(start, chunk.dictionary_page_offset)
                    yield start, start + chunk.total_compressed_size

    def frames(self, columns: Sequence[str]) -> Iterator[pl.LazyFrame]:
        """Lazy frames of some row groups each, with those of the columns that the object has."""
        self.fetch(columns)
        scan = pl.scan_parquet(self._file.path, glob=False, hive_partitioning=False)
        present = [name for name in columns if name in self._held]
        start = self._fragment.row_start
        for rows in self._steps():
            if not present:
                # A frame of one stand-in column still carries the number of rows.
                yield pl.LazyFrame().select(pl.int_range(rows, dtype=pl.UInt32).alias(""))
            elif rows == self._metadata.num_rows:
                # Polars takes no predicate past a slice, and so would decode what it could skip.
                yield scan.select(present)
            else:
                yield scan.slice(start, rows).select(present)
            start += rows

    def _steps(self) -> Iterator[int]:
        """Numbers of rows: of whole row groups, as many as are decoded together."""
        part = self._fragment
        most = STEP_BYTES * part.rows // max(part.decoded_bytes, 1)
        gathered = 0
        for number in range(part.row_group_start, part.row_group_stop):
            rows = self._metadata.row_group(number).num_rows
            if gathered and gathered + rows > most:
                yield gathered
                gathered = 0
            gathered += rows
        yield gathered

    def close(self) -> None:
        """Free the copy."""
        self._file.close()


def _belongs(path: str, columns: set[str]) -> bool:
    """Whether a leaf is part of one of the columns (whose names may hold dots themselves)."""
    return any(path == name or path.startswith(name + ".") for name in columns)


def _open_all(
    storage: Storage, fragments: Sequence[Fragment], *, verified: bool
) -> list[FragmentCopy]:
    """Open fragments, several at a time; when one cannot be opened, none stays open."""
    copy = partial(FragmentCopy, storage, verified=verified)
    if len(fragments) == 1:
        return [copy(fragments[0])]
    with ThreadPoolExecutor(FRAGMENTS_AT_ONCE) as pool:
        opening = [pool.submit(copy, fragment) for fragment in fragments]
    errors = [error for one in opening if (error := one.exception()) is not None]
    if errors:
        for one in opening:
            if one.exception() is None:
                one.result().close()
        raise errors[0]
    return [one.result() for one in opening]


class ChunkSource:
    """One chunk, opened for reading."""

    def __init__(
        self,
        storage: Storage,
        chunk: Chunk,
        schema: pl.Schema,
        row_filter: pl.Expr | None = None,
        columns: Sequence[str] | None = None,
        *,
        verified: bool = False,
    ) -> None:
        self._verified = verified
        self._storage = storage
        self._chunk = chunk
        self._schema = schema
        self._visible = pl.Schema({n: schema[n] for n in columns or schema})
        self._filter = row_filter
        self._filter_columns = (
            set(row_filter.meta.root_names()) if row_filter is not None else set()
        )
        # With chunks that cross partitions these names have a value for each fragment.
        self._hive = {name for name, _ in chunk.fragments[0].partition}
        self._copies: list[FragmentCopy] | None = None
        self._lock = Lock()
        self._filtered: dict[tuple[int, int], int] = {}
        self.columns_read: set[str] = set()

    @property
    def bytes_read(self) -> int:
        """Bytes that came over the network so far."""
        return sum(copy.bytes_read for copy in self._copies or ())

    @property
    def rows_filtered(self) -> int:
        """Rows that the job's own filter took away, so far as they were read."""
        return sum(self._filtered.values())

    def prefetch(self, columns: Iterable[str]) -> None:
        """Open all fragments and bring the columns here, several fragments at a time."""
        wanted = {*columns, *self._filter_columns} - self._hive
        copies = self._opened()
        if len(copies) == 1:
            copies[0].fetch(wanted)
            return
        with ThreadPoolExecutor(FRAGMENTS_AT_ONCE) as pool:
            list(pool.map(lambda copy: copy.fetch(wanted), copies))

    def _opened(self) -> list[FragmentCopy]:
        with self._lock:
            if self._copies is None:
                self._copies = _open_all(
                    self._storage, self._chunk.fragments, verified=self._verified
                )
            return self._copies

    def scan(self) -> pl.LazyFrame:
        """The chunk as a LazyFrame; it is read when it is collected, as often as it is."""
        # Not `is_pure`: the same plan over another chunk must never be taken for this one.
        return register_io_source(self._frames, schema=self._visible, validate_schema=True)

    def _frames(
        self,
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        names = list(self._visible) if with_columns is None else with_columns
        wanted = dict.fromkeys([*names, *sorted(self._filter_columns)])
        self.columns_read |= set(wanted)
        stored = [name for name in wanted if name not in self._hive]
        self.prefetch(stored)
        left = n_rows
        for number, copy in enumerate(self._opened()):
            for step, lazy in enumerate(copy.frames(stored)):
                shaped = self._shaped(lazy, list(wanted), copy.partition)
                engine = copy.engine
                if self._filter is not None:
                    # What is in memory by now is not streamed once more.
                    shaped, engine = self._kept(shaped, engine, (number, step)).lazy(), "in-memory"
                shaped = shaped.select(names)
                if left is not None:
                    first = shaped.head(left).collect(engine=engine)
                    left, shaped, engine = left - first.height, first.lazy(), "in-memory"
                if predicate is not None:
                    shaped = shaped.filter(predicate)
                yield shaped.collect(engine=engine)
                if left == 0:
                    return

    def _kept(self, shaped: pl.LazyFrame, engine: Engine, step: tuple[int, int]) -> pl.DataFrame:
        """What the job's own filter leaves; how many rows it takes away is counted."""
        assert self._filter is not None, "only a job with a filter takes rows away"
        frame = shaped.collect(engine=engine)
        kept = frame.filter(self._filter)
        self._filtered[step] = frame.height - kept.height
        return kept

    def _shaped(
        self, lazy: pl.LazyFrame, names: list[str], partition: Mapping[str, Any]
    ) -> pl.LazyFrame:
        """Columns in order, of the dataset's types; Hive values and missing columns filled in."""
        have = lazy.collect_schema()
        changed: list[pl.Expr] = []
        for name in names:
            dtype: Any = self._schema[name]
            if name in partition:
                changed.append(pl.lit(partition[name], dtype=dtype).alias(name))
            elif name not in have:
                changed.append(pl.lit(None, dtype=dtype).alias(name))
            elif have[name] != dtype:
                changed.append(pl.col(name).cast(dtype))
        # `with_columns` first: literals alone would make a frame of one row.
        return (lazy.with_columns(changed) if changed else lazy).select(names)

    def close(self) -> None:
        """Free all copies."""
        with self._lock:
            for copy in self._copies or ():
                copy.close()
            self._copies = []
