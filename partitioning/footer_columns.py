"""Make the footer of a file that keeps columns of another one as their bytes are.

Column chunks may lie anywhere in a file. So a file with added, replaced, dropped or renamed columns
is the old file's bytes up to its footer, the new column chunks, and a new footer. What the old
footer says of kept columns is copied as it is, with all that is unknown here.

The format: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from partitioning.footer_arrays import read_footer
from partitioning.parquet_footer import (
    END,
    BadFooter,
    Contradiction,
    FileSchema,
    Footer,
    FooterSelection,
    empty_file,
    parse_schema,
)
from partitioning.thrift import (
    BINARY,
    BYTES,
    INTEGER,
    LIST,
    LISTS,
    STRUCT,
    ThriftError,
    read_list_header,
    read_struct,
    read_varint,
    skip,
    write_list_header,
    write_varint,
)

_I64: Final = 6
# Fields of FileMetaData.
_SCHEMA, _ROW_GROUPS, _PAIRS, _ORDERS = 2, 4, 5, 7
_KNOWN_META: Final = frozenset(range(1, 8))
"""Its fields, besides those of encryption: a newer one could list all columns."""
# Fields of RowGroup.
_COLUMNS, _TOTAL, _ROWS, _SORTED, _COMPRESSED = 1, 2, 3, 4, 6
_KNOWN_GROUP: Final = frozenset(range(1, 8))
# Fields of ColumnChunk and of its metadata.
_FILE_PATH, _FILE_OFFSET, _META = 1, 2, 3
_INDEXES: Final = frozenset((4, 5, 6, 7))
_PATH, _UNCOMPRESSED, _STORED = 3, 6, 7
_OFFSETS: Final = frozenset((9, 10, 11))
"""Offsets of the first data page, index page and dictionary page."""
_BLOOM: Final = 14
_ARROW: Final = b"ARROW:schema"
_NAMING: Final = frozenset((
    b"pandas",
    b"geo",
    b"org.apache.spark.sql.parquet.row.metadata",
    b"org.apache.spark.sql.parquet.row.attributes",
    b"parquet.avro.schema",
    b"avro.schema",
    b"iceberg.schema",
))  # fmt: skip
"""Pairs that name columns, and by which some reader finds them or gives them types."""
_COMPLETE: Final = _NAMING - {b"pandas", b"geo"}
"""Those that name all columns: Spark and Avro's reader do not see others."""
_SPARK_VERSION: Final = b"org.apache.spark.version"
_OLD_CALENDAR: Final = (b"org.apache.spark.legacyDateTime", b"org.apache.spark.legacyINT96")
"""Pairs that say that all dates and timestamps of a file are of the calendar before 1582, as those
of Spark 2 are: Spark moves them when it reads the file."""
_HIVE_CALENDAR: Final = b"writer.date.proleptic"
"""Pair of Hive, whose value is `true` if dates are of the calendar that is used today."""
_ORDER: Final = b"\x1c\x00\x00"
"""A column order: that of the column's type."""


