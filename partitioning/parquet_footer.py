"""Parse and check a Parquet footer: schema, row groups, column chunks, statistics.

All offsets, sizes and counts that readers use later are checked against the object's size here, for
all columns.

The format: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Final

from partitioning.thrift import (
    BYTES,
    INTEGER,
    LISTS,
    STRUCT,
    Hook,
    Many,
    Struct,
    ThriftError,
    Values,
    Wanted,
    read_list_header,
    read_struct,
    skip,
    write_list_header,
    write_varint,
)

MAGIC: Final = b"PAR1"
END: Final = 8
"""Number of bytes after the footer: its length (4) and the magic bytes (4)."""
_MAX_LEVELS: Final = 32
"""Maximum depth of nested columns; readers recurse, and deep nesting exhausts their stack."""

INT32: Final = 1
INT64: Final = 2
INT96: Final = 3
BYTE_ARRAY: Final = 6
FIXED_LEN_BYTE_ARRAY: Final = 7
_PHYSICAL: Final = (
    "BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY",
)  # fmt: skip
WIDTHS: Final = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8}
"""Bytes of a statistic, for physical types of fixed width."""
_ENCODINGS: Final = frozenset((0, 2, 3, 4, 5, 6, 7, 8, 9))
MAX_VALUES: Final = 1 << 40
"""Maximum number of rows, values or bytes of a row group; larger numbers mean damage."""
LONG_VALUE: Final = 1 << 16
"""Length of fixed-length values in bytes above which a column chunk must have at least one."""
_VARIANT: Final = 16
LZO: Final = 3
CODECS: Final = 8
_REPEATED: Final = 2


class BadFooter(Exception):
    """An object is not readable Parquet: (offset in bytes, reason)."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A Parquet leaf: a column with values."""

    index: int
    """Position among the file's leaves."""
    column: str
    """Top-level column that it belongs to."""
    path: str
    """Names from the top, joined by dots, for messages."""
    names: tuple[str, ...] = field(repr=False)
    """Names from the top."""
    physical: int
    """Physical type."""
    length: int
    """Bytes of a value of fixed length, else 0."""
    converted: int | None
    """Converted type, the deprecated kind of logical type."""
    logical: Values | None
    """Logical type, a union of structs."""
    definition: int
    """Definition level of a value that is not null; 0 if nothing can be null."""
    is_repeated: bool
    """Whether it is in a list or a map."""
    is_top: bool
    """Whether it is a top-level column itself."""
    repetition: int = 0
    """Repetition level: number of lists and maps that contain it."""

    @property
    def is_nullable(self) -> bool:
        """Whether it, or a column that contains it, may be null."""
        return self.definition > 0


@dataclass(frozen=True, slots=True)
class FileSchema:
    """The schema of a file in its footer."""

    leaves: tuple[Leaf, ...] = field(compare=False)
    columns: tuple[str, ...]
    """Top-level columns."""
    raw: bytes
    """List of schema elements as stored."""
    newer: tuple[tuple[str, int], ...] = ()
    """Path and number of logical types from after 2024 (VARIANT and later)."""


@dataclass(slots=True)
class ColumnChunk:
    """A column chunk in a footer, checked against its object."""

    leaf: Leaf
    codec: int
    """Number of its compression codec."""
    start: int
    """Offset of its first page."""
    data_start: int
    """Offset of its first data page."""
    compressed: int
    """Compressed bytes from `start` on."""
    uncompressed: int
    values: int
    """Number of values, including nulls."""
    has_dictionary: bool
    encodings: list[int]
    """Encodings; empty unless selected."""
    statistics: Values | None
    """Statistics as stored; None unless selected."""
    index_start: int = 0
    """Offset of its offset index, which locates its pages."""
    index_length: int = 0
    """Bytes of the offset index; 0 if there is none, or its location is impossible."""


