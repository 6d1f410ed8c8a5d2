"""Decode columns with pyarrow that Polars refuses, or would read incorrectly.

The result has the types of `partitioning.dtypes`: pyarrow's types, without extensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partitioning.dtypes import Int96Unit, is_odd_encoding, plain_type
from partitioning.pages import ReadBytes, check_values, denies_nulls
from partitioning.parquet_footer import INT96, ColumnChunk, FileSchema
from partitioning.thrift import ThriftError

_PER_SECOND = {"us": 10**6, "ns": 10**9}


class OutOfRangeError(ValueError):
    """A time is outside of the range of the wanted unit."""


def is_odd(read: ReadBytes, chunk: ColumnChunk, *, is_known: bool) -> bool:
    """Check a column chunk; return whether only pyarrow reads it correctly.

    Args:
        read: Reads the file.
        chunk: The column chunk.
        is_known: Whether pyarrow reads its column anyway.

    Raises:
        ThriftError: its pages are damaged; the message names the column.
    """
    try:
        check_values(read, chunk)
    except ThriftError as error:
        raise ThriftError(f"column {chunk.leaf.path}, byte {chunk.start:,}: {error}") from None
    if is_known or is_odd_encoding(chunk.leaf, chunk.encodings):
        return True
    try:
        return denies_nulls(read, chunk)
    except ThriftError:
        return False  # If the data are damaged, Polars raises an error.


def decode(
    file: str | pa.NativeFile,
    schema: FileSchema,
    groups: Sequence[int],
    columns: Sequence[str],
    int96: Int96Unit,
) -> pl.DataFrame:
    """Decode columns of some row groups.

    Args:
        file: Path of the file, or what reads it.
        schema: Schema of its footer.
        groups: Numbers of the row groups.
        columns: Names of top-level columns.
        int96: Unit of INT96 times.

    Raises:
        OutOfRangeError: an INT96 time does not fit the unit.
        pa.ArrowException, OSError, ValueError: the data are damaged.
    """
    times = {leaf.column for leaf in schema.leaves if leaf.physical == INT96}
    table = _read(file, groups, columns, int96)
    for name in times.intersection(columns):
        seconds = _read(file, groups, [name], "s")
        _check_times(name, table[name], seconds[name], int96)
    plain = [_to_plain_type(table[name]) for name in columns]
    return pl.DataFrame(pl.from_arrow(pa.table(plain, names=list(columns))))


def _read(
    file: str | pa.NativeFile, groups: Sequence[int], columns: Sequence[str], unit: str
) -> pa.Table:
    with pq.ParquetFile(file, coerce_int96_timestamp_unit=unit) as opened:
        table = opened.read_row_groups(groups, columns=list(columns), use_threads=False)
    return table.select(list(columns))


def _to_plain_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = plain_type(column.type)
    if kind is None:
        raise ValueError(f"columns of type {column.type} are not supported")
    if kind == column.type:
        return column
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array(
            [part.storage for part in column.chunks], column.type.storage_type
        )
    return column.cast(kind)


def _check_times(
    name: str, times: pa.ChunkedArray, seconds: pa.ChunkedArray, unit: Int96Unit
) -> None:
    """Raise OutOfRangeError if a time has overflowed, i.e. differs from its whole seconds."""
    for part, whole in zip(_times(times), _times(seconds), strict=True):
        actual = pc.cast(part, pa.int64())
        expected = pc.cast(whole, pa.int64())
        # Both are rounded down.
        floors = pc.floor(pc.divide(pc.cast(actual, pa.float64(), safe=False), _PER_SECOND[unit]))
        off = pc.greater(pc.abs(pc.subtract(pc.cast(floors, pa.int64()), expected)), 1)
        wrong = expected.filter(off)
        if len(wrong):
            raise OutOfRangeError(
                f"column {name}: an INT96 time of {wrong[0].as_py():,} seconds from 1970 does not "
                f"fit Datetime({unit})"
            )


def _times(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield the arrays of times within a column, at any depth."""
    for part in column.chunks:
        yield from _times_of(part)


def _times_of(values: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_timestamp(values.type):
        yield values
    elif pa.types.is_struct(values.type) or pa.types.is_nested(values.type):
        inner = values.flatten()
        for array in inner if isinstance(inner, list) else [inner]:
            yield from _times_of(array)