@dataclass(frozen=True, slots=True)
class FooterEdit:
    """What becomes of the columns of a file."""

    keep: tuple[str, ...]
    """Top-level columns whose bytes are kept."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """New names of kept columns, by the old one."""

    def target(self, name: str) -> str:
        """Return the new name of a kept column."""
        return self.rename.get(name, name)


class _Field(NamedTuple):
    """A field of a struct, as stored."""

    number: int
    kind: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class _Column:
    """A top-level column of a file."""

    name: str
    elements: tuple[bytes, ...]
    """Its schema elements, depth first."""
    leaves: range
    """Positions of its leaves."""


class _Group(NamedTuple):
    """A row group, as stored."""

    fields: list[_Field]
    """Its fields; that of the column chunks is empty."""
    chunks: list[bytes]
    """Its column chunks."""


@dataclass(frozen=True, slots=True)
class StoredFooter:
    """A footer, parsed, and as stored: cut into the parts that another is composed of."""

    parsed: Footer
    """The footer, checked."""
    fields: tuple[_Field, ...]
    """Its fields; that of the row groups is empty."""
    groups: tuple[_Group, ...]
    root: bytes
    """First schema element."""
    columns: tuple[_Column, ...]
    start: int
    """Offset of the footer in its file."""

    @classmethod
    def read(cls, footer: bytes, size: int) -> StoredFooter:
        """Read a footer.

        Args:
            footer: Metadata of a file, without its length and the magic bytes.
            size: Size of the file in bytes.

        Raises:
            BadFooter: it is damaged, or needs what is not supported.
        """
        parsed, start = read_footer(footer, size, FooterSelection()), size - END - len(footer)
        with _naming_place(start):
            fields, lists, _ = _cut(footer, 0, {_ROW_GROUPS: _groups_at})
            stored = _find(fields, _SCHEMA)
            if stored is None or stored.kind not in LISTS:
                raise ThriftError("it has no schema")
            root, *elements = _items(stored)
            columns = tuple(_columns(parsed.schema, elements))
        groups = tuple(lists.get(_ROW_GROUPS, ()))
        return cls(parsed, tuple(fields), groups, root, columns, start)

    @property
    def rows(self) -> list[int]:
        """Number of rows of each row group."""
        return [group.rows for group in self.parsed.groups]

    @property
    def orders(self) -> list[bytes]:
        """Orders of the leaves' values; empty if the footer does not say."""
        found = _items(_find(self.fields, _ORDERS))
        return found if len(found) == len(self.parsed.schema.leaves) else []

    @property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Key of each pair of key-value metadata, and the pair as stored."""
        stored = _items(_find(self.fields, _PAIRS))
        return [(read_struct(raw, 0, {1: BYTES})[0].get(1, b""), raw) for raw in stored]

    def arrow_types(self) -> dict[str, pa.Field]:
        """Return the columns in Arrow's types, as stored or derived from Parquet's.

        Raises:
            Contradiction: there are none.
        """
        schema = self.parsed.schema
        try:
            types = pq.read_schema(io.BytesIO(empty_file(schema, self.parsed.arrow_schema)))
        except (pa.ArrowException, OSError, ValueError):
            raise Contradiction("pyarrow does not know the types of its schema") from None
        if tuple(types.names) != schema.columns:
            raise Contradiction("its Arrow schema has other columns")
        return {one.name: one for one in types}

    def unreferenced_bytes(self, edit: FooterEdit) -> int:
        """Return the bytes of the columns that are not kept, to which nothing would refer."""
        kept = frozenset(edit.keep)
        return sum(
            chunk.compressed
            for group in self.parsed.groups
            for chunk in group.columns
            if chunk.leaf.column not in kept
        )


def why_not_composed(
    footer: StoredFooter, edit: FooterEdit, new: Collection[str], *, has_dates: bool = False
) -> str | None:
    """Return why a file cannot keep columns as they are, in words; None if it can.

    Args:
        footer: Its footer.
        edit: What becomes of its columns.
        new: Names of added and replaced columns.
        has_dates: Whether some of these hold dates or timestamps.

    Raises:
        BadFooter: it is damaged.
    """
    columns = footer.parsed.schema.columns
    missing = [name for name in edit.keep if name not in columns]
    if missing:
        return f"it has no column {missing[0]!r}"
    names = [edit.target(name) for name in edit.keep]
    names += [name for name in new if name not in names]
    if len(set(names)) < len(names):
        return "two of its columns would have one name"
    if not edit.keep:
        return "none of its columns would be kept"
    if columns[0] not in edit.keep:
        # parquet-java assigns a row group to the split that has the offset of its first column.
        return f"its first column, {columns[0]!r}, is not kept, by whose place Spark splits files"
    unknown = {f.number for f in footer.fields} - _KNOWN_META
    for group in footer.groups:
        unknown |= {f.number for f in group.fields} - _KNOWN_GROUP
    if unknown:
        return f"its footer has the unknown field {min(unknown)}"
    try:
        footer.arrow_types()
    except Contradiction as error:
        return str(error)
    with _naming_place(footer.start):
        marker = _old_calendar(footer) if has_dates else None
    if marker is not None:
        return f"its dates are of an old calendar ({marker}), for which readers would take new ones"
    return None


def _old_calendar(footer: StoredFooter) -> str | None:
    """Return the pair that says that a file's dates are of an old calendar, if there is one."""
    for key, raw in footer.pairs:
        value = read_struct(raw, 0, {2: BYTES})[0].get(2, b"")
        # Spark, too, compares versions as texts.
        is_old = (
            key in _OLD_CALENDAR
            or (key == _SPARK_VERSION and value < b"3.0.0")
            or (key == _HIVE_CALENDAR and value.lower() != b"true")
        )
        if is_old:
            return key.decode()
    return None