@dataclass(slots=True)
class RowGroup:
    """A row group."""

    rows: int
    columns: list[ColumnChunk]
    """Selected column chunks, in the order of the leaves."""

    def claims(self, leaf: Leaf) -> tuple[int, Values | None]:
        """Return the number of values and the statistics of a selected column chunk."""
        # By index, since the leaf may be from an equal schema that was parsed before.
        (column,) = (column for column in self.columns if column.leaf.index == leaf.index)
        return column.values, column.statistics


@dataclass(frozen=True, slots=True)
class Footer:
    """A footer."""

    schema: FileSchema
    rows: int
    groups: list[RowGroup]
    """Selected row groups."""
    count: int
    """Number of row groups of the file."""
    created_by: str
    """Name of the writer; empty if unknown."""
    arrow_schema: bytes | None
    """Arrow schema that the writer has stored in addition to Parquet's."""


_ELEMENT: Final[dict[int, Wanted]] = {
    1: INTEGER, 2: INTEGER, 3: INTEGER, 4: BYTES, 5: INTEGER, 6: INTEGER,
    10: Struct({n: Struct({1: INTEGER, 2: Struct({n: Struct({}) for n in (1, 2, 3)})})
                for n in range(1, 19)}),
}  # fmt: skip
_STATISTICS: Final = Struct({1: BYTES, 2: BYTES, 3: INTEGER, 5: BYTES, 6: BYTES})
_META: Final = {
    1: INTEGER, 4: INTEGER, 5: INTEGER, 6: INTEGER, 7: INTEGER, 9: INTEGER, 11: INTEGER,
}  # fmt: skip
_END: Final[dict[int, Wanted]] = {5: Many(Struct({1: BYTES, 2: BYTES})), 6: BYTES}
"""Fields after the row groups."""
_ROW_GROUPS: Final = 4


@dataclass(frozen=True, slots=True)
class FooterSelection:
    """Selection of the parts of a footer to return; everything is checked anyway."""

    columns: frozenset[str] | None = None
    """Top-level columns whose column chunks are selected; None for all."""
    statistics: frozenset[str] | None = frozenset()
    """Columns whose statistics are selected; None for those that `write_footer` writes."""
    encodings: bool = False
    """Whether encodings are selected."""
    groups: range | None = None
    """Selected row groups; others are not even checked. None for all."""

    def has_statistics(self, leaf: Leaf) -> bool:
        """Whether the statistics of a column are selected."""
        return _is_bounded(leaf) if self.statistics is None else leaf.column in self.statistics

    def has_column(self, leaf: Leaf) -> bool:
        """Whether the column chunks of a column are selected."""
        return self.columns is None or leaf.column in self.columns


def parse_footer(data: bytes, size: int, selection: FooterSelection) -> Footer:
    """Parse a footer and check it.

    Args:
        data: The footer alone, without its length and the magic bytes.
        size: Size of the object in bytes.
        selection: Parts to return.

    Raises:
        BadFooter: It cannot be parsed, contradicts itself or its object, or needs an unsupported
            feature.
    """
    start = size - END - len(data)
    walk = _Walk(start, selection)
    fields: dict[int, Wanted] = {
        2: Hook(walk.schema_list), 3: INTEGER, _ROW_GROUPS: Hook(walk.row_groups), **_END,
    }  # fmt: skip
    try:
        found, _ = read_struct(data, 0, fields)
        return walk.footer(found)
    except (ThriftError, IndexError) as error:
        reason = str(error) if isinstance(error, ThriftError) else "it ends too early"
        raise BadFooter(start, f"footer cannot be parsed: {reason}") from None
    except UnicodeDecodeError:
        raise BadFooter(start, "a column's name is not UTF-8") from None
    except Contradiction as error:
        raise BadFooter(start, str(error)) from None


@cache
def _column_fields(encodings: bool, statistics: bool) -> Mapping[int, Wanted]:
    meta: dict[int, Wanted] = dict(_META)
    if encodings:
        meta[2] = Many(INTEGER)
    if statistics:
        meta[12] = _STATISTICS
    return {1: BYTES, 3: Struct(meta), 4: INTEGER, 5: INTEGER, 8: Struct({}), 9: BYTES}


