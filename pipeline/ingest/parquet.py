"""Read a Parquet file in memory: with the checks that objects of a run's input get."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import polars as pl
import pyarrow as pa

from partitioning.dtypes import FileTypes, UnreadableSchemaError, file_types, plain_arrow_schema
from partitioning.footer_arrays import read_footer
from partitioning.footers import footer_length
from partitioning.parquet_footer import (
    END,
    MAGIC,
    BadFooter,
    ColumnChunk,
    Footer,
    FooterSelection,
    write_footer,
)
from partitioning.sizes import column_bytes, leaf_sizes
from partitioning.thrift import ThriftError
from pipeline.ingest.contents import ContentError, without_categories
from pipeline.runs.worker.chunk_source import by_name
from pipeline.runs.worker.decoding import decode, is_odd

_INT96: Final = "ns"
"""Unit of INT96 times, which may have nanoseconds."""


def parquet_frame(data: bytes, most: int) -> pl.DataFrame:
    """Return a Parquet file as a frame; categories become texts.

    Args:
        data: The file.
        most: Maximum bytes of its rows in memory.

    Raises:
        ContentError: It is not readable, or larger.
    """
    try:
        footer = _footer(data)
        types = file_types(footer.schema, footer.arrow_schema, _INT96)
        if _decoded_bytes(footer, types.schema) > most:
            raise ContentError(
                f"its rows have more than {most:,} bytes in memory (files.max_bytes)"
            )
        odd = _odd_columns(data, footer, types)
        frame = _read(
            b"".join((MAGIC, memoryview(data)[len(MAGIC) :], write_footer(footer))), footer, odd
        )
    except BadFooter as bad:
        raise _no_parquet(bad.args[1]) from None
    except ContentError:
        raise
    except (
        UnreadableSchemaError,
        ThriftError,
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        raise _no_parquet(str(error)) from None
    if frame.height != footer.rows:
        raise _no_parquet(f"{frame.height:,} rows instead of {footer.rows:,}")
    return without_categories(frame)


def _footer(data: bytes) -> Footer:
    """Parse and check the footer, without row groups that have no rows."""
    size = len(data)
    length = footer_length(data[-END:], size, size)
    footer = read_footer(data[-END - length : -END], size, FooterSelection(encodings=True))
    stored = footer.arrow_schema
    return replace(
        footer,
        groups=[group for group in footer.groups if group.rows],
        arrow_schema=None if stored is None else plain_arrow_schema(stored),
    )


def _chunks(footer: Footer) -> Iterator[tuple[int, ColumnChunk]]:
    """Yield the column chunks, after the rows of their row groups."""
    return ((group.rows, chunk) for group in footer.groups for chunk in group.columns)


def _decoded_bytes(footer: Footer, types: pl.Schema) -> float:
    """Return the estimated bytes in memory, or those of the pages where they are more."""
    sizes = leaf_sizes(footer.schema, types)
    return sum(
        max(chunk.uncompressed, column_bytes(sizes[chunk.leaf.index], rows, chunk))
        for rows, chunk in _chunks(footer)
    )


def _odd_columns(data: bytes, footer: Footer, types: FileTypes) -> frozenset[str]:
    """Return the columns that Polars refuses, or would read incorrectly."""

    def read(start: int, length: int) -> bytes:
        return data[start : start + length]

    odd = set(types.by_pyarrow if types.is_read_by_polars else footer.schema.columns)
    for _, chunk in _chunks(footer):
        if is_odd(read, chunk, is_known=chunk.leaf.column in odd):
            odd.add(chunk.leaf.column)
    return frozenset(odd)


def _read(data: bytes, footer: Footer, odd: frozenset[str]) -> pl.DataFrame:
    """Read the columns, the odd ones by pyarrow."""
    names = footer.schema.columns
    by_polars = [name for name in names if name not in odd]
    by_pyarrow = [name for name in names if name in odd]
    frames = []
    if by_polars or not names:
        scan = pl.scan_parquet(io.BytesIO(data), glob=False, hive_partitioning=False)
        frames.append(scan.select(by_name(by_polars)).collect())
    if by_pyarrow:
        groups, file = range(len(footer.groups)), pa.BufferReader(data)
        frames.append(decode(file, footer.schema, groups, by_pyarrow, _INT96))
    return (
        frames[0]
        if len(frames) == 1
        else pl.concat(frames, how="horizontal").select(by_name(names))
    )


def _no_parquet(reason: str) -> ContentError:
    lines = reason.splitlines() or ["unreadable"]
    return ContentError(f"it is no parquet file: {lines[0]}")
