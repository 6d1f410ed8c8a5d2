"""Many Parquet footers: one suffix read each, parsed, checked, and boiled down to figures."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
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
from partitioning.footer_arrays import read_columns
from partitioning.footer_pattern import (
    FooterMatcher,
    UsualFooter,
    codec_and_encodings,
    offset_index,
)
from partitioning.model import ObjectInfo
from partitioning.page_index import is_indexed
from partitioning.parquet_footer import (
    END,
    BadFooter,
    FileSchema,
    Leaf,
    RequestedState,
    parse_footer,
)
from partitioning.pruning import FindClaims, StatisticsFilter
from partitioning.reader import Reader, TailRequest
from partitioning.sizes import column_bytes, leaf_sizes, row_group_bytes

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
    def wish(self) -> RequestedState:
        """The same for the parser."""
        filtered = {term.column for group in self.filter for term in group}
        return RequestedState(self.columns, frozenset(filtered - self.partitions - self.declared))


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


@dataclass(frozen=True, slots=True)
class _Object:
    """An object whose footer is here."""

    position: int
    live: tuple[int, ...]
    info: ObjectInfo
    data: bytes
    """The footer alone."""

    @property
    def start(self) -> int:
        """Offset of the footer."""
        return self.info.size - END - len(self.data)


_Schema = tuple[bytes, bytes | None]
"""Parquet's schema of a file, and Arrow's."""


class _Layout:
    """What is the same for all files of one schema."""

    def __init__(self, schema: FileSchema, types: FileTypes, spec: FooterSpec, index: int) -> None:
        self.schema, self._types, self._spec = schema, types, spec
        self.index = index
        """Position of the schema in the batch."""
        self.sizes = leaf_sizes(schema, types.schema)
        self.leaves = [
            leaf for leaf in schema.leaves if spec.columns is None or leaf.column in spec.columns
        ]
        """Those that are read."""
        self.wanted = [leaf.index for leaf in self.leaves]

    def keeps(self, rows: int, find: FindClaims, created_by: str, live: tuple[int, ...]) -> bool:
        """Tell whether a row group may hold a matching row; see `StatisticsFilter.keeps`."""
        if self._filter is None:
            return rows > 0
        return rows > 0 and self._filter.keeps(rows, find, created_by, live)

    @cached_property
    def _filter(self) -> StatisticsFilter | None:
        """The filter, bound to the types of these files."""
        if not self._spec.filter:
            return None
        arrow = arrow_schema_of(self._types.schema)
        spec = self._spec
        return StatisticsFilter(
            spec.filter, spec.partitions, arrow, self.schema, declared=spec.declared
        )


class _Collector:
    """Turns footers into the columns of a `FooterBatch`.

    Usual footers are decoded and checked many at a time; the others one by one.
    """

    _TOGETHER = 8_192
    """Column chunks that are decoded together: enough to pay, and few megabytes."""

    def __init__(self, spec: FooterSpec) -> None:
        self.batch = FooterBatch()
        self._spec, self._wish = spec, spec.wish
        self._matcher = FooterMatcher(statistics=bool(self._wish.statistics))
        self._layouts: dict[_Schema, _Layout] = {}
        self._packed: dict[bytes, int] = {}
        """Position of each schema in the batch."""
        self._usual: dict[_Schema, list[tuple[_Object, UsualFooter]]] = {}
        """Footers that matched and are not decoded yet, by their schemas."""
        self._chunks = 0
        """Their column chunks."""

    def add(
        self, position: int, live: tuple[int, ...], info: ObjectInfo, tail: bytes, length: int
    ) -> None:
        """Take a footer over, now or with others later."""
        one = _Object(position, live, info, tail[-END - length : -END])
        usual = self._matcher.match(one.data)
        if usual is None:
            self._add_any(one)
            return
        key = (usual.schema.raw, usual.arrow_schema)
        self._usual.setdefault(key, []).append((one, usual))
        self._chunks += len(usual.types)
        if self._chunks >= self._TOGETHER:
            self.finish()

    def finish(self) -> None:
        """Take over the footers that wait.

        Raises:
            FilterError: a filter value does not compare with its column's type.
        """
        waiting, self._usual, self._chunks = self._usual, {}, 0
        for usual in waiting.values():
            self._add_usual(usual)

    def _add_usual(self, usual: list[tuple[_Object, UsualFooter]]) -> None:
        """Take over footers of one schema."""
        schema, arrow_schema = usual[0][1].schema, usual[0][1].arrow_schema
        columns, are_good = read_columns(
            schema, [footer for _, footer in usual], [one.start for one, _ in usual]
        )
        layout = None
        if are_good.any():  # Nobody is asked about the types of footers that are not checked.
            with suppress(UnreadableSchemaError):
                layout = self._layout(schema, arrow_schema)
        if layout is None:
            for one, _ in usual:
                self._add_any(one)
            return
        rows = columns.rows.tolist()
        stored = columns.compressed[:, layout.wanted].sum(axis=1).tolist()
        decoded = row_group_bytes(layout.sizes, columns, layout.wanted).tolist()
        batch = self.batch
        start = 0
        for (one, footer), is_good in zip(usual, are_good.tolist(), strict=True):
            stop = start + footer.count
            if is_good:
                self._add_object(one, layout, footer.count)
                batch.rows.extend(rows[start:stop])
                batch.stored.extend(stored[start:stop])
                batch.decoded.extend(decoded[start:stop])
                for group, count in enumerate(rows[start:stop]):
                    find = partial(columns.claims, footer, start, group)
                    batch.kept.append(layout.keeps(count, find, footer.created_by, one.live))
                    is_there = columns.values[start + group].tolist()
                    leaves = [leaf for leaf in layout.leaves if is_there[leaf.index]]
                    batch.indexed.append(_are_indexed(footer, group, leaves, one.start))
            else:
                self._add_any(one)
            start = stop

    def _add_any(self, one: _Object) -> None:
        """Take a footer over by itself, or note what is wrong with it."""
        try:
            footer = parse_footer(one.data, one.info.size, self._wish)
            layout = self._layout(footer.schema, footer.arrow_schema)
        except BadFooter as bad:
            self.batch.errors.append((one.position, *bad.args))
            return
        except UnreadableSchemaError as error:
            self.batch.errors.append((one.position, one.start, str(error)))
            return
        self._add_object(one, layout, len(footer.groups))
        batch = self.batch
        for group in footer.groups:
            batch.rows.append(group.rows)
            batch.stored.append(sum(column.compressed for column in group.columns))
            decoded = sum(
                column_bytes(layout.sizes[column.leaf.index], group.rows, column)
                for column in group.columns
            )
            batch.decoded.append(round(decoded))
            batch.kept.append(layout.keeps(group.rows, group.claims, footer.created_by, one.live))
            batch.indexed.append(
                all(is_indexed(c.leaf, c.codec, c.index_length) for c in group.columns if c.values)
            )

    def _add_object(self, one: _Object, layout: _Layout, row_groups: int) -> None:
        batch = self.batch
        batch.positions.append(one.position)
        batch.footer_sizes.append(len(one.data) + END)
        batch.schema.append(layout.index)
        batch.counts.append(row_groups)

    def _layout(self, schema: FileSchema, stored: bytes | None) -> _Layout:
        arrow_schema = None if stored is None else plain_arrow_schema(stored)
        key = (schema.raw, arrow_schema)
        if key not in self._layouts:
            types = file_types(schema, arrow_schema, self._spec.int96)
            packed = pack_schema(types.schema, types.notes)
            index = self._packed.setdefault(packed, len(self._packed))
            self._layouts[key] = _Layout(schema, types, self._spec, index)
            self.batch.schemas = list(self._packed)
        return self._layouts[key]


def _are_indexed(footer: UsualFooter, group: int, leaves: Sequence[Leaf], end: int) -> bool:
    """Tell whether some columns of a row group may be read by their pages."""
    first = group * len(footer.schema.leaves)
    for leaf in leaves:
        index = footer.indexes[first + leaf.index]
        if not index:
            return False  # As most writers have it.
        codec, _ = codec_and_encodings(footer.kinds[first + leaf.index])
        if not is_indexed(leaf, codec, offset_index(index, end)[1]):
            return False
    return True


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
    collector.finish()
    return batch
