"""Hold the listed objects in plan order, with their footers' figures, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from partitioning import hive
from partitioning.footers import FooterBatch
from partitioning.listing import Listing
from partitioning.model import PARTITION_PREFIX, ObjectInfo, PartitionValue, Plan, Status

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Groups:
    """Row groups, as columns with one value per row group."""

    rows: Ints
    stored: Ints
    decoded: Ints
    kept: npt.NDArray[np.bool_]
    """Whether rows may match the filter; False if statistics exclude it."""
    indexed: npt.NDArray[np.bool_]
    """Whether all columns that are read have an offset index."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def join(cls, parts: Iterable[Groups]) -> Groups:
        """Concatenate row groups."""
        parts = list(parts)
        empty = np.zeros(0, np.int64)
        return cls(
            np.concatenate([empty, *(p.rows for p in parts)]),
            np.concatenate([empty, *(p.stored for p in parts)]),
            np.concatenate([empty, *(p.decoded for p in parts)]),
            np.concatenate([np.zeros(0, bool), *(p.kept for p in parts)]),
            np.concatenate([np.zeros(0, bool), *(p.indexed for p in parts)]),
        )

    def take(self, index: Ints) -> Groups:
        """Return the row groups at some positions."""
        return Groups(
            self.rows[index],
            self.stored[index],
            self.decoded[index],
            self.kept[index],
            self.indexed[index],
        )


@dataclass(slots=True)
class Changes:
    """Changes since the previous plan; without a previous plan, all objects are added."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Objects with a different ETag or size."""
    unchanged: int = 0


@dataclass(slots=True)
class Snapshot:
    """Objects sorted by partition values (nulls last), then by key in UTF-8 byte order."""

    infos: list[ObjectInfo]
    hive: hive.Hive
    partition: Ints
    """Numbers that change with the raw partition values."""
    status: npt.NDArray[np.uint8]
    footer_size: Ints
    schema: Ints
    """Index in `schemas`, -1 while the footer is unknown."""
    counts: Ints
    """Number of row groups, -1 while the footer is unknown."""
    starts: Ints
    """Position of the first row group in `groups`."""
    groups: Groups = field(default_factory=lambda: Groups.join([]))
    schemas: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def any_schema(self) -> bool:
        """Whether at least one footer is known."""
        return bool((self.schema >= 0).any())

    def partition_values(self, index: int) -> dict[str, PartitionValue]:
        """Return an object's Hive values."""
        return {n: c[index] for n, c in zip(self.hive.names, self.hive.columns, strict=True)}

    def path_values(self, index: int) -> dict[str, PartitionValue]:
        """Return the Hive values that are in an object's path; others are null."""
        hive = self.hive
        return {
            name: values[index]
            for name, values, missing in zip(hive.names, hive.columns, hive.missing, strict=True)
            if not missing[index]
        }

    def forget(self, objects: Ints) -> None:
        """Forget the footers of objects, as if they had not been read."""
        self.schema[objects] = self.counts[objects] = -1
        self.footer_size[objects] = 0

    def add(self, objects: Ints, batch_schemas: list[bytes], figures: dict[str, Ints],
            groups: Groups) -> None:  # fmt: skip
        """Add the footers of some objects; their row groups are in the same order."""
        known = {s: i for i, s in enumerate(self.schemas)}
        for serialised in batch_schemas:
            known.setdefault(serialised, len(known))
        self.schemas = list(known)
        mapping = np.array([known[s] for s in batch_schemas] or [0], np.int64)
        counts = figures["counts"]
        self.schema[objects] = mapping[figures["schema"]]
        self.footer_size[objects] = figures["footer_size"]
        self.counts[objects] = counts
        self.starts[objects] = len(self.groups) + np.cumsum(counts) - counts
        self.groups = Groups.join([self.groups, groups])

    def canonical_schemas(self) -> tuple[list[bytes], Ints]:
        """Return the schemas in the order of the objects, and each object's index among them.

        The result does not depend on the order in which footers were read.
        """
        known = self.schema >= 0
        kinds, first = np.unique(self.schema[known], return_index=True)
        order = kinds[np.argsort(first)]
        ranks = np.full(len(self.schemas) + 1, -1, np.int64)  # the last for -1
        ranks[order] = np.arange(len(order))
        return [self.schemas[kind] for kind in order.tolist()], ranks[self.schema]

    def ordered_groups(self) -> tuple[Ints, Ints, Groups]:
        """Return each object's first position, each row group's object, and all row groups.

        Row groups are in plan order: those of an object follow those of the previous object.
        """
        counts = np.maximum(self.counts, 0)
        starts = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(self), dtype=np.int64), counts)
        return starts, owner, self.groups.take(gather(self.starts, counts))


