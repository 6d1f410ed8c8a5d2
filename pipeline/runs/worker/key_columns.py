"""Drop a result's Hive columns, whose values are in the keys of the output instead of its files.

Readers take such a column from the key, so other values would be lost: a column is dropped only if
it has the key's values.
"""

from __future__ import annotations

from typing import NoReturn

import polars as pl

from partitioning import Chunk
from partitioning.model import PartitionValue
from pipeline.errors import PartitionColumnError
from pipeline.runs.ledger.keys import folder_of

_EXACT = (pl.Boolean, pl.Date, pl.String)
"""Types, besides integers, whose bounds are those of the rows: none is rounded or left out."""
_SHOWN = 60
"""Maximum number of characters of a value that an error shows."""


def without_key_columns(frame: pl.DataFrame, chunk: Chunk, schema: pl.Schema) -> pl.DataFrame:
    """Drop the columns of a chunk's result that are in its output's key.

    Args:
        frame: The result.
        chunk: Chunk of the result.
        schema: Schema of the dataset, as Polars reads it.

    Raises:
        PartitionColumnError: a column has other values or another type than the key, or a result
            with rows would have no column left.
    """
    values = {name: value for name, value in chunk.partition if name in frame.columns}
    if not values:
        return frame
    if frame.height:
        for name, value in values.items():
            column = frame.get_column(name)
            if column.dtype != schema[name] or not _is_all(column, value):
                _refuse_other(column, value, schema[name], chunk)
        if len(values) == frame.width:
            raise PartitionColumnError(
                f"{_named(chunk)}: the result has {frame.height:,} rows but only the columns "
                f"{', '.join(values)}, which are in the keys of the output: a file without columns "
                f"has no rows. Return another column too, or this one under another name: "
                f"{_renaming(next(iter(values)))}"
            )
    # One by one: `drop` would take a name such as `*` or `^k$` as a pattern.
    rest = frame.clone()
    for name in values:
        rest.drop_in_place(name)
    return rest


def _is_all(column: pl.Series, value: PartitionValue) -> bool:
    """Whether a column has this value in all rows."""
    if column.dtype.is_integer() or column.dtype in _EXACT:
        # Ten times as fast as a comparison of each row, where there are few rows.
        if value is None:
            return column.null_count() == len(column)
        return not column.null_count() and column.min() == value and column.max() == value
    return bool(column.eq_missing(pl.Series([value], dtype=column.dtype)).all())


def _refuse_other(
    column: pl.Series, value: PartitionValue, kind: pl.DataType, chunk: Chunk
) -> NoReturn:
    name = column.name
    folder = folder_of(name, dict(chunk.raw_partition)[name])
    subject = f"{_named(chunk)}: the transform's column {name!r}"
    rest = (
        f"but readers take it from the key of the output, {folder}/. Give the transform's own "
        f"values another name: {_renaming(name)}"
    )
    if column.dtype != kind:
        raise PartitionColumnError(f"{subject} is of type {column.dtype}, not {kind}, {rest}")
    own = pl.nth(0).ne_missing(pl.lit(value, dtype=kind))
    other = column.to_frame().filter(own).to_series()[0]
    shown = repr(other)[:_SHOWN] if other is not None else "null"
    raise PartitionColumnError(
        f"{subject} has other values than the input's partition, such as {shown}, {rest}"
    )


def _named(chunk: Chunk) -> str:
    return f"chunk {chunk.index}"


def _renaming(name: str) -> str:
    return f".rename({{{name!r}: {name + '_new'!r}}})"
