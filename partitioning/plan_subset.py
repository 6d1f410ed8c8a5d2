"""Select some chunks from a plan's tables, in a given order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]


def take_tables(
    tables: Mapping[str, pa.Table], indices: Ints, planned: int
) -> tuple[dict[str, pa.Table], int]:
    """Return the tables of a plan with some chunks, and the number of objects that they read.

    Objects that no chunk reads are left out. The others keep their order and all their row groups,
    since a fragment's first row is counted from the first of its object. Only the chunks are in the
    new order, so ranges of row groups need not ascend.

    Args:
        tables: Tables chunks, row_groups, objects, schemas and skipped.
        indices: Positions of the chunks, each once.
        planned: Status of an object that is read.
    """
    groups, objects = tables["row_groups"], tables["objects"]
    chunks = tables["chunks"].take(pa.array(indices))
    start, stop = _ints(chunks, "start"), _ints(chunks, "stop")
    owner, first = _ints(groups, "object"), _ints(objects, "row_group_start")
    counts = np.maximum(_ints(objects, "row_groups"), 0)
    used = _covered(start, stop, len(owner)) & groups["kept"].to_numpy()
    used &= (objects["status"].to_numpy() == planned)[owner]
    read = np.unique(owner[used])
    ranks = np.full(objects.num_rows, -1, np.int64)
    ranks[read] = np.arange(len(read))
    sizes = counts[read]
    shifts = np.zeros(objects.num_rows, np.int64)
    shifts[read] = np.cumsum(sizes) - sizes - first[read]
    kept = np.flatnonzero(ranks[owner] >= 0)
    columns = {
        "chunks": _replace(
            chunks, start=start + shifts[owner[start]], stop=stop + shifts[owner[stop - 1]]
        ),
        "row_groups": _replace(
            groups.take(pa.array(kept)), object=ranks[owner[kept]].astype(np.int32)
        ),
        "objects": _replace(
            objects.take(pa.array(read)), row_group_start=first[read] + shifts[read]
        ),
    }
    return {name: columns.get(name, table) for name, table in tables.items()}, len(read)


def _covered(start: Ints, stop: Ints, length: int) -> npt.NDArray[np.bool_]:
    """Return which positions are in any of these ranges."""
    edges = np.zeros(length + 1, np.int64)
    np.add.at(edges, start, 1)
    np.subtract.at(edges, stop, 1)
    return np.cumsum(edges[:-1]) > 0


def _ints(table: pa.Table, name: str) -> Ints:
    return table[name].to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _replace(table: pa.Table, **columns: Any) -> pa.Table:
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values))
    return table
