"""The planner's nouns: object, fragment, chunk, plan."""

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
from partitioning.hive_paths import raw_of_object, spelled_out
from partitioning.plan_subset import take_tables
from partitioning.table_file import TableFile, pack_tables

FORMAT_VERSION: Final = 1
CUT_VERSION: Final = 2
"""Of plans that cut row groups: earlier releases would read the whole of one for each part."""
PARTITION_PREFIX: Final = "partition:"
"""Prefix of the columns of a plan's object table that hold Hive partition values."""
_BLOCK: Final = 4096

PartitionValue = date | int | str | None
Partition = tuple[tuple[str, PartitionValue], ...]
RawPartition = tuple[tuple[str, str], ...]
"""Hive values as the folders spell them: they identify a partition."""


class Status:
    """What became of an object in a plan (the `status` column of its object table)."""

    PLANNED: Final = 0
    PRUNED: Final = 1
    """By its partition values: its footer was not read."""
    SKIPPED: Final = 2
    """Not readable Parquet, and the request says to go on without it."""
    UNCHANGED: Final = 3
    """As in the plan before, and the request asks for changes only."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One version of one object."""

    uri: str
    """`s3://bucket/key` with the raw key, never percent-encoded by us; or `file:///path`."""
    etag: str
    """The store's version mark, as the store gives it (with or without quotes)."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Consecutive row groups of one object, or rows of one, pinned to its version."""

    uri: str
    etag: str
    size: int
    """Bytes of the whole object."""
    row_group_start: int
    row_group_stop: int
    """Half-open."""
    row_start: int
    """Index in the object of the fragment's first row."""
    rows: int
    footer_size: int
    """Bytes of the object's tail that hold the footer and its 8-byte end."""
    stored_bytes: int
    """Compressed bytes of the columns that are read."""
    decoded_bytes: int
    """Estimated bytes in memory of the columns that are read."""
    partition: Partition = ()
    """Its object's Hive values, in the order of the directories: no part of its identity."""
    part: tuple[int, int] | None = None
    """Half-open range of rows of its only row group, where that is cut; None is all rows."""

    @property
    def identity(self) -> str:
        """The text that identifies it."""
        start, stop = self.row_group_start, self.row_group_stop
        return fragment_identity(self.uri, self.etag, self.size, start, stop, part=self.part)

    @property
    def raw_partition(self) -> RawPartition:
        """The same values as the folders of its object spell them."""
        if not self.partition:
            return ()
        raws = raw_of_object(self.uri)
        # A null may be of a folder that is not there, beside which one above the prefix counts not.
        return tuple(
            (name, spelled_out(value) if value is None else raws.get(name, spelled_out(value)))
            for name, value in self.partition
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Ordered fragments that are mapped together: the unit of completion."""

    id: str
    """32 hex digits, derived from the fragments' identity and nothing else."""
    index: int
    """Rank in its plan: for order and names, never for identity."""
    partition: Partition
    """The Hive values that all its fragments share, in the order of the directories."""
    fragments: tuple[Fragment, ...]

    @property
    def raw_partition(self) -> RawPartition:
        """The shared Hive values as the folders spell them.

        Where chunks cross partitions, one value may be spelled in several ways: then it is spelled
        in the shortest one.
        """
        if not self.partition:
            return ()
        first, *others = {fragment.raw_partition: None for fragment in self.fragments}
        raws = dict(first)
        differs = {name for other in others for name, raw in other if raws[name] != raw}
        return tuple(
            (name, spelled_out(value) if name in differs else raws[name])
            for name, value in self.partition
        )

    @property
    def rows(self) -> int:
        """Rows of all fragments, before any filter."""
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
    """A bad object that a plan goes without."""

    uri: str
    etag: str
    size: int
    offset: int
    """Byte at which it is wrong."""
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
    """Return the text that identifies a fragment: lengths first, so that none is ambiguous."""
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
    """Return what stands for the schema in a plan's id."""
    return bytes.fromhex(meta["schema"]) + bytes.fromhex(meta.get("dtypes", ""))


class Plan:
    """The frozen list of chunks of one dataset snapshot; columnar, decoded where it is looked at.

    Three tables: `objects` (every object listed), `row_groups` (every row group of the
    objects whose footer is known, in plan order) and `chunks` (ranges of row groups). Where a row
    group is cut, `chunks` has a further column `first_row`, and `row_groups` has `indexed`.
    A plan pickles as its stored bytes.
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
        """Freeze tables into a plan (used by the planner)."""
        is_cut = "first_row" in tables["chunks"].column_names
        version = CUT_VERSION if is_cut else FORMAT_VERSION
        return cls(TableFile(pack_tables(tables, {**meta, "version": version})))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview | pa.Buffer) -> Plan:
        """Open a stored plan; what is not looked at is not decoded.

        Raises:
            PlanFormatError: the bytes are no plan, or one of another version.
        """
        return cls(TableFile(data))

    def to_bytes(self) -> bytes:
        """Return the plan to store: the same plan gives the same bytes."""
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
        """32 hex digits over the ordered chunk ids and the schema."""
        return str(self._file.meta["id"])

    @property
    def rows(self) -> int:
        """Rows of all chunks, before row filters."""
        return int(self._file.meta["rows"])

    @property
    def stored_bytes(self) -> int:
        """Compressed bytes to read, of all chunks."""
        return int(self._file.meta["stored_bytes"])

    @property
    def decoded_bytes(self) -> int:
        """Estimated bytes in memory, of all chunks."""
        return int(self._file.meta["decoded_bytes"])

    @property
    def objects(self) -> int:
        """Objects that the chunks read."""
        return int(self._file.meta["objects"])

    @property
    def fragments(self) -> int:
        """Fragments of all chunks."""
        return int(self._file.meta["fragments"])

    @property
    def has_raw_folders(self) -> bool:
        """Tell whether outputs lie in folders that are spelled as the input's are.

        Earlier releases wrote the values in another spelling.
        """
        return bool(self._file.meta.get("raw_folders"))

    @property
    def input(self) -> dict[str, Any]:
        """What was planned: uri, columns, filter and the rest, as JSON values."""
        return dict(self._file.meta["input"])

    @cached_property
    def schema(self) -> pa.Schema:
        """The dataset's schema in Arrow's types: the objects' columns, then the Hive columns."""
        return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(self._file.meta["schema"])))

    @cached_property
    def dtypes(self) -> pl.Schema:
        """The same in Polars' types: what `pl.scan_parquet` gives for the same objects."""
        stored = self._file.meta.get("dtypes")
        return (
            polars_schema_of(self.schema)
            if stored is None
            else unpack_schema(bytes.fromhex(stored))[0]
        )

    @cached_property
    def skipped(self) -> tuple[Skipped, ...]:
        """The bad objects that this plan goes without."""
        return tuple(Skipped(**row) for row in self._file.table("skipped").to_pylist())

    @cached_property
    def chunk_ids(self) -> list[str]:
        """The chunks' ids, in order."""
        return [i.hex() for i in self._file.table("chunks")["id"].to_pylist()]

    @property
    def chunk_table(self) -> pa.Table:
        """A row a chunk: id (16 bytes), start, stop, fragments, rows, stored and decoded bytes.

        start and stop are positions in the table of row groups. A chunk that is part of a row group
        has in first_row the rows of it that come before; others have null there.
        """
        return self._file.table("chunks")

    def table(self, name: str) -> pa.Table:
        """Return an inner table: chunks, row_groups, objects, schemas or skipped."""
        return self._file.table(name)

    def take(self, indices: Sequence[int]) -> Plan:
        """Return a plan of some chunks in this order: same ids and schema, ranked from 0.

        It names only the objects that its chunks read. Taking all chunks in their order gives a
        plan of the same id.

        Raises:
            IndexError: there is no such chunk.
            ValueError: a chunk is named twice.
        """
        chosen = np.asarray(indices, np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"chunks {chosen.min()} to {chosen.max()} of a plan of {len(self)}")
        if len(np.unique(chosen)) < len(chosen):
            raise ValueError("a chunk is in a plan once")
        names = ("chunks", "row_groups", "objects", "schemas", "skipped")
        tables, objects = take_tables(
            {name: self.table(name) for name in names}, chosen, Status.PLANNED
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
        """Return one chunk, decoding little more than it."""
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of a plan of {len(self)}")
        return next(self._decode(index, index + 1))

    def chunks(self, indices: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Yield chunks by index, or all in order; consecutive indices are read together."""
        for start, stop in _runs(range(len(self)) if indices is None else indices):
            if not 0 <= start < stop <= len(self):
                raise IndexError(f"chunks {start} to {stop - 1} of a plan of {len(self)}")
            yield from self._decode(start, stop)

    def _decode(self, start: int, stop: int) -> Iterator[Chunk]:
        ranges = self._file.rows("chunks", start, stop)
        # Chunks that were taken out of another plan need not ascend.
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
    """Return those of some chunks that are parts of row groups, by their positions."""
    if "first_row" not in chunks.column_names:
        return {}
    names = ("first_row", "rows", "stored_bytes", "decoded_bytes")
    figures = zip(*(chunks[name].to_pylist() for name in names), strict=True)
    return {rank: _Part(*one) for rank, one in enumerate(figures) if one[0] is not None}


def _runs(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Cut indices into runs of consecutive ones, of bounded length."""
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
    """Decoded neighbours: some objects, and their row groups from the first object's first."""

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
    """Return the Hive values that all fragments have in common."""
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
