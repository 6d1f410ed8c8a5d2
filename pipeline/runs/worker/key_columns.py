"""Hive columns of a result: in the keys of the output, and so not in its files.

Readers take such a column from the key. What a transform makes of it would be lost, so a column is
left out of a file only where it says the same as the key.
"""

from __future__ import annotations

import polars as pl

from partitioning import Chunk
from partitioning.model import PartitionValue
from pipeline.errors import PartitionColumnError
from pipeline.runs.ledger.keys import folder_of

_SHOWN = 60
"""Characters of a value that an error shows."""


def without_key_columns(frame: pl.DataFrame, chunk: Chunk, schema: pl.Schema) -> pl.DataFrame:
    """Return a chunk's result without the columns that its output's key has.

    Args:
        frame: The result.
        chunk: Whose result it is.
        schema: Of the dataset, as Polars reads it.

    Raises:
        PartitionColumnError: a column has other values or another type than the key says, or
            nothing would be left of a result that has rows.
    """
    values = {name: value for name, value in chunk.partition if name in frame.columns}
    # To drop nothing would be a query of its own.
    if not values:
        return frame
    if frame.height:
        raws = dict(chunk.raw_partition)
        for name, value in values.items():
            _refuse_other(
                frame.get_column(name), value, schema[name], folder_of(name, raws[name]), chunk
            )
        if len(values) == frame.width:
            raise PartitionColumnError(
                f"{_named(chunk)}: the result has {frame.height:,} rows and no column but "
                f"{', '.join(values)}, which the keys of the output hold: a file without columns "
                f"has no rows. Return another column too, or this one by another name: "
                f"{_renaming(next(iter(values)))}"
            )
    # By position: a name such as `*` or `^k$` means several columns to `drop`.
    kept = [at for at, name in enumerate(frame.columns) if name not in values]
    return frame.select(pl.nth(kept)) if kept else pl.DataFrame()


def _refuse_other(
    column: pl.Series, value: PartitionValue, kind: pl.DataType, folder: str, chunk: Chunk
) -> None:
    name = column.name
    said = f"{_named(chunk)}: the transform's column {name!r}"
    rest = (
        f"and readers take it from the key of the output, {folder}/. Give the transform's own "
        f"values another name: {_renaming(name)}"
    )
    if column.dtype != kind:
        raise PartitionColumnError(f"{said} is of type {column.dtype}, not {kind}, {rest}")
    own = pl.nth(0).ne_missing(pl.lit(value, dtype=kind))
    differing = column.to_frame().filter(own).to_series()
    if len(differing):
        shown = repr(differing[0])[:_SHOWN] if differing[0] is not None else "null"
        raise PartitionColumnError(
            f"{said} has other values than the input's partition, such as {shown}, {rest}"
        )


def _named(chunk: Chunk) -> str:
    return f"chunk {chunk.index}"


def _renaming(name: str) -> str:
    return f".rename({{{name!r}: {name + '_new'!r}}})"
