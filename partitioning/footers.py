"""Many Parquet footers: one suffix read each, parsed, checked, and boiled down to figures."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from partitioning.filters import Filter
from partitioning.model import ObjectInfo
from partitioning.pruning import StatisticsFilter
from partitioning.reader import Reader, TailRequest
from partitioning.schemas import normalise
from partitioning.sizes import Leaf, column_bytes, count_leaves, flat_leaves, leaves

END: Final = 8
"""Bytes behind the footer: its length (4) and the magic bytes (4)."""
_SMALLEST: Final = 12
"""Bytes of the smallest possible Parquet file: magic bytes at both ends, a length."""
_MOST_ITEMS: Final = 1_000_000
"""Elements of one list in a footer, at most: no honest file has as many columns or row groups."""


@dataclass(frozen=True, slots=True)
class FooterSpec:
    """What to take from each footer; small, and pickles."""

    columns: frozenset[str] | None
    """Top-level columns whose sizes count; None is all."""
    filter: Filter
    partitions: frozenset[str]
    """Hive columns: terms on them are decided already."""
    limit: int
    """Bytes of a footer, at most."""
    first_read: int
    """Bytes of the first suffix read."""
    concurrency: int


@dataclass(frozen=True, slots=True)
class FooterGroup:
    """Objects whose footers are read together, wherever that happens."""

    start: int
    """Position of the first among all objects to read."""
    objects: tuple[ObjectInfo, ...]
    live: tuple[tuple[int, ...], ...]
    """For each object, the groups of the filter that its partition values leave."""


@dataclass(slots=True)
class FooterBatch:
    """What the footers of one group say; columns, small to send."""

    positions: array[int] = field(default_factory=lambda: array("q"))
    """Of each readable object; the next three run beside it."""
    footer_sizes: array[int] = field(default_factory=lambda: array("q"))
    schema: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    """Row groups of the object; the next four hold a value for each of them."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    stored: array[int] = field(default_factory=lambda: array("q"))
    decoded: array[int] = field(default_factory=lambda: array("q"))
    kept: bytearray = field(default_factory=bytearray)
    """1 unless statistics prove that no row matches the filter."""
    schemas: list[bytes] = field(default_factory=list)
    """Distinct normalised Arrow schemas, serialised."""
    errors: list[tuple[int, int, str]] = field(default_factory=list)
    """(position, offset in the object, reason) of each bad object."""
    requests: int = 0


class BadFooter(Exception):
    """One object is not readable Parquet: (offset in bytes, reason)."""


def footer_length(tail: bytes, size: int, limit: int) -> int:
    """Return the bytes of the footer, from the last 8 bytes of an object.

    Raises:
        BadFooter: there is no footer there, or none that we read.
    """
    if size < _SMALLEST or len(tail) < END:
        raise BadFooter(0, f"{size} bytes: too small for a Parquet file")
    magic = tail[-4:]
    if magic == b"PARE":
        raise BadFooter(size - 4, "encrypted footer (PARE): not supported")
    if magic != b"PAR1":
        raise BadFooter(
            size - 4, f"ends with {magic!r} instead of b'PAR1': truncated or no Parquet"
        )
    length = int.from_bytes(tail[-END:-4], "little")
    if not 0 < length <= size - _SMALLEST:
        raise BadFooter(size - END, f"claims a footer of {length} bytes in an object of {size}")
    if length > limit:
        raise BadFooter(size - END, f"footer of {length} bytes, above the limit of {limit}")
    return length


class _Footer(pq.ParquetFile):  # type: ignore[misc]
    """A file of which only the footer is there."""

    def _build_nested_paths(self) -> dict[str, list[int]]:
        # For reading columns by name: a third of the time that opening takes, and not used here.
        return {}


