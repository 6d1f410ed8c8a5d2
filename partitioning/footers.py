"""Many Parquet footers: one suffix read each, parsed, checked, and boiled down to figures."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Final

from partitioning.dtypes import (
    FileTypes,
    Int96Unit,
    UnreadableSchemaError,
    arrow_schema_of,
    file_types,
    pack_schema,
    plain_arrow_schema,
)
from partitioning.filters import Filter
from partitioning.model import ObjectInfo
from partitioning.page_index import is_indexed
from partitioning.parquet_footer import (
    END,
    BadFooter,
    FileSchema,
    Footer,
    Wish,
    parse_footer,
)
from partitioning.pruning import StatisticsFilter
from partitioning.reader import Reader, TailRequest
from partitioning.sizes import column_bytes, leaf_sizes

_SMALLEST: Final = 12
"""Bytes of the smallest possible Parquet file: magic bytes at both ends, a length."""


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
    int96: Int96Unit = "us"
    """Unit of INT96 times."""
    declared: frozenset[str] = frozenset()
    """Columns that come as another type than the files': their statistics decide nothing."""

    @property
    def wish(self) -> Wish:
        """The same for the parser."""
        filtered = {term.column for group in self.filter for term in group}
        return Wish(self.columns, frozenset(filtered - self.partitions - self.declared))


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
    """Row groups of the object; the next five hold a value for each of them."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    stored: array[int] = field(default_factory=lambda: array("q"))
    decoded: array[int] = field(default_factory=lambda: array("q"))
    kept: bytearray = field(default_factory=bytearray)
    """1 unless statistics prove that no row matches the filter."""
    indexed: bytearray = field(default_factory=bytearray)
    """1 if an offset index says where the pages of each column lie that is read."""
    schemas: list[bytes] = field(default_factory=list)
    """Distinct schemas, as `pack_schema` stores them."""
    errors: list[tuple[int, int, str]] = field(default_factory=list)
    """(position, offset in the object, reason) of each bad object."""
    requests: int = 0


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


class _Layout:
    """What is the same for all files of one schema."""

    def __init__(self, schema: FileSchema, types: FileTypes, spec: FooterSpec) -> None:
        self._schema, self._types, self._spec = schema, types, spec
        self.packed = pack_schema(types.schema, types.notes)
        self.sizes = leaf_sizes(schema, types.schema)

    @cached_property
    def filter(self) -> StatisticsFilter | None:
        """The filter, bound to the types of these files."""
        if not self._spec.filter:
            return None
        arrow = arrow_schema_of(self._types.schema)
        spec = self._spec
        return StatisticsFilter(
            spec.filter, spec.partitions, arrow, self._schema, declared=spec.declared
        )


class _Collector:
    """Turns footers into the columns of a `FooterBatch`."""

    def __init__(self, spec: FooterSpec) -> None:
        self.batch = FooterBatch()
        self._spec, self._wish = spec, spec.wish
        self._layouts: dict[tuple[bytes, bytes | None], tuple[_Layout, int]] = {}

    def add(
        self, position: int, live: tuple[int, ...], info: ObjectInfo, tail: bytes, length: int
    ) -> None:
        footer = parse_footer(tail[-END - length : -END], info.size, self._wish)
        try:
            layout, schema = self._layout(footer)
        except UnreadableSchemaError as error:
            raise BadFooter(info.size - END - length, str(error)) from None
        batch = self.batch
        batch.positions.append(position)
        batch.footer_sizes.append(length + END)
        batch.schema.append(schema)
        batch.counts.append(len(footer.groups))
        for group in footer.groups:
            batch.rows.append(group.rows)
            batch.stored.append(sum(column.compressed for column in group.columns))
            decoded = sum(
                column_bytes(layout.sizes[column.leaf.index], group.rows, column)
                for column in group.columns
            )
            batch.decoded.append(round(decoded))
            keeps = layout.filter is None or layout.filter.keeps(group, footer.created_by, live)
            batch.kept.append(group.rows > 0 and keeps)
            batch.indexed.append(all(is_indexed(c) for c in group.columns if c.values))

    def _layout(self, footer: Footer) -> tuple[_Layout, int]:
        stored = footer.arrow_schema
        arrow_schema = None if stored is None else plain_arrow_schema(stored)
        key = (footer.schema.raw, arrow_schema)
        if key not in self._layouts:
            types = file_types(footer.schema, arrow_schema, self._spec.int96)
            layout = _Layout(footer.schema, types, self._spec)
            if layout.packed not in self.batch.schemas:
                self.batch.schemas.append(layout.packed)
            self._layouts[key] = layout, self.batch.schemas.index(layout.packed)
        return self._layouts[key]


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
