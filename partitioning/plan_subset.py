"""Some of a plan's chunks, in another order, cut out of its tables."""

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
    """Return the tables of a plan of some chunks, and the number of objects that these read.

    Objects that none of them reads are left out. Those that are read keep their order and all
    their row groups (a fragment's first row is counted from its object's first): only the chunks
    are ranked anew, so ranges of row groups need not ascend.

    Args:
        tables: chunks, row_groups, objects, schemas and skipped.
        indices: of the chunks, each once.
        planned: the status of an object that is read.
    """
    groups, objects = tables["row_groups"], tables["objects"]
    chunks = tables["chunks"].take(pa.array(indices))
    start, stop = _ints(chunks, "start"), _ints(chunks, "stop")
    owner, first = _ints(groups, "object"), _ints(objects, "row_group_start")
    counts = np.maximum(_ints(objects, "row_groups"), 0)
    used = _covered(start, stop, len(owner)) & groups["kept"].to_numpy()
    used &= (objects["status"].to_numpy() == planned)[owner]
    chosen = np.unique(owner[used])
    ranks = np.full(objects.num_rows, -1, np.int64)
    ranks[chosen] = np.arange(len(chosen))
    own = counts[chosen]
    moved = np.zeros(objects.num_rows, np.int64)
    moved[chosen] = np.cumsum(own) - own - first[chosen]
    kept = np.flatnonzero(ranks[owner] >= 0)
    columns = {
        "chunks": _replaced(
            chunks, start=start + moved[owner[start]], stop=stop + moved[owner[stop - 1]]
        ),
        "row_groups": _replaced(
            groups.take(pa.array(kept)), object=ranks[owner[kept]].astype(np.int32)
        ),
        "objects": _replaced(
            objects.take(pa.array(chosen)), row_group_start=first[chosen] + moved[chosen]
        ),
    }
    return {name: columns.get(name, table) for name, table in tables.items()}, len(chosen)


def _covered(start: Ints, stop: Ints, length: int) -> npt.NDArray[np.bool_]:
    """Which positions are in any of these ranges."""
    edges = np.zeros(length + 1, np.int64)
    np.add.at(edges, start, 1)
    np.subtract.at(edges, stop, 1)
    return np.cumsum(edges[:-1]) > 0


def _ints(table: pa.Table, name: str) -> Ints:
    return table[name].to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _replaced(table: pa.Table, **columns: Any) -> pa.Table:
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values))
    return table
