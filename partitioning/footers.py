"""Read many Parquet footers, check them, and reduce them to figures."""

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
from partitioning.footer_arrays import Ints, read_columns
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
    MAX_VALUES,
    BadFooter,
    FileSchema,
    FooterSelection,
    Leaf,
    RowGroup,
    parse_footer,
)
from partitioning.pruning import FindClaims, StatisticsFilter
from partitioning.reader import Reader, TailRequest
from partitioning.sizes import column_bytes, leaf_sizes, row_group_bytes

_MIN_FILE_BYTES: Final = 12
"""Size of the smallest possible Parquet file: magic bytes at both ends, and a length."""


@dataclass(frozen=True, slots=True)
class FooterSpec:
    """Settings for reading footers; small and picklable."""

    columns: frozenset[str] | None
    """Top-level columns whose sizes count; None for all."""
    filter: Filter
    partitions: frozenset[str]
    """Hive columns, whose terms are already decided."""
    limit: int
    """Maximum size of a footer in bytes."""
    first_read: int
    """Bytes of the first read."""
    concurrency: int
    int96: Int96Unit = "us"
    """Unit of INT96 times."""
    declared: frozenset[str] = frozenset()
    """Columns that are read as another type than the files', whose statistics are not used."""

    @property
    def selection(self) -> FooterSelection:
        """Selection of the fields to parse."""
        filtered = {term.column for group in self.filter for term in group}
        return FooterSelection(self.columns, frozenset(filtered - self.partitions - self.declared))


@dataclass(frozen=True, slots=True)
class FooterGroup:
    """Objects whose footers are read together, here or elsewhere."""

    start: int
    """Position of the first object among all objects to read."""
    objects: tuple[ObjectInfo, ...]
    live: tuple[tuple[int, ...], ...]
    """Groups of the filter that may match, by partition values, for each object."""