def parse_footer(tail: bytes, length: int, size: int) -> pq.FileMetaData:
    """Parse a footer that lies at the end of `tail`.

    Raises:
        BadFooter: it does not parse, or contradicts itself.
    """
    try:
        file = _Footer(
            pa.BufferReader(tail),
            # A list's claimed length is allocated before it is read: an element takes at
            # least three bytes, so a longer list is a lie.
            thrift_container_size_limit=max(64, min(length // 3, _MOST_ITEMS)),
            thrift_string_size_limit=length,
        )
        metadata = file.metadata
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise BadFooter(size - END - length, f"footer does not parse: {_line(error)}") from error
    return metadata


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


class _Layout:
    """What is the same for all files of one schema."""

    def __init__(self, metadata: pq.FileMetaData, spec: FooterSpec) -> None:
        arrow = metadata.schema.to_arrow_schema()
        if count_leaves(arrow) != metadata.num_columns:
            raise BadFooter(0, f"{metadata.num_columns} columns do not fit the schema")
        self.serialised: bytes = normalise(arrow).serialize().to_pybytes()
        self.leaves: tuple[Leaf, ...] = leaves(arrow, spec.columns)
        self.filter = (
            StatisticsFilter(spec.filter, spec.partitions, arrow, flat_leaves(arrow))
            if spec.filter
            else None
        )


class _Collector:
    """Turns footers into the columns of a `FooterBatch`."""

    def __init__(self, spec: FooterSpec) -> None:
        self.batch = FooterBatch()
        self._spec = spec
        self._layouts: list[tuple[Any, Any, _Layout, int]] = []

    def add(
        self, position: int, live: tuple[int, ...], info: ObjectInfo, tail: bytes, length: int
    ) -> None:
        metadata = parse_footer(tail, length, info.size)
        batch = self.batch
        start = info.size - END - length
        try:
            layout, schema = self._layout(metadata)
            groups = list(_groups(metadata, layout, live, info.size))
        except BadFooter as bad:
            raise BadFooter(start, bad.args[1]) from None
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise BadFooter(start, f"footer does not parse: {_line(error)}") from error
        batch.positions.append(position)
        batch.footer_sizes.append(length + END)
        batch.schema.append(schema)
        batch.counts.append(len(groups))
        for rows, stored, decoded, kept in groups:
            batch.rows.append(rows)
            batch.stored.append(stored)
            batch.decoded.append(decoded)
            batch.kept.append(kept)

    def _layout(self, metadata: pq.FileMetaData) -> tuple[_Layout, int]:
        schema, extra = metadata.schema, (metadata.metadata or {}).get(b"ARROW:schema")
        for known, known_extra, layout, index in reversed(self._layouts):
            if known_extra == extra and known.equals(schema):
                return layout, index
        layout = _Layout(metadata, self._spec)
        if layout.serialised not in self.batch.schemas:
            self.batch.schemas.append(layout.serialised)
        index = self.batch.schemas.index(layout.serialised)
        self._layouts.append((schema, extra, layout, index))
        return layout, index


def _groups(
    metadata: pq.FileMetaData, layout: _Layout, live: tuple[int, ...], size: int
) -> Iterator[tuple[int, int, int, bool]]:
    total = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        rows = group.num_rows
        total += rows
        stored, decoded = 0, 0.0
        for leaf in layout.leaves:
            column = group.column(leaf.index)
            compressed = column.total_compressed_size
            if not 0 <= compressed <= size or column.num_values < 0:
                raise BadFooter(
                    0,
                    f"row group {index}, column {column.path_in_schema}: {compressed} bytes, "
                    f"{column.num_values} values in an object of {size} bytes",
                )
            stored += compressed
            decoded += column_bytes(leaf, rows, column)
        if rows < 0:
            raise BadFooter(0, f"row group {index} claims {rows} rows")
        kept = rows > 0 and (
            layout.filter is None or layout.filter.keeps(group, metadata.schema, live)
        )
        yield rows, stored, round(decoded), kept
    if total != metadata.num_rows:
        raise BadFooter(0, f"claims {metadata.num_rows} rows; its row groups hold {total}")


class _SuffixLength:
    """How many bytes to ask for: enough for 95 in 100 of the footers seen so far.

    What is asked for never enters a plan; it decides bandwidth and second reads only.
    """

    _LEAST, _MOST, _LEARNT_FROM = 13, 20, 64  # powers of two: 8 KiB, 1 MiB; footers

    def __init__(self, first: int) -> None:
        self.bytes = first
        self._seen = 0
        self._powers = [0] * 33

    def saw(self, footer_size: int) -> None:
        self._seen += 1
        self._powers[min(footer_size.bit_length(), 32)] += 1
        if self._seen >= self._LEARNT_FROM and self._seen % self._LEARNT_FROM == 0:
            below = accumulate(self._powers)
            power = next(p for p, count in enumerate(below) if count * 100 >= self._seen * 95)
            self.bytes = 2 ** min(max(power, self._LEAST), self._MOST)


def read_footers(
    reader: Reader,
    spec: FooterSpec,
    group: FooterGroup,
    progress: Callable[[int], None] | None = None,
) -> FooterBatch:
    """Read a group's footers: one suffix read each, a second for those larger than the first.

    Args:
        reader: the store.
        spec: what to take.
        group: the objects.
        progress: called with the number of objects done, now and then.

    Raises:
        FilterError: a filter value does not compare with its column's type.
    """
    collector = _Collector(spec)
    batch = collector.batch
    index = {info.uri: i for i, info in enumerate(group.objects)}
    length = _SuffixLength(spec.first_read)
    larger: list[TailRequest] = []

    def first() -> Iterator[TailRequest]:
        for i, info in enumerate(group.objects):
            if info.size < _SMALLEST:
                # Not asked for: a range of an empty object is an error of its own on every store.
                bad = f"{info.size} bytes: too small for a Parquet file"
                batch.errors.append((group.start + i, 0, bad))
            else:
                yield TailRequest(info, min(info.size, length.bytes))

    done = sum(info.size < _SMALLEST for info in group.objects)
    for second in (False, True):
        requests = list(larger) if second else first()
        for tail in reader.read_tails(requests, spec.concurrency):
            batch.requests += 1
            at = index[tail.object.uri]
            try:
                if tail.data is None:
                    raise BadFooter(0, tail.error or "unreadable")
                need = footer_length(tail.data, tail.object.size, spec.limit)
                length.saw(need + END)
                if need + END > len(tail.data):
                    if second:
                        raise BadFooter(0, "its footer changed between two reads")
                    larger.append(TailRequest(tail.object, need + END))
                    continue
                collector.add(group.start + at, group.live[at], tail.object, tail.data, need)
            except BadFooter as bad:
                batch.errors.append((group.start + at, *bad.args))
            done += 1
            if progress is not None and (done % 256 == 0 or done == len(group.objects)):
                progress(done)
    return batch