def compose_footer(
    old: StoredFooter, new: StoredFooter | None, shift: int, edit: FooterEdit
) -> bytes:
    """Return the footer of kept columns and new ones.

    A new column takes the place of the old one of its name; others come last. The writer stays that
    of the old file, since readers decide by it which statistics they trust.

    Args:
        old: Footer of the old file.
        new: Footer of a file of the new columns alone, with the same row groups, and without page
            indexes and Bloom filters; None if there are no new columns.
        shift: Added to the offsets in `new`.
        edit: What becomes of the old file's columns.

    Raises:
        BadFooter: they do not fit.
    """
    with _naming_place(old.start):
        return _Composition(old, new, shift, edit).footer()


class _naming_place:
    """Turns errors of parsing into BadFooter."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ThriftError):
            raise BadFooter(self._start, f"footer cannot be parsed: {error}") from None
        if isinstance(error, IndexError):
            raise BadFooter(self._start, "footer cannot be parsed: it ends too early") from None
        if isinstance(error, UnicodeDecodeError):
            raise BadFooter(self._start, "a column's name is not UTF-8") from None
        if isinstance(error, Contradiction):
            raise BadFooter(self._start, str(error)) from None


# -- structs as stored ---------------------------------------------------------------------------


def _fields(data: bytes, at: int = 0) -> list[_Field]:
    """Return the fields of a struct.

    Raises:
        ThriftError: it is damaged, or has a field twice.
        IndexError: it is truncated.
    """
    return _cut(data, at, {})[0]


def _cut(
    data: bytes, at: int, lists: Mapping[int, Callable[[bytes, int], tuple[list[Any], int]]]
) -> tuple[list[_Field], dict[int, list[Any]], int]:
    """Return the fields of a struct, some of its lists cut by functions, and its end.

    So a footer is walked once, however deep it is cut. Fields that are cut are empty here.
    """
    found: list[_Field] = []
    parts: dict[int, list[Any]] = {}
    number = 0
    while True:
        head = data[at]
        at += 1
        kind = head & 15
        if not kind:
            break
        if head >> 4:
            number += head >> 4
        else:
            value, at = read_varint(data, at)
            number = (value >> 1) ^ -(value & 1)
        if number in lists and kind in LISTS:
            parts[number], at = lists[number](data, at)
            found.append(_Field(number, kind, b""))
            continue
        end = skip(data, at, kind)
        found.append(_Field(number, kind, data[at:end]))
        at = end
    if len({f.number for f in found}) < len(found):
        raise ThriftError("a field occurs twice")
    return found, parts, at


def _structs_at(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Return the elements of a list of structs, and its end."""
    element, count, at = read_list_header(data, at)
    if count and element != STRUCT:
        raise ThriftError("a list of another kind than structs")
    found = []
    for _ in range(count):
        end = skip(data, at, STRUCT)
        found.append(data[at:end])
        at = end
    return found, at


def _groups_at(data: bytes, at: int) -> tuple[list[_Group], int]:
    """Return the row groups of a list, and its end."""
    element, count, at = read_list_header(data, at)
    if count and element != STRUCT:
        raise ThriftError("row groups that are not structs")
    found = []
    for _ in range(count):
        fields, lists, at = _cut(data, at, {_COLUMNS: _structs_at})
        found.append(_Group(fields, lists.get(_COLUMNS, [])))
    return found, at


def _struct(fields: Sequence[_Field]) -> bytes:
    """Return a struct of fields, in their order."""
    parts: list[bytes] = []
    last = 0
    for number, kind, raw in fields:
        step = number - last
        if 0 < step < 16:
            parts.append(bytes([step << 4 | kind]))
        else:
            parts.append(bytes([kind]) + write_varint(_zigzag(number)))
        parts.append(raw)
        last = number
    return b"".join((*parts, b"\x00"))


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _number(raw: bytes) -> int:
    value, _ = read_varint(raw, 0)
    return (value >> 1) ^ -(value & 1)


def _integer(number: int, value: int) -> _Field:
    return _Field(number, _I64, write_varint(_zigzag(value)))


def _find(fields: Sequence[_Field], number: int) -> _Field | None:
    return next((f for f in fields if f.number == number), None)


def _replace(fields: Sequence[_Field], new: _Field | None, number: int) -> list[_Field]:
    """Return fields with one replaced, added in its order, or left out."""
    others = [f for f in fields if f.number != number]
    if new is None:
        return others
    return sorted([*others, new], key=lambda f: f.number)


def _list(number: int, items: Sequence[bytes], kind: int = STRUCT) -> _Field:
    return _Field(number, LIST, write_list_header(kind, len(items)) + b"".join(items))