@dataclass(slots=True)
class FooterBatch:
    """Figures of the footers of a group, as columns that are small to send."""

    positions: array[int] = field(default_factory=lambda: array("q"))
    """Position of each readable object; the next three columns also have a value per object."""
    footer_sizes: array[int] = field(default_factory=lambda: array("q"))
    schema: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    """Number of row groups of the object; the next five columns have a value per row group."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    stored: array[int] = field(default_factory=lambda: array("q"))
    decoded: array[int] = field(default_factory=lambda: array("q"))
    kept: bytearray = field(default_factory=bytearray)
    """1 unless statistics show that no row matches the filter."""
    indexed: bytearray = field(default_factory=bytearray)
    """1 if all columns that are read have an offset index."""
    schemas: list[bytes] = field(default_factory=list)
    """Distinct schemas, as `pack_schema` returns them."""
    errors: list[tuple[int, int, str]] = field(default_factory=list)
    """(position, offset in the object, reason) of each bad object."""
    requests: int = 0


def footer_length(tail: bytes, size: int, limit: int) -> int:
    """Return the size of the footer, from the last 8 bytes of an object.

    Raises:
        BadFooter: There is no footer, or an unsupported one.
    """
    if size < _MIN_FILE_BYTES or len(tail) < END:
        raise BadFooter(0, f"{size} bytes: too small for a Parquet file")
    magic = tail[-4:]
    if magic == b"PARE":
        raise BadFooter(size - 4, "encrypted footer (PARE): not supported")
    if magic != b"PAR1":
        raise BadFooter(
            size - 4, f"ends with {magic!r} instead of b'PAR1': truncated or not Parquet"
        )
    length = int.from_bytes(tail[-END:-4], "little")
    if not 0 < length <= size - _MIN_FILE_BYTES:
        raise BadFooter(size - END, f"claims a footer of {length} bytes in an object of {size}")
    if length > limit:
        raise BadFooter(size - END, f"footer of {length} bytes, above the limit of {limit}")
    return length


@dataclass(frozen=True, slots=True)
class _Object:
    """An object with its footer."""

    position: int
    live: tuple[int, ...]
    info: ObjectInfo
    data: bytes
    """Content of the footer alone."""

    @property
    def start(self) -> int:
        """Offset of the footer in the object."""
        return self.info.size - END - len(self.data)


_Schema = tuple[bytes, bytes | None]
"""Parquet schema and Arrow schema of a file."""


class _Layout:
    """Schema, types and sizes that all files of a schema share."""

    def __init__(self, schema: FileSchema, types: FileTypes, spec: FooterSpec, index: int) -> None:
        self.schema, self._types, self._spec = schema, types, spec
        self.index = index
        """Position of the schema in the batch."""
        self.sizes = leaf_sizes(schema, types.schema)
        self.leaves = [
            leaf for leaf in schema.leaves if spec.columns is None or leaf.column in spec.columns
        ]
        """Leaves that are read."""
        self.wanted = [leaf.index for leaf in self.leaves]

    def decoded_bytes(self, group: RowGroup) -> int:
        """Return the estimated bytes of a row group in memory."""
        sizes = self.sizes
        return round(sum(column_bytes(sizes[c.leaf.index], group.rows, c) for c in group.columns))

    def keeps(self, rows: int, find: FindClaims, created_by: str, live: tuple[int, ...]) -> bool:
        """Whether a row group may have a matching row; see `StatisticsFilter.keeps`."""
        if self._filter is None:
            return rows > 0
        return rows > 0 and self._filter.keeps(rows, find, created_by, live)

    @cached_property
    def _filter(self) -> StatisticsFilter | None:
        """Filter, bound to the types of these files."""
        if not self._spec.filter:
            return None
        arrow = arrow_schema_of(self._types.schema)
        spec = self._spec
        return StatisticsFilter(
            spec.filter, spec.partitions, arrow, self.schema, declared=spec.declared
        )


class _Collector:
    """Turns footers into the columns of a `FooterBatch`.

    Usual footers are decoded and checked in batches; the others one by one.
    """

    _BATCH_CHUNKS = 8_192
    """Number of column chunks that are decoded together, in a few megabytes."""

    def __init__(self, spec: FooterSpec) -> None:
        self.batch = FooterBatch()
        self._spec, self._selection = spec, spec.selection
        self._matcher = FooterMatcher(statistics=bool(self._selection.statistics))
        self._layouts: dict[_Schema, _Layout] = {}
        self._packed: dict[bytes, int] = {}
        """Position of each schema in the batch."""
        self._usual: dict[_Schema, list[tuple[_Object, UsualFooter]]] = {}
        """Matched footers that are not decoded yet, by schema."""
        self._chunks = 0
        """Number of their column chunks."""

    def add(
        self, position: int, live: tuple[int, ...], info: ObjectInfo, tail: bytes, length: int
    ) -> None:
        """Add a footer, now or later in a batch."""
        item = _Object(position, live, info, tail[-END - length : -END])
        usual = self._matcher.match(item.data)
        if usual is None:
            self._add_any(item)
            return
        key = (usual.schema.raw, usual.arrow_schema)
        self._usual.setdefault(key, []).append((item, usual))
        self._chunks += len(usual.types)
        if self._chunks >= self._BATCH_CHUNKS:
            self.finish()

    def finish(self) -> None:
        """Add the waiting footers."""
        waiting, self._usual, self._chunks = self._usual, {}, 0
        for usual in waiting.values():
            self._add_usual(usual)

    def _add_usual(self, usual: list[tuple[_Object, UsualFooter]]) -> None:
        """Add footers of one schema."""
        schema, arrow_schema = usual[0][1].schema, usual[0][1].arrow_schema
        columns, are_good = read_columns(
            schema, [footer for _, footer in usual], [item.start for item, _ in usual]
        )
        layout = None
        if are_good.any():  # Types are needed only for footers that passed the checks.
            with suppress(UnreadableSchemaError):
                layout = self._layout(schema, arrow_schema)
        if layout is None:
            for item, _ in usual:
                self._add_any(item)
            return
        rows = columns.rows.tolist()
        stored = columns.compressed[:, layout.wanted].sum(axis=1).tolist()
        decoded = row_group_bytes(layout.sizes, columns, layout.wanted).tolist()
        batch = self.batch
        start = 0
        for (item, footer), is_good in zip(usual, are_good.tolist(), strict=True):
            stop = start + footer.count
            if is_good and max(decoded[start:stop]) <= MAX_VALUES:
                self._add_object(item, layout, footer.count)
                batch.rows.extend(rows[start:stop])
                batch.stored.extend(stored[start:stop])
                batch.decoded.extend(decoded[start:stop])
                for group, count in enumerate(rows[start:stop]):
                    find = partial(columns.claims, footer, start, group)
                    batch.kept.append(layout.keeps(count, find, footer.created_by, item.live))
                    values = columns.values[start + group]
                    batch.indexed.append(
                        _are_indexed(footer, group, layout.leaves, values, item.start)
                    )
            else:
                self._add_any(item)
            start = stop

    def _add_any(self, item: _Object) -> None:
        """Add a single footer, or its error."""
        try:
            footer = parse_footer(item.data, item.info.size, self._selection)
            layout = self._layout(footer.schema, footer.arrow_schema)
            decoded = [layout.decoded_bytes(group) for group in footer.groups]
            if max(decoded, default=0) > MAX_VALUES:
                reason = f"a row group claims to decode to {max(decoded):,} bytes"
                raise BadFooter(item.start, reason)
        except BadFooter as bad:
            self.batch.errors.append((item.position, *bad.args))
            return
        except UnreadableSchemaError as error:
            self.batch.errors.append((item.position, item.start, str(error)))
            return
        self._add_object(item, layout, len(footer.groups))
        batch = self.batch
        batch.decoded.extend(decoded)
        for group in footer.groups:
            batch.rows.append(group.rows)
            batch.stored.append(sum(column.compressed for column in group.columns))
            batch.kept.append(layout.keeps(group.rows, group.claims, footer.created_by, item.live))
            batch.indexed.append(
                all(is_indexed(c.leaf, c.codec, c.index_length) for c in group.columns if c.values)
            )

    def _add_object(self, item: _Object, layout: _Layout, row_groups: int) -> None:
        batch = self.batch
        batch.positions.append(item.position)
        batch.footer_sizes.append(len(item.data) + END)
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


def _are_indexed(
    footer: UsualFooter, group: int, leaves: Sequence[Leaf], values: Ints, end: int
) -> bool:
    """Whether the columns of a row group that have values can be read by their pages."""
    first = group * len(footer.schema.leaves)
    for leaf in leaves:
        if not values[leaf.index]:
            continue
        index = footer.indexes[first + leaf.index]
        if not index:
            return False  # The usual case: most writers store no index.
        codec, _ = codec_and_encodings(footer.kinds[first + leaf.index])
        if not is_indexed(leaf, codec, offset_index(index, end)[1]):
            return False
    return True


class _SuffixLength:
    """Chooses the number of bytes to read: enough for 95 % of the footers read so far.

    It affects bandwidth and the number of second reads, but never the plan.
    """

    _MIN_POWER, _MAX_POWER = 13, 20  # Powers of two: 8 KiB, 1 MiB.
    _UPDATE_INTERVAL = 64  # Footers.

    def __init__(self, first: int) -> None:
        self.bytes = first
        self._seen = 0
        self._powers = [0] * 33

    def add(self, footer_size: int) -> None:
        self._seen += 1
        self._powers[min(footer_size.bit_length(), 32)] += 1
        if self._seen % self._UPDATE_INTERVAL == 0:
            below = accumulate(self._powers)
            power = next(p for p, count in enumerate(below) if count * 100 >= self._seen * 95)
            self.bytes = 2 ** min(max(power, self._MIN_POWER), self._MAX_POWER)


def read_footers(
    reader: Reader,
    spec: FooterSpec,
    group: FooterGroup,
    progress: Callable[[int], None] | None = None,
) -> FooterBatch:
    """Read the footers of a group: one read each, and a second for larger footers.

    Args:
        reader: The store.
        spec: Settings.
        group: The objects.
        progress: Called with the number of objects done, from time to time.
    """
    collector = _Collector(spec)
    batch = collector.batch
    index = {info.uri: i for i, info in enumerate(group.objects)}
    length = _SuffixLength(spec.first_read)
    larger: list[TailRequest] = []

    def first() -> Iterator[TailRequest]:
        for i, info in enumerate(group.objects):
            if info.size < _MIN_FILE_BYTES:
                # Not requested: stores return an error for a range of an empty object.
                bad = f"{info.size} bytes: too small for a Parquet file"
                batch.errors.append((group.start + i, 0, bad))
            else:
                yield TailRequest(info, min(info.size, length.bytes))

    done = sum(info.size < _MIN_FILE_BYTES for info in group.objects)
    for second in (False, True):
        requests = list(larger) if second else first()
        for tail in reader.read_tails(requests, spec.concurrency):
            batch.requests += 1
            at = index[tail.object.uri]
            try:
                if tail.data is None:
                    raise BadFooter(0, tail.error or "unreadable")
                need = footer_length(tail.data, tail.object.size, spec.limit)
                length.add(need + END)
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