class Contradiction(Exception):
    """The content of a footer is impossible, or not supported."""


def index_range(found: Values, end: int) -> tuple[int, int]:
    """Return offset and length of a column chunk's offset index, which is optional.

    Args:
        found: Fields of the column chunk.
        end: Offset of the footer.

    Returns:
        0 and 0 if there is none, or if its location is impossible.
    """
    start, length = found.get(4, 0), found.get(5, 0)
    if start < len(MAGIC) or length <= 0 or start + length > end:
        return 0, 0
    return start, length


class _Walk:
    """Reads a footer in one pass; the writer's name comes after the row groups."""

    def __init__(self, end: int, selection: FooterSelection) -> None:
        self._end, self._selection = end, selection
        self._schema: FileSchema | None = None
        self._fields: tuple[Mapping[int, Any], ...] = ()
        self._kept: tuple[bool, ...] = ()
        self._groups: list[RowGroup] = []
        self._count = self._rows = 0

    def schema_list(self, data: bytes, at: int, kind: int) -> int:
        end = skip(data, at, kind)
        if kind not in LISTS:
            raise Contradiction("its schema is not a list")
        schema = self._schema = parse_schema(data[at:end])
        selection = self._selection
        self._kept = tuple(map(selection.has_column, schema.leaves))
        usual = _column_fields(selection.encodings, statistics=False)
        more = _column_fields(selection.encodings, statistics=True)
        self._fields = tuple(more if selection.has_statistics(x) else usual for x in schema.leaves)
        return end

    def row_groups(self, data: bytes, at: int, kind: int) -> int:
        if self._schema is None or self._count:
            raise Contradiction("its schema and its row groups are in the wrong order")
        if kind not in LISTS:
            return skip(data, at, kind)
        element, count, at = read_list_header(data, at)
        for _ in range(count):
            if element != STRUCT:
                raise Contradiction("its row groups are not structs")
            wanted = self._selection.groups
            if wanted is None or self._count in wanted:
                at = self._row_group(data, at)
            else:
                at = skip(data, at, STRUCT)
            self._count += 1
        return at

    def _row_group(self, data: bytes, at: int) -> int:
        columns: list[ColumnChunk] = []

        def read_columns(data: bytes, at: int, kind: int) -> int:
            if kind not in LISTS:
                return skip(data, at, kind)
            return self._columns(data, at, columns)

        found, at = read_struct(data, at, {1: Hook(read_columns), 3: INTEGER})
        rows = found.get(3, -1)
        if not 0 <= rows <= MAX_VALUES:
            raise Contradiction(f"row group {self._count} has {rows:,} rows")
        assert self._schema is not None, "row groups without a schema are refused"
        if len(columns) != len(self._schema.leaves):
            raise Contradiction(
                f"row group {self._count} has {len(columns)} columns, the schema "
                f"{len(self._schema.leaves)}"
            )
        for column in columns:
            values = column.values
            if values < rows or (values > rows and not column.leaf.is_repeated):
                raise Contradiction(
                    f"row group {self._count} has {rows} rows, its column {column.leaf.path} "
                    f"{values} values"
                )
        if self._selection.columns is not None:
            kept = self._kept
            columns = [column for column in columns if kept[column.leaf.index]]
        self._rows += rows
        self._groups.append(RowGroup(rows, columns))
        return at

    def _columns(self, data: bytes, at: int, columns: list[ColumnChunk]) -> int:
        assert self._schema is not None, "row groups without a schema are refused"
        leaves = self._schema.leaves
        columns.clear()
        element, count, at = read_list_header(data, at)
        if count != len(leaves) or (count and element != STRUCT):
            raise Contradiction(
                f"row group {self._count} has {count} columns, the schema {len(leaves)}"
            )
        for leaf, fields in zip(leaves, self._fields, strict=True):
            found, at = read_struct(data, at, fields)
            try:
                columns.append(self._column(leaf, found))
            except Contradiction as error:
                raise Contradiction(
                    f"row group {self._count}, column {leaf.path}: {error}"
                ) from None
        return at

    def _column(self, leaf: Leaf, found: Values) -> ColumnChunk:
        meta = found.get(3)
        if 8 in found or 9 in found:
            raise Contradiction("encrypted columns are not supported")
        if meta is None:
            raise Contradiction("its metadata is missing")
        if 1 in found:
            raise Contradiction("its pages are in another file")
        codec = meta.get(4, -1)
        if codec == LZO or not 0 <= codec < CODECS:
            raise Contradiction(
                "compressed with LZO: not supported" if codec == LZO else f"unknown codec {codec}"
            )
        if meta.get(1) != leaf.physical:
            raise Contradiction("its type differs from the schema")
        values, compressed = meta.get(5, -1), meta.get(7, -1)
        start = data_start = meta.get(9, -1)
        dictionary = meta.get(11, 0)
        if dictionary > 0:  # Some writers store a 0 for none.
            start = min(start, dictionary)
        if values < 0 or compressed < 0 or meta.get(6, -1) < 0:
            raise Contradiction(f"{values} values in {compressed} bytes")
        if leaf.length > max(meta[6], LONG_VALUE):
            raise Contradiction(f"values of {leaf.length:,} bytes in {meta[6]:,}")
        if max(values, meta[6], compressed) > MAX_VALUES:
            raise Contradiction(
                f"claims {values:,} values in {meta[6]:,} bytes, {compressed:,} compressed"
            )
        # In empty row groups offsets may have any value.
        end = max(start + compressed, data_start)
        if values and not (start >= 4 and end <= self._end):
            raise Contradiction(
                f"bytes {start:,} to {end:,} are outside of the "
                f"{self._end:,} bytes before the footer"
            )
        return ColumnChunk(
            leaf,
            codec,
            start,
            data_start,
            compressed,
            meta[6],
            values,
            dictionary > 0,
            meta.get(2, []),
            meta.get(12),
            *index_range(found, self._end),
        )

    def footer(self, found: Values) -> Footer:
        if self._schema is None:
            raise ThriftError("it has no schema")
        rows = found.get(3, -1)
        if rows != self._rows and self._selection.groups is None:
            raise Contradiction(f"claims {rows} rows; its row groups have {self._rows}")
        return Footer(self._schema, rows, self._groups, self._count, *_writer(found))


