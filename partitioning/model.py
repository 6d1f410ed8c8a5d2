"""Types of the planner: object, fragment, chunk, plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from partitioning.dtypes import polars_schema_of, unpack_schema
from partitioning.errors import PlanFormatError
from partitioning.hive_paths import default_raw, raw_of_object
from partitioning.plan_subset import take_tables
from partitioning.table_file import TableFile, pack_tables

FORMAT_VERSION: Final = 1
CUT_VERSION: Final = 2
"""Version of plans that cut row groups, which earlier releases would read as a whole."""
PARTITION_PREFIX: Final = "partition:"
"""Prefix of the columns of a plan's object table that hold Hive partition values."""
_BLOCK: Final = 4096

PartitionValue = date | int | str | None
Partition = tuple[tuple[str, PartitionValue], ...]
RawPartition = tuple[tuple[str, str], ...]
"""Hive values as the folders spell them, which identify a partition."""


class Status:
    """Statuses of objects in a plan (the `status` column of its object table)."""

    PLANNED: Final = 0
    PRUNED: Final = 1
    """Pruned by its partition values; its footer was not read."""
    SKIPPED: Final = 2
    """Not readable Parquet, and skipped as requested."""
    UNCHANGED: Final = 3
    """As in the previous plan, and only changes are requested."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A version of an object."""

    uri: str
    """URI: `s3://bucket/key` with the raw key, never percent-encoded; or `file:///path`."""
    etag: str
    """Version mark as the store returns it (with or without quotes)."""
    size: int
    """Size in bytes."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Consecutive row groups of a version of an object, or consecutive rows of one row group."""

    uri: str
    etag: str
    size: int
    """Size of the whole object in bytes."""
    row_group_start: int
    row_group_stop: int
    """End of the range of row groups, exclusive."""
    row_start: int
    """Index of the fragment's first row in the object."""
    rows: int
    footer_size: int
    """Bytes of the object's tail with the footer and the 8 bytes after it."""
    stored_bytes: int
    """Compressed bytes of the columns that are read."""
    decoded_bytes: int
    """Estimated bytes in memory of the columns that are read."""
    partition: Partition = ()
    """Hive values of its object, in the order of the directories; not part of its identity."""
    part: tuple[int, int] | None = None
    """Half-open range of rows, if its only row group is cut; None for all rows."""

    @property
    def identity(self) -> str:
        """Text that identifies the fragment."""
        start, stop = self.row_group_start, self.row_group_stop
        return fragment_identity(self.uri, self.etag, self.size, start, stop, part=self.part)

    @property
    def raw_partition(self) -> RawPartition:
        """Hive values as the folders of its object spell them."""
        if not self.partition:
            return ()
        raws = raw_of_object(self.uri)
        # A null may stand for a missing folder; then a folder above the prefix does not count.
        return tuple(
            (name, default_raw(value) if value is None else raws.get(name, default_raw(value)))
            for name, value in self.partition
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Ordered fragments that are mapped together: the unit of completion."""

    id: str
    """Id: 32 hex digits, derived from the fragments' identities only."""
    index: int
    """Position in its plan, for order and names, never for identity."""
    partition: Partition
    """Hive values that all its fragments share, in the order of the directories."""
    fragments: tuple[Fragment, ...]

    @property
    def raw_partition(self) -> RawPartition:
        """Shared Hive values as the folders spell them.

        If fragments spell a value differently (`month=1`, `month=01`), it has its default spelling.
        """
        if not self.partition:
            return ()
        first, *others = {fragment.raw_partition: None for fragment in self.fragments}
        raws = dict(first)
        differs = {name for other in others for name, raw in other if raws[name] != raw}
        return tuple(
            (name, default_raw(value) if name in differs else raws[name])
            for name, value in self.partition
        )

    @property
    def rows(self) -> int:
        """Number of rows of all fragments, before any filter."""
        return sum(f.rows for f in self.fragments)

    @property
    def stored_bytes(self) -> int:
        """Compressed bytes to read."""
        return sum(f.stored_bytes for f in self.fragments)

    @property
    def decoded_bytes(self) -> int:
        """Estimated bytes in memory once read."""
        return sum(f.decoded_bytes for f in self.fragments)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A bad object that a plan leaves out."""

    uri: str
    etag: str
    size: int
    offset: int
    """Offset of the damage in bytes."""
    reason: str


def fragment_identity(
    uri: str,
    etag: str,
    size: int,
    start: int,
    stop: int,
    *,
    part: tuple[int, int] | None = None,
) -> str:
    """Return the text that identifies a fragment; it has lengths, so that it is unambiguous."""
    etag = etag.strip('"')  # some clients keep the quotes of the HTTP header
    rows = "" if part is None else f",{part[0]},{part[1]}"
    return f"{len(uri)}:{uri},{len(etag)}:{etag},{size},{start},{stop}{rows};"


def chunk_id(identities: Iterable[str]) -> bytes:
    """Return the 16 bytes that identify a chunk of these fragments."""
    return hashlib.blake2b("".join(identities).encode(), digest_size=16).digest()


def plan_id(schema: bytes, chunk_ids: Iterable[bytes]) -> str:
    """Return the 32 hex digits that identify a plan of these chunks, in order."""
    identity = hashlib.blake2b(schema, digest_size=16)
    identity.update(b"".join(chunk_ids))
    return identity.hexdigest()


def schema_identity(meta: Mapping[str, Any]) -> bytes:
    """Return the bytes that stand for the schema in a plan's id."""
    return bytes.fromhex(meta["schema"]) + bytes.fromhex(meta.get("dtypes", ""))


class Plan:
    """The immutable list of chunks of a dataset snapshot; columnar, and decoded on access.

    It has three tables: `objects` (all listed objects), `row_groups` (all row groups of objects
    with known footers, in plan order) and `chunks` (ranges of row groups). If row groups are cut,
    `chunks` also has the column `first_row`, and `row_groups` the column `indexed`. A plan pickles
    as its stored bytes.
    """

    def __init__(self, file: TableFile) -> None:
        version = file.meta.get("version")
        if version not in (FORMAT_VERSION, CUT_VERSION):
            raise PlanFormatError(
                f"the plan has format version {version}; this release reads {FORMAT_VERSION} "
                f"and {CUT_VERSION}"
            )
        self._file = file

    @classmethod
    def build(cls, tables: Mapping[str, pa.Table], meta: Mapping[str, Any]) -> Plan:
        """Build a plan from tables (used by the planner)."""
        is_cut = "first_row" in tables["chunks"].column_names
        version = CUT_VERSION if is_cut else FORMAT_VERSION
        return cls(TableFile(pack_tables(tables, {**meta, "version": version})))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview | pa.Buffer) -> Plan:
        """Open a stored plan, which is decoded on access.

        Raises:
            PlanFormatError: The bytes are not a plan, or have an unsupported version.
        """
        return cls(TableFile(data))

    def to_bytes(self) -> bytes:
        """Return the bytes to store; equal plans have equal bytes."""
        return self._file.data.to_pybytes()  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        return f"Plan({self.id[:12]}…, {len(self)} chunks, {self.rows} rows)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return bool(self._file.data.equals(other._file.data))

    def __hash__(self) -> int:
        return hash(self.id)

    def __len__(self) -> int:
        return int(self._file.meta["chunks"])

    @property
    def id(self) -> str:
        """Id: 32 hex digits over the ordered chunk ids and the schema."""
        return str(self._file.meta["id"])

    @property
    def rows(self) -> int:
        """Number of rows of all chunks, before row filters."""
        return int(self._file.meta["rows"])

    @property
    def stored_bytes(self) -> int:
        """Compressed bytes of all chunks to read."""
        return int(self._file.meta["stored_bytes"])

    @property
    def decoded_bytes(self) -> int:
        """Estimated bytes of all chunks in memory."""
        return int(self._file.meta["decoded_bytes"])

    @property
    def objects(self) -> int:
        """Number of objects that the chunks read."""
        return int(self._file.meta["objects"])

    @property
    def fragments(self) -> int:
        """Number of fragments of all chunks."""
        return int(self._file.meta["fragments"])

    @property
    def has_raw_folders(self) -> bool:
        """Whether folders of the output keep the spelling of the input's folders.

        Earlier releases wrote the values in another spelling.
        """
        return bool(self._file.meta.get("raw_folders"))

    @property
    def input(self) -> dict[str, Any]:
        """Request of the plan: URI, columns, filter and so on, as JSON values."""
        return dict(self._file.meta["input"])

    @cached_property
    def schema(self) -> pa.Schema:
        """Schema of the dataset in Arrow types: columns of the objects, then Hive columns."""
        return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(self._file.meta["schema"])))

    @cached_property
    def dtypes(self) -> pl.Schema:
        """Schema of the dataset in Polars types, as `pl.scan_parquet` returns them."""
        stored = self._file.meta.get("dtypes")
        return (
            polars_schema_of(self.schema)
            if stored is None
            else unpack_schema(bytes.fromhex(stored))[0]
        )

    @property
    def object_bytes(self) -> int:
        """Size of all objects that the chunks read, in bytes."""
        objects = self._file.table("objects")
        planned = pc.equal(objects["status"], Status.PLANNED)
        return int(pc.sum(objects.filter(planned)["size"]).as_py() or 0)

    @cached_property
    def hive_columns(self) -> tuple[str, ...]:
        """Names of the columns whose values are in the folders of the objects."""
        names = self._file.table("objects").column_names
        return tuple(
            name.removeprefix(PARTITION_PREFIX)
            for name in names
            if name.startswith(PARTITION_PREFIX)
        )

    @cached_property
    def skipped(self) -> tuple[Skipped, ...]:
        """Bad objects that the plan leaves out."""
        return tuple(Skipped(**row) for row in self._file.table("skipped").to_pylist())

    @cached_property
    def chunk_ids(self) -> list[str]:
        """Ids of the chunks, in order."""
        return [i.hex() for i in self._file.table("chunks")["id"].to_pylist()]

    @property
    def chunk_table(self) -> pa.Table:
        """One row per chunk: id (16 bytes), start, stop, fragments, rows, stored and decoded bytes.

        start and stop are positions in the table of row groups. For a part of a row group,
        first_row is the position of its first row in the row group; for other chunks it is null.
        """
        return self._file.table("chunks")

    def table(self, name: str) -> pa.Table:
        """Return an inner table: chunks, row_groups, objects, schemas or skipped."""
        return self._file.table(name)

    def take(self, indices: Sequence[int]) -> Plan:
        """Return a plan of some chunks in this order, with the same chunk ids and schema.

        It names only the objects that its chunks read. Taking all chunks in their order gives a
        plan with the same id.

        Raises:
            IndexError: There is no such chunk.
            ValueError: A chunk is named twice.
        """
        positions = np.asarray(indices, np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(
                f"chunks {positions.min()} to {positions.max()} of a plan with {len(self)}"
            )
        if len(np.unique(positions)) < len(positions):
            raise ValueError("a plan has a chunk only once")
        names = ("chunks", "row_groups", "objects", "schemas", "skipped")
        tables, objects = take_tables(
            {name: self.table(name) for name in names}, positions, Status.PLANNED
        )
        chunks = tables["chunks"]
        sums = ("fragments", "rows", "stored_bytes", "decoded_bytes")
        meta = {
            **self._file.meta,
            "id": plan_id(schema_identity(self._file.meta), chunks["id"].to_pylist()),
            "chunks": len(chunks),
            "objects": objects,
            **{name: int(chunks[name].to_numpy().sum()) for name in sums},
        }
        return Plan.build(tables, meta)

    def chunk(self, index: int) -> Chunk:
        """Return a chunk, decoding little more than it."""
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of a plan with {len(self)}")
        return next(self._decode(index, index + 1))

    def chunks(self, indices: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Yield chunks by index, or all in order; consecutive chunks are decoded together."""
        for start, stop in _runs(range(len(self)) if indices is None else indices):
            if not 0 <= start < stop <= len(self):
                raise IndexError(f"chunks {start} to {stop - 1} of a plan with {len(self)}")
            yield from self._decode(start, stop)

    def _decode(self, start: int, stop: int) -> Iterator[Chunk]:
        ranges = self._file.rows("chunks", start, stop)
        # In a plan from `take` the ranges need not ascend.
        first, last = pc.min(ranges["start"]).as_py(), pc.max(ranges["stop"]).as_py()
        ordinals = self._file.rows("row_groups", first, last)["object"]
        low, high = ordinals[0].as_py(), ordinals[-1].as_py()
        objects = self._file.rows("objects", low, high + 1)
        base = objects["row_group_start"][0].as_py()
        groups = self._file.rows("row_groups", base, last)
        block = _Block(objects, groups, low, base)
        ids = ranges["id"].to_pylist()
        bounds = zip(ranges["start"].to_pylist(), ranges["stop"].to_pylist(), strict=True)
        parts = _parts_of(ranges)
        for rank, (identity, (begin, end)) in enumerate(zip(ids, bounds, strict=True)):
            fragments = block.fragments(begin, end)
            part = parts.get(rank)
            if part is not None:
                fragments = (part.of(fragments[0]),)
            partition = shared_partition(fragments)
            yield Chunk(identity.hex(), start + rank, partition, fragments)


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk that is part of a row group."""

    first_row: int
    rows: int
    stored_bytes: int
    decoded_bytes: int

    def of(self, whole: Fragment) -> Fragment:
        """Return this part of a row group."""
        return replace(
            whole,
            row_start=whole.row_start + self.first_row,
            rows=self.rows,
            stored_bytes=self.stored_bytes,
            decoded_bytes=self.decoded_bytes,
            part=(self.first_row, self.first_row + self.rows),
        )


def _parts_of(chunks: pa.Table) -> dict[int, _Part]:
    """Return the chunks that are parts of row groups, by their positions."""
    if "first_row" not in chunks.column_names:
        return {}
    names = ("first_row", "rows", "stored_bytes", "decoded_bytes")
    figures = zip(*(chunks[name].to_pylist() for name in names), strict=True)
    return {rank: _Part(*row) for rank, row in enumerate(figures) if row[0] is not None}


def _runs(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Group indices into runs of consecutive indices, of limited length."""
    if isinstance(indices, range) and indices.step == 1:
        for start in range(indices.start, indices.stop, _BLOCK):
            yield start, min(start + _BLOCK, indices.stop)
        return
    start = stop = 0
    for index in indices:
        if start < stop == index and stop - start < _BLOCK:
            stop += 1
            continue
        if start < stop:
            yield start, stop
        start, stop = index, index + 1
    if start < stop:
        yield start, stop


class _Block:
    """Decoded tables of consecutive objects and their row groups."""

    def __init__(self, objects: pa.Table, groups: pa.Table, low: int, base: int) -> None:
        self._low, self._base = low, base
        columns = ("uri", "etag", "size", "footer_size", "row_group_start")
        self._objects = list(zip(*(objects[c].to_pylist() for c in columns), strict=True))
        planned = objects["status"].to_numpy() == Status.PLANNED
        self._ordinals = groups["object"].to_numpy().astype(np.int64)
        self._member = groups["kept"].to_numpy() & planned[self._ordinals - low]
        self._rows, self._stored, self._decoded = (
            np.concatenate([[0], np.cumsum(groups[c].to_numpy())]) for c in _MEASURES
        )
        hive = [c for c in objects.column_names if c.startswith(PARTITION_PREFIX)]
        names = [c.removeprefix(PARTITION_PREFIX) for c in hive]
        values = zip(*(objects[c].to_pylist() for c in hive), strict=True)
        self._partitions: list[Partition] = [
            tuple(zip(names, row, strict=True)) for row in values
        ] or [()] * len(objects)

    def fragments(self, start: int, stop: int) -> tuple[Fragment, ...]:
        """Return the fragments of the row groups [start, stop)."""
        begin, end = start - self._base, stop - self._base
        found = []
        for ordinal, first, last in member_runs(self._ordinals, self._member, begin, end):
            uri, etag, size, footer_size, own = self._objects[ordinal - self._low]
            own -= self._base
            found.append(
                Fragment(
                    uri=uri,
                    etag=etag,
                    size=size,
                    row_group_start=first - own,
                    row_group_stop=last - own,
                    row_start=int(self._rows[first] - self._rows[own]),
                    rows=int(self._rows[last] - self._rows[first]),
                    footer_size=footer_size,
                    stored_bytes=int(self._stored[last] - self._stored[first]),
                    decoded_bytes=int(self._decoded[last] - self._decoded[first]),
                    partition=self._partitions[ordinal - self._low],
                )
            )
        return tuple(found)


def shared_partition(fragments: tuple[Fragment, ...]) -> Partition:
    """Return the Hive values that all fragments share."""
    first = fragments[0].partition
    if all(f.partition == first for f in fragments):
        return first
    return tuple(
        pair for at, pair in enumerate(first) if all(f.partition[at] == pair for f in fragments)
    )


_MEASURES: Final = ("rows", "stored", "decoded")


def member_runs(
    ordinals: np.ndarray[Any, Any], member: np.ndarray[Any, Any], start: int, stop: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (object, first, last) of each run of member row groups of one object."""
    index = start
    while index < stop:
        if not member[index]:
            index += 1
            continue
        first, ordinal = index, int(ordinals[index])
        while index < stop and member[index] and ordinals[index] == ordinal:
            index += 1
        yield ordinal, first, index
