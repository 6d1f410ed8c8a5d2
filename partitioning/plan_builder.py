"""Build a plan from a snapshot: pack row groups into chunks, and compute their ids."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from partitioning.dtypes import pack_schema, polars_schema_of
from partitioning.model import (
    Plan,
    Status,
    chunk_id,
    fragment_identity,
    plan_id,
    schema_identity,
)
from partitioning.packing import PackRules, PartLimit, pack, parts_of
from partitioning.request import PlanRequest
from partitioning.snapshot import Groups, Ints, Snapshot, objects_table

_SHARED_COLUMNS: Final = ("start", "stop", "fragments")
"""Columns that the parts of a chunk share."""


def freeze(
    request: PlanRequest,
    snapshot: Snapshot,
    ordered: tuple[Ints, Ints, Groups],
    *,
    read_key: dict[str, Any],
    schema: pa.Schema,
    dtypes: pl.Schema,
    bad: list[tuple[int, int, str]],
) -> Plan:
    """Pack the planned row groups into chunks, and build the plan.

    Args:
        request: The request.
        snapshot: The objects.
        ordered: Each object's first row group, each row group's object, and all row groups.
        read_key: Key of the figures, for the next planning.
        schema: Schema of the dataset in Arrow types.
        dtypes: Schema of the dataset in Polars types.
        bad: (object, offset, reason) of each bad object.
    """
    starts, owner, groups = ordered
    member = np.flatnonzero(groups.kept & (snapshot.status[owner] == Status.PLANNED))
    rules = rules_of(request)
    owners = owner[member]
    ranges = np.array(
        list(
            pack(
                rules,
                owners.tolist(),
                snapshot.partition[owners].tolist(),
                groups.rows[member].tolist(),
                groups.decoded[member].tolist(),
            )
        ),
        np.int64,
    ).reshape(-1, 2)
    chunks = _chunks_table(snapshot, ordered, member, ranges)
    chunks = _cut(rules, snapshot, ordered, chunks)
    row_groups = {
        "object": pa.array(owner, pa.int32()),
        "rows": pa.array(groups.rows, pa.int64()),
        "stored": pa.array(groups.stored, pa.int64()),
        "decoded": pa.array(groups.decoded, pa.int64()),
        "kept": pa.array(groups.kept),
    }
    described = {**request.describe(), "read_key": read_key}
    if rules.cut_from is not None and "first_row" in chunks.column_names:
        # For smaller row groups it does not matter, and is not always known.
        row_groups["indexed"] = pa.array(groups.indexed & (groups.decoded >= rules.cut_from))
        described["cut_from"] = rules.cut_from
    schemas, kinds = snapshot.canonical_schemas()
    skipped = [(snapshot.infos[i], offset, reason) for i, offset, reason in bad]
    tables = {
        "chunks": chunks,
        "row_groups": pa.table(row_groups),
        "objects": objects_table(snapshot, starts, kinds),
        "schemas": pa.table({"schema": pa.array(schemas, pa.binary())}),
        "skipped": pa.table(
            {
                "uri": pa.array([info.uri for info, _, _ in skipped], pa.string()),
                "etag": pa.array([info.etag for info, _, _ in skipped], pa.string()),
                "size": pa.array([info.size for info, _, _ in skipped], pa.int64()),
                "offset": pa.array([offset for _, offset, _ in skipped], pa.int64()),
                "reason": pa.array([reason for _, _, reason in skipped], pa.string()),
            }
        ),
    }
    meta: dict[str, Any] = {"schema": schema.serialize().to_pybytes().hex()}
    if polars_schema_of(schema) != dtypes:  # Arrow types do not determine all Polars types.
        meta["dtypes"] = pack_schema(dtypes).hex()
    return Plan.build(
        tables,
        {
            **meta,
            "id": plan_id(schema_identity(meta), chunks["id"].to_pylist()),
            "raw_folders": True,
            "input": described,
            "chunks": len(chunks),
            "objects": len(np.unique(owners)),
            **{
                name: int(chunks[name].to_numpy().sum())
                for name in ("fragments", "rows", "stored_bytes", "decoded_bytes")
            },
        },
    )


def rules_of(request: PlanRequest) -> PackRules:
    """Return the packing rules of a request."""
    return PackRules(
        target=request.target,
        open_cost=request.open_cost,
        max_rows=request.max_rows,
        per_file=request.per_file,
        per_partition=request.per_partition,
        cross_partitions=request.cross_partitions,
        min_part=request.min_part,
    )


def _chunks_table(
    snapshot: Snapshot, ordered: tuple[Ints, Ints, Groups], member: Ints, ranges: Ints
) -> pa.Table:
    """Build the table of chunks; `ranges` are positions in the member row groups."""
    starts, owner, groups = ordered
    count = len(member)
    first = np.zeros(count, bool)
    # A fragment begins with a chunk, or where row groups are not consecutive in an object.
    first[ranges[:, 0]] = True
    first[1:] |= (np.diff(member) != 1) | (owner[member][1:] != owner[member][:-1])
    begins = np.flatnonzero(first)
    ends = np.append(begins[1:], count)[: len(begins)]
    objects = owner[member[begins]]
    low = member[begins] - starts[objects]
    high = member[ends - 1] + 1 - starts[objects]
    infos = snapshot.infos
    identities = [
        fragment_identity(infos[o].uri, infos[o].etag, infos[o].size, a, b)
        for o, a, b in zip(objects.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    bounds = np.searchsorted(begins, ranges)
    ids = [chunk_id(identities[a:b]) for a, b in bounds.tolist()]

    def sums(values: Ints) -> Ints:
        total = np.zeros(count + 1, np.int64)
        np.cumsum(values[member], out=total[1:])
        return total[ranges[:, 1]] - total[ranges[:, 0]]

    return pa.table(
        {
            "id": pa.array(ids, pa.binary(16)),
            "start": pa.array(member[ranges[:, 0]], pa.int64()),
            "stop": pa.array(member[ranges[:, 1] - 1] + 1, pa.int64()),
            "fragments": pa.array(bounds[:, 1] - bounds[:, 0], pa.int64()),
            "rows": pa.array(sums(groups.rows), pa.int64()),
            "stored_bytes": pa.array(sums(groups.stored), pa.int64()),
            "decoded_bytes": pa.array(sums(groups.decoded), pa.int64()),
        }
    )


def _cut(
    rules: PackRules, snapshot: Snapshot, ordered: tuple[Ints, Ints, Groups], chunks: pa.Table
) -> pa.Table:
    """Cut chunks that are a single row group far above the target."""
    starts, owner, groups = ordered
    if rules.cut_from is None:
        return chunks
    tables: list[pa.Table] = []
    limits: dict[int, PartLimit] = {}
    done = 0
    for at in np.flatnonzero(chunks["decoded_bytes"].to_numpy() >= rules.cut_from).tolist():
        group = chunks["start"][at].as_py()
        rows, is_indexed = int(groups.rows[group]), bool(groups.indexed[group])
        ordinal = int(owner[group])
        info, number = snapshot.infos[ordinal], group - int(starts[ordinal])
        limit = limits.setdefault(ordinal, PartLimit(rules, info.size))
        max_parts = limit.max_parts(int(groups.stored[group]), is_indexed=is_indexed)
        count = parts_of(rules, rows, int(groups.decoded[group]), max_parts)
        limit.take(count)
        if count > 1:
            bounds = [rows * part // count for part in range(count + 1)]
            pinned = (info.uri, info.etag, info.size, number, number + 1)
            ids = [chunk_id([fragment_identity(*pinned, part=p)]) for p in pairwise(bounds)]
            parts = _parts_table(chunks.slice(at, 1), ids, bounds, is_indexed=is_indexed)
            tables += [chunks.slice(done, at - done), parts]
            done = at + 1
    if not tables:
        return chunks
    return pa.concat_tables([*tables, chunks.slice(done)], promote_options="default")


def _parts_table(
    whole: pa.Table, ids: list[bytes], bounds: list[int], *, is_indexed: bool
) -> pa.Table:
    """Return the parts of a chunk; without a page index, each part reads all its bytes."""
    count = len(ids)

    def shares(name: str) -> pa.Array:
        total = whole[name][0].as_py()
        if not is_indexed:
            return pa.array([total] * count, pa.int64())
        ends = [total * bound // bounds[-1] for bound in bounds]
        return pa.array(np.diff(ends), pa.int64())

    shared = {
        name: pa.array(whole[name].to_pylist() * count, pa.int64()) for name in _SHARED_COLUMNS
    }
    return pa.table(
        {
            "id": pa.array(ids, pa.binary(16)),
            **shared,
            "rows": pa.array(np.diff(bounds), pa.int64()),
            "stored_bytes": shares("stored_bytes"),
            "decoded_bytes": shares("decoded_bytes"),
            "first_row": pa.array(bounds[:-1], pa.int64()),
        }
    )