def _items(of: _Field | None, kind: int = STRUCT) -> list[bytes]:
    """Return the elements of a list of structs or bytes; none of an absent one.

    Raises:
        ThriftError: it is no list of these.
    """
    if of is None:
        return []
    if of.kind not in LISTS:
        raise ThriftError(f"field {of.number} is not a list")
    element, count, at = read_list_header(of.raw, 0)
    if count and element != kind:
        raise ThriftError(f"field {of.number} is a list of another kind")
    found = []
    for _ in range(count):
        end = skip(of.raw, at, kind)
        found.append(of.raw[at:end])
        at = end
    return found


def _text(value: bytes) -> bytes:
    return write_varint(len(value)) + value


# -- two files as one ----------------------------------------------------------------------------


def _columns(schema: FileSchema, elements: Sequence[bytes]) -> Iterator[_Column]:
    """Cut schema elements, without the root, into those of the top-level columns."""
    at = leaf = 0
    for name in schema.columns:
        start, first, open_nodes = at, leaf, 1
        while open_nodes:
            element, _ = read_struct(elements[at], 0, {1: INTEGER, 5: INTEGER})
            is_leaf = 1 in element
            open_nodes += (0 if is_leaf else element.get(5, 0)) - 1
            leaf += is_leaf
            at += 1
        yield _Column(name, tuple(elements[start:at]), range(first, leaf))


@dataclass(frozen=True, slots=True)
class _Place:
    """A column of the composed file."""

    column: _Column
    is_new: bool
    target: str
    """Its name there."""

    @property
    def is_renamed(self) -> bool:
        return self.target != self.column.name