def parse_statistics(data: bytes) -> Values:
    """Parse a struct of statistics into the fields of `ColumnChunk.statistics`."""
    return read_struct(data, 0, _STATISTICS.fields)[0]


def _writer(found: Values) -> tuple[str, bytes | None]:
    """Return the writer of a file and the Arrow schema, from the fields after the row groups."""
    pairs = {pair.get(1): pair.get(2) for pair in found.get(5, ())}
    return found.get(6, b"").decode("utf-8", "replace"), pairs.get(b"ARROW:schema")


@lru_cache(maxsize=64)
def parse_end(data: bytes) -> tuple[str, bytes | None]:
    """Parse the part after the row groups, which is equal in most files of a dataset.

    Returns:
        The name of the writer and the Arrow schema, as in `Footer`.

    Raises:
        ThriftError: It is damaged, or repeats an earlier field.
        IndexError: It is truncated.
    """

    def refuse(data: bytes, at: int, kind: int) -> int:
        raise ThriftError("a second schema, or second row groups")

    fields = {2: Hook(refuse), 3: INTEGER, _ROW_GROUPS: Hook(refuse), **_END}
    found, _ = read_struct(data, 0, fields, number=_ROW_GROUPS)
    if 3 in found:
        raise ThriftError("a second number of rows")
    return _writer(found)