def gather(starts: Ints, counts: Ints) -> Ints:
    """Return the positions of all elements of consecutive ranges."""
    shifts = starts - (np.cumsum(counts) - counts)
    return np.repeat(shifts, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def take_snapshot(
    listing: Listing, *, lenient: bool, hive_types: Mapping[str, str] | None = None
) -> Snapshot:
    """Sort a listing and parse its partition values. Raises as `hive.parse`.

    Args:
        listing: The objects.
        lenient: A missing partition column is null.
        hive_types: Declared types of partition columns.
    """
    infos = listing.objects
    uris = [info.uri for info in infos]
    values = hive.parse(
        listing.directories,
        uris,
        lenient=lenient,
        others=listing.outside_directories,
        declared=hive_types,
    )
    columns = {
        f"p{i}": pa.array(c, t)
        for i, (c, t) in enumerate(zip(values.columns, values.types, strict=True))
    }
    # Different spellings of a value (`month=1`, `month=01`) are different partitions.
    columns |= {
        f"r{i}": pa.array(raws, pa.string())
        for i, (own, raws) in enumerate(zip(values.columns, values.raws, strict=True))
        if len(set(own)) != len(set(raws))
    }
    table = pa.table({**columns, "uri": pa.array(uris, pa.string())})
    keys = [(name, "ascending", "at_end") for name in table.column_names]
    order = pc.sort_indices(table, sort_keys=keys).to_pylist()
    count = len(infos)
    sorted_hive = values.take(order)
    return Snapshot(
        infos=[infos[i] for i in order],
        hive=sorted_hive,
        partition=_ordinals(sorted_hive, count),
        status=np.full(count, Status.PLANNED, np.uint8),
        footer_size=np.zeros(count, np.int64),
        schema=np.full(count, -1, np.int64),
        counts=np.full(count, -1, np.int64),
        starts=np.zeros(count, np.int64),
    )


def _ordinals(values: hive.Hive, count: int) -> Ints:
    differs = np.zeros(count, bool)
    for raws in values.raws:
        codes = pa.array(raws, pa.string()).dictionary_encode().indices.to_numpy()
        differs[1:] |= codes[1:] != codes[:-1]
    return np.cumsum(differs)


def compare(snapshot: Snapshot, previous: Plan | None) -> tuple[Changes, Ints, Ints]:
    """Return the changes, and the positions of unchanged objects here and in the previous plan."""
    nothing = np.zeros(0, np.int64)
    if previous is None:
        return Changes(added=tuple(i.uri for i in snapshot.infos)), nothing, nothing
    table = previous.table("objects")
    before = {
        uri: (position, etag.strip('"'), size)
        for position, (uri, etag, size) in enumerate(
            zip(*(table[c].to_pylist() for c in ("uri", "etag", "size")), strict=True)
        )
    }
    added, changed = [], []
    here: list[int] = []
    there: list[int] = []
    for index, info in enumerate(snapshot.infos):
        known = before.pop(info.uri, None)
        if known is None:
            added.append(info.uri)
        elif known[1:] != (info.etag.strip('"'), info.size):
            changed.append(info.uri)
        else:
            here.append(index)
            there.append(known[0])
    changes = Changes(tuple(added), tuple(before), tuple(changed), len(here))
    return changes, np.array(here, np.int64), np.array(there, np.int64)


def reuse(snapshot: Snapshot, previous: Plan, here: Ints, there: Ints, cut_from: int | None) -> int:
    """Reuse the footers of unchanged objects from the previous plan; return their number.

    Args:
        snapshot: The objects.
        previous: The previous plan.
        here: Positions of the unchanged objects.
        there: Positions of the same objects in the previous plan.
        cut_from: Decoded bytes from which on a row group is cut, for which `indexed` must be known.
            Only plans that cut row groups know it, for row groups of at least their own `cut_from`.
            None if none is cut.
    """
    table = previous.table("objects")
    columns = {
        name: table[name].to_numpy().astype(np.int64)
        for name in ("row_groups", "row_group_start", "footer_size", "schema")
    }
    # Pruned objects stay unread, so that the plan equals one without reuse.
    wanted = snapshot.status[here] != Status.PRUNED
    known = wanted & (columns["row_groups"][there] >= 0)
    old = previous.table("row_groups")
    has_indexed = "indexed" in old.column_names
    if cut_from is not None:
        decoded = old["decoded"].to_numpy()
        unknown = decoded >= cut_from
        if has_indexed:
            unknown &= decoded < previous.input["cut_from"]
        known &= ~np.isin(there, old["object"].to_numpy()[unknown])
    here, there = here[known], there[known]
    counts = columns["row_groups"][there]
    groups = Groups(
        old["rows"].to_numpy(),
        old["stored"].to_numpy(),
        old["decoded"].to_numpy(),
        old["kept"].to_numpy(),
        old["indexed"].to_numpy() if has_indexed else np.zeros(len(old), bool),
    )
    snapshot.add(
        here,
        previous.table("schemas")["schema"].to_pylist(),
        {
            "counts": counts,
            "schema": columns["schema"][there],
            "footer_size": columns["footer_size"][there],
        },
        groups.take(gather(columns["row_group_start"][there], counts)),
    )
    return len(here)


def add_batch(snapshot: Snapshot, wanted: Ints, batch: FooterBatch) -> None:
    """Add footers that have been read; `wanted` maps their positions to objects."""

    def ints(values: Any) -> Ints:
        return np.frombuffer(values, np.int64).copy() if len(values) else np.zeros(0, np.int64)

    snapshot.add(
        wanted[ints(batch.positions)],
        batch.schemas,
        {
            "counts": ints(batch.counts),
            "schema": ints(batch.schema),
            "footer_size": ints(batch.footer_sizes),
        },
        Groups(
            ints(batch.rows),
            ints(batch.stored),
            ints(batch.decoded),
            np.frombuffer(bytes(batch.kept), np.uint8).astype(bool),
            np.frombuffer(bytes(batch.indexed), np.uint8).astype(bool),
        ),
    )


def objects_table(snapshot: Snapshot, starts: Ints, schema: Ints) -> pa.Table:
    """Return the plan's table of objects."""
    infos = snapshot.infos
    columns = {
        "uri": pa.array([i.uri for i in infos], pa.string()),
        "etag": pa.array([i.etag for i in infos], pa.string()),
        "size": pa.array([i.size for i in infos], pa.int64()),
        "status": pa.array(snapshot.status, pa.uint8()),
        "footer_size": pa.array(snapshot.footer_size, pa.int64()),
        "schema": pa.array(schema, pa.int32()),
        "row_group_start": pa.array(starts, pa.int64()),
        "row_groups": pa.array(snapshot.counts, pa.int32()),
    }
    hive = snapshot.hive
    for name, kind, values in zip(hive.names, hive.types, hive.columns, strict=True):
        columns[PARTITION_PREFIX + name] = pa.array(values, kind)
    return pa.table(columns)