class _Composition:
    """Composes two footers."""

    def __init__(
        self, old: StoredFooter, new: StoredFooter | None, shift: int, edit: FooterEdit
    ) -> None:
        self._shift, self._edit = shift, edit
        self._old, self._new = old, new
        self._places = list(self._placed())

    def _placed(self) -> Iterator[_Place]:
        added = {} if self._new is None else {c.name: c for c in self._new.columns}
        for column in self._old.columns:
            if column.name in self._edit.keep:
                yield _Place(column, False, self._edit.target(column.name))
            elif column.name in added:
                yield _Place(added.pop(column.name), True, column.name)
        yield from (_Place(column, True, column.name) for column in added.values())

    def footer(self) -> bytes:
        names = [place.target for place in self._places]
        if len(set(names)) < len(names):
            raise Contradiction("two columns would have one name")
        fields: Sequence[_Field] = self._old.fields
        fields = _replace(fields, _list(_SCHEMA, list(self._schema())), _SCHEMA)
        fields = _replace(fields, _list(_ROW_GROUPS, list(self._row_groups())), _ROW_GROUPS)
        pairs = list(self._pairs())
        fields = _replace(fields, _list(_PAIRS, pairs) if pairs else None, _PAIRS)
        orders = list(self._orders())
        fields = _replace(fields, _list(_ORDERS, orders) if orders else None, _ORDERS)
        return _struct(fields)

    def _schema(self) -> Iterator[bytes]:
        root = _fields(self._old.root)
        kept = _find(root, 5)
        count = write_varint(_zigzag(len(self._places)))
        yield _struct(_replace(root, _Field(5, 5 if kept is None else kept.kind, count), 5))
        for place in self._places:
            top, *others = place.column.elements
            yield _renamed_element(top, place.target) if place.is_renamed else top
            yield from others

    def _row_groups(self) -> Iterator[bytes]:
        old, new = self._old.rows, self._old.rows if self._new is None else self._new.rows
        if len(old) != len(new):
            raise Contradiction(f"{len(old)} row groups, the new columns have {len(new)}")
        for number, (ours, theirs) in enumerate(zip(old, new, strict=True)):
            if ours != theirs:
                raise Contradiction(f"row group {number} has {ours} rows, the new columns {theirs}")
            yield _struct(self._row_group(number))

    def _row_group(self, number: int) -> Sequence[_Field]:
        chunks: list[bytes] = []
        total = stored = 0
        for place in self._places:
            of = self._new if place.is_new and self._new is not None else self._old
            for leaf in place.column.leaves:
                raw, parsed = of.groups[number].chunks[leaf], of.parsed.groups[number].columns[leaf]
                chunks.append(self._chunk(place, raw))
                total, stored = total + parsed.uncompressed, stored + parsed.compressed
        group = _replace(self._old.groups[number].fields, _list(_COLUMNS, chunks), _COLUMNS)
        group = _replace(group, _integer(_TOTAL, total), _TOTAL)
        if _find(group, _COMPRESSED) is not None:
            group = _replace(group, _integer(_COMPRESSED, stored), _COMPRESSED)
        ordered = self._sorted(group)
        return _replace(group, _list(_SORTED, ordered) if ordered else None, _SORTED)

    def _chunk(self, place: _Place, raw: bytes) -> bytes:
        if place.is_new:
            return self._shifted(raw)
        return _renamed_chunk(raw, place.target) if place.is_renamed else raw

    def _sorted(self, group: Sequence[_Field]) -> list[bytes]:
        """Return by which columns the rows are sorted: up to the first that is not kept."""
        positions: dict[int, int] = {}
        at = 0
        for place in self._places:
            for leaf in place.column.leaves:
                if not place.is_new:
                    positions[leaf] = at
                at += 1
        found: list[bytes] = []
        for raw in _items(_find(group, _SORTED)):
            fields = _fields(raw)
            index = _find(fields, 1)
            if index is None or _number(index.raw) not in positions:
                break
            moved = write_varint(_zigzag(positions[_number(index.raw)]))
            found.append(_struct(_replace(fields, _Field(1, index.kind, moved), 1)))
        return found

    def _shifted(self, chunk: bytes) -> bytes:
        """Move the offsets of a new column chunk."""
        fields = _fields(chunk)
        numbers = {f.number for f in fields}
        stored = _find(fields, _META)
        if stored is None or stored.kind != STRUCT:
            raise Contradiction("a new column chunk has no metadata")
        meta = _fields(stored.raw)
        if numbers & _INDEXES or _FILE_PATH in numbers or _find(meta, _BLOOM) is not None:
            raise Contradiction("a new column chunk has an index, a Bloom filter or another file")
        moved = [self._move(f) if f.number in _OFFSETS else f for f in meta]
        fields = [self._move(f) if f.number == _FILE_OFFSET else f for f in fields]
        return _struct(_replace(fields, _Field(_META, STRUCT, _struct(moved)), _META))

    def _move(self, offset: _Field) -> _Field:
        value = _number(offset.raw)
        # Some writers store a 0 for none.
        return offset if value <= 0 else _integer(offset.number, value + self._shift)

    def _orders(self) -> Iterator[bytes]:
        old = self._old.orders
        new = [] if self._new is None else self._new.orders
        if not old:
            return
        for place in self._places:
            orders = new if place.is_new else old
            for leaf in place.column.leaves:
                yield orders[leaf] if orders else _ORDER

    # -- key-value metadata --

    def _pairs(self) -> Iterator[bytes]:
        """Yield the pairs, as stored, but for those that name the columns."""
        arrow = self._arrow_schema()
        kept = [place.target for place in self._places if not place.is_new]
        changed = [c.name for c in self._old.columns] != kept
        dropped = _NAMING if changed else _COMPLETE if len(kept) < len(self._places) else ()
        yield from (r for key, r in self._old.pairs if key != _ARROW and key not in dropped)
        if arrow is not None:
            yield _struct([_Field(1, BINARY, _text(_ARROW)), _Field(2, BINARY, _text(arrow))])

    def _arrow_schema(self) -> bytes | None:
        """Return the Arrow schema of all columns; None if Parquet's says the same."""
        old = self._old.arrow_types()
        new = {} if self._new is None else self._new.arrow_types()
        types = [
            (new if place.is_new else old)[place.column.name].with_name(place.target)
            for place in self._places
        ]
        together = b"".join(self._schema())
        stored = write_list_header(STRUCT, 1 + sum(len(p.column.elements) for p in self._places))
        plain = pq.read_schema(io.BytesIO(empty_file(parse_schema(stored + together), None)))
        whole = pa.schema(types)
        is_stored = self._old.parsed.arrow_schema is not None
        if plain.equals(whole, check_metadata=False) and not is_stored:
            return None
        return base64.b64encode(whole.serialize().to_pybytes())


def _renamed_element(element: bytes, name: str) -> bytes:
    fields = _fields(element)
    return _struct(_replace(fields, _Field(4, BINARY, _text(name.encode())), 4))


def _renamed_chunk(chunk: bytes, name: str) -> bytes:
    """Rename the top-level column in the path of a column chunk."""
    fields = _fields(chunk)
    stored = _find(fields, _META)
    if stored is None or stored.kind != STRUCT:
        raise Contradiction("a column chunk has no metadata")
    meta = _fields(stored.raw)
    path = _items(_find(meta, _PATH), BINARY)
    if not path:
        raise Contradiction("a column chunk does not name its column")
    renamed = _list(_PATH, [_text(name.encode()), *path[1:]], BINARY)
    meta = _replace(meta, renamed, _PATH)
    return _struct(_replace(fields, _Field(_META, STRUCT, _struct(meta)), _META))