@lru_cache(maxsize=64)
def parse_schema(raw: bytes) -> FileSchema:
    """Parse a list of schema elements: a tree with its nodes in depth-first order."""
    _, count, at = read_list_header(raw, 0)
    elements: list[Values] = []
    for _ in range(count):
        found, at = read_struct(raw, at, _ELEMENT)
        elements.append(found)
    if not elements:
        raise Contradiction("its schema is empty")
    tree = _Tree(elements)
    columns = tuple(tree.children())
    if tree.at != len(elements):
        raise Contradiction(f"its schema has {len(elements)} elements, but its tree {tree.at}")
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise Contradiction(f"column {name!r} occurs twice")
        seen.add(name)
    return FileSchema(tuple(tree.leaves), columns, raw, tuple(tree.newer))


@dataclass(frozen=True, slots=True)
class _Above:
    """Names and levels of the columns above a column."""

    names: tuple[str, ...] = ()
    definition: int = 0
    repetition: int = 0


class _Tree:
    """Reads schema elements one after the other."""

    def __init__(self, elements: list[Values]) -> None:
        self._elements = elements
        self.at = 0
        self.leaves: list[Leaf] = []
        self.newer: list[tuple[str, int]] = []

    def children(self) -> Iterator[str]:
        """Read the whole tree; yield the names of the top-level columns."""
        root = self._take()
        for _ in range(self._count(root, "the schema")):
            yield self._node(_Above())

    def _take(self) -> Values:
        if self.at >= len(self._elements):
            raise Contradiction("its schema ends too early")
        self.at += 1
        return self._elements[self.at - 1]

    def _count(self, element: Values, name: str) -> int:
        count: int = element.get(5, 0)
        if not 0 <= count <= len(self._elements):
            raise Contradiction(f"{name} claims {count} columns")
        return count

    def _node(self, above: _Above) -> str:
        element = self._take()
        name: str = element.get(4, b"").decode()
        names = (*above.names, name)
        if len(names) > _MAX_LEVELS:
            raise Contradiction(f"column {names[0]!r} has more than {_MAX_LEVELS} levels")
        repetition = element.get(3)
        if repetition not in (0, 1, _REPEATED):
            raise Contradiction(f"column {'.'.join(names)!r} does not say whether it is nullable")
        inside = _Above(
            names,
            above.definition + (repetition != 0),
            above.repetition + (repetition == _REPEATED),
        )
        self.newer += [(".".join(names), n) for n in element.get(10, ()) if n >= _VARIANT]
        if 1 in element:
            self._leaf(element, inside)
            return name
        count = self._count(element, repr(".".join(names)))
        if not count:
            raise Contradiction(f"column {'.'.join(names)!r} has neither a type nor fields")
        below = [self._node(inside) for _ in range(count)]
        if len(set(below)) < len(below):
            raise Contradiction(f"column {'.'.join(names)!r} has two fields of one name")
        return name

    def _leaf(self, element: Values, inside: _Above) -> None:
        path = ".".join(inside.names)
        physical = element[1]
        if not 0 <= physical < len(_PHYSICAL):
            raise Contradiction(f"column {path!r} has the unknown type {physical}")
        length = element.get(2, 0)
        if physical == FIXED_LEN_BYTE_ARRAY and not 0 < length < 1 << 31:
            raise Contradiction(f"column {path!r} has values of {length} bytes")
        self.leaves.append(
            Leaf(
                len(self.leaves),
                inside.names[0],
                path,
                inside.names,
                physical,
                length,
                element.get(6),
                element.get(10),
                inside.definition,
                inside.repetition > 0,
                len(inside.names) == 1,
                inside.repetition,
            )
        )


# -- write -------------------------------------------------------------------------------------


def empty_file(schema: FileSchema, arrow_schema: bytes | None) -> bytes:
    """Return a Parquet file of a schema without rows, from which decoders derive types."""
    return MAGIC + write_footer(Footer(schema, 0, [], 0, "", arrow_schema))


def write_footer(footer: Footer) -> bytes:
    """Return the end of a file: a footer, its length and the magic bytes.

    It has checked fields only. Decoders that read it instead of the file's footer see no damaged
    sizes, indexes, metadata or encryption, and the same content as the planner. Encodings and
    statistics are included if they were selected.
    """
    groups = [_group_bytes(group) for group in footer.groups]
    data = b"".join(
        (
            b"\x15\x04\x19", footer.schema.raw, b"\x16", _zigzag(footer.rows),
            b"\x19", write_list_header(STRUCT, len(groups)), *groups,
            _key_value_bytes(footer.arrow_schema),
            # Fields 6 and 7: the writer, for whose errors decoders compensate, and column orders.
            b"\x08\x0c", _binary(footer.created_by.encode()),
            b"\x19", write_list_header(STRUCT, len(footer.schema.leaves)),
            b"\x1c\x00\x00" * len(footer.schema.leaves), b"\x00",
        )
    )  # fmt: skip
    return data + len(data).to_bytes(4, "little") + MAGIC


def _zigzag(value: int) -> bytes:
    """Encode a non-negative integer."""
    return write_varint(value << 1)


def _binary(value: bytes) -> bytes:
    return write_varint(len(value)) + value


def _key_value_bytes(arrow_schema: bytes | None) -> bytes:
    """Return field 5 after field 4; the next field has the long form, so that 5 may be absent."""
    if arrow_schema is None:
        return b""
    pair = b"\x18" + _binary(b"ARROW:schema") + b"\x18" + _binary(arrow_schema) + b"\x00"
    return b"\x19" + write_list_header(STRUCT, 1) + pair


def _group_bytes(group: RowGroup) -> bytes:
    columns = [_column_chunk_bytes(column) for column in group.columns]
    return b"".join(
        (
            b"\x19", write_list_header(STRUCT, len(columns)), *columns,
            b"\x16", _zigzag(sum(column.uncompressed for column in group.columns)),
            b"\x16", _zigzag(group.rows), b"\x00",
        )
    )  # fmt: skip


def _column_chunk_bytes(column: ColumnChunk) -> bytes:
    leaf = column.leaf
    found = bytearray(_usual_bytes(leaf.names, leaf.physical, column.codec, *column.encodings))
    numbers = [
        (0x16, column.values), (0x16, column.uncompressed), (0x16, column.compressed),
        (0x26, column.data_start),
    ]  # fmt: skip
    if column.has_dictionary:
        numbers.append((0x26, column.start))
    for head, value in numbers:  # Inlined, because there are thousands.
        found.append(head)
        value <<= 1  # noqa: PLW2901
        while value > 127:
            found.append(value & 127 | 128)
            value >>= 7  # noqa: PLW2901
        found.append(value)
    if column.statistics:
        found += _statistics_bytes(column)
    found += b"\x00\x00"
    return bytes(found)


@lru_cache(maxsize=20_000)
def _usual_bytes(names: tuple[str, ...], physical: int, codec: int, *encodings: int) -> bytes:
    """Return the fields that are equal for a column in most row groups."""
    known = [encoding for encoding in encodings if encoding in _ENCODINGS]
    return b"".join(
        (
            b"\x26\x00\x1c\x15", _zigzag(physical),
            b"\x19", write_list_header(5, len(known)), *map(_zigzag, known),
            b"\x19", write_list_header(8, len(names)), *(_binary(name.encode()) for name in names),
            b"\x15", _zigzag(codec),
        )
    )  # fmt: skip


def _is_bounded(leaf: Leaf) -> bool:
    """Whether statistics bound all values; those of numbers and times are never truncated."""
    return leaf.physical in WIDTHS and leaf.is_top and not leaf.is_repeated


def _statistics_bytes(column: ColumnChunk) -> bytes:
    """Return field 12 with all possible values."""
    found = column.statistics
    width = WIDTHS.get(column.leaf.physical)
    if not found or not _is_bounded(column.leaf):
        return b""
    parts = [b"\x0c\x18"]  # The long form of the field's header.
    if 0 <= found.get(3, -1) <= column.values:
        parts += [b"\x36", _zigzag(found[3])]
    for number in (5, 6):
        if len(found.get(number, b"")) == width:
            parts += [b"\x08", _zigzag(number), _binary(found[number])]
    return b"".join((*parts, b"\x00"))
