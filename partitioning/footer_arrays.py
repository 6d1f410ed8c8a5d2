"""Decode and check the numbers of many usual footers together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from partitioning.footer_pattern import (
    FooterMatcher,
    UsualFooter,
    codec_and_encodings,
    offset_index,
)
from partitioning.parquet_footer import (
    END,
    LONG_VALUE,
    MAX_VALUES,
    ColumnChunk,
    FileSchema,
    Footer,
    FooterSelection,
    Leaf,
    RowGroup,
    parse_footer,
    parse_statistics,
)
from partitioning.thrift import Values

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ColumnArrays:
    """Column chunks of footers of one schema: one row per row group, one column per leaf.

    The attributes are those of `ColumnChunk`.
    """

    rows: Ints
    """Number of rows of each row group."""
    values: Ints
    uncompressed: Ints
    compressed: Ints
    data_start: Ints
    start: Ints
    has_dictionary: Bools

    def claims(
        self, footer: UsualFooter, first: int, group: int, leaf: Leaf
    ) -> tuple[int, Values | None]:
        """Return the number of values and the statistics of a column chunk.

        Args:
            footer: The footer.
            first: Position of its first row group.
            group: The row group, counted from there.
            leaf: The column.
        """
        raw = footer.statistics[group * self.values.shape[1] + leaf.index]
        values = int(self.values[first + group, leaf.index])
        return values, parse_statistics(raw) if raw else None


def read_columns(
    schema: FileSchema, footers: Sequence[UsualFooter], ends: Sequence[int]
) -> tuple[ColumnArrays, Bools]:
    """Decode the column chunks of footers of one schema, and check them as `parse_footer` does.

    Args:
        schema: Schema of the footers.
        footers: The footers; at least one.
        ends: Offset of each footer in its object, before which all its column chunks must end.

    Returns:
        The column chunks, and for each footer whether it passed the checks. `parse_footer` gives
        the reason for a failure.
    """
    leaves = len(schema.leaves)
    numbers = read_varints(b"".join(footer.numbers for footer in footers)).reshape(-1, leaves, 4, 2)
    values, uncompressed, compressed, data_start = (numbers[:, :, at, 1] for at in range(4))
    has_offset = _flags(b"".join(footer.has_dictionary for footer in footers)).reshape(-1, leaves)
    offsets = np.zeros(has_offset.shape, np.int64)
    offsets[has_offset] = read_varints(b"".join(footer.dictionaries for footer in footers))[1::2]
    rows = read_varints(b"".join(footer.group_rows for footer in footers))[3::4]
    has_dictionary = offsets > 0  # Some writers store a 0 for none.
    columns = ColumnArrays(
        rows=rows,
        values=values,
        uncompressed=uncompressed,
        compressed=compressed,
        data_start=data_start,
        start=np.where(has_dictionary, np.minimum(data_start, offsets), data_start),
        has_dictionary=has_dictionary,
    )
    counts = np.array([footer.count for footer in footers])
    types = np.frombuffer(b"".join(footer.types for footer in footers), np.uint8).reshape(
        -1, leaves
    )
    is_wrong = _are_wrong(schema, columns, np.repeat(np.array(ends), counts))
    is_wrong |= types != np.array([leaf.physical for leaf in schema.leaves])
    wrong = is_wrong.any(axis=1) | (rows < 0)
    firsts = np.cumsum(counts) - counts
    claimed = read_varints(b"".join(footer.rows for footer in footers))
    are_good = ~np.logical_or.reduceat(wrong, firsts) & (np.add.reduceat(rows, firsts) == claimed)
    return columns, are_good


_MATCHER: Final = FooterMatcher(statistics=True)
_LARGE: Final = 4 << 10
"""Size of a footer in bytes above which decoding with arrays is faster even for a single one."""


def read_footer(data: bytes, size: int, selection: FooterSelection) -> Footer:
    """Parse a footer as `parse_footer` does, but faster if it is usual and not small.

    Raises:
        BadFooter: As in `parse_footer`.
    """
    usual = _MATCHER.match(data) if len(data) >= _LARGE else None
    if usual is not None:
        columns, are_good = read_columns(usual.schema, [usual], [size - END - len(data)])
        if are_good.all():
            groups = list(_row_groups(usual, columns, selection, size - END - len(data)))
            return Footer(
                usual.schema, int(columns.rows.sum()), groups, usual.count, usual.created_by,
                usual.arrow_schema,
            )  # fmt: skip
    return parse_footer(data, size, selection)


def _row_groups(
    usual: UsualFooter, columns: ColumnArrays, selection: FooterSelection, end: int
) -> Iterator[RowGroup]:
    """Yield the selected row groups."""
    leaves = [(leaf, selection.has_statistics(leaf)) for leaf in usual.schema.leaves]
    kept = [at for at, (leaf, _) in enumerate(leaves) if selection.has_column(leaf)]
    for group in range(usual.count) if selection.groups is None else selection.groups:
        if group >= usual.count:
            return
        numbers = [
            array[group, kept].tolist()
            for array in (
                columns.start, columns.data_start, columns.compressed, columns.uncompressed,
                columns.values, columns.has_dictionary,
            )
        ]  # fmt: skip
        found = []
        for at, *own in zip(kept, *numbers, strict=True):
            leaf, has_statistics = leaves[at]
            place = group * len(leaves) + at
            codec, encodings = codec_and_encodings(usual.kinds[place])
            raw = usual.statistics[place] if has_statistics else b""
            start, data_start, compressed, uncompressed, values, has_dictionary = own
            found.append(
                ColumnChunk(
                    leaf,
                    codec,
                    start,
                    data_start,
                    compressed,
                    uncompressed,
                    values,
                    has_dictionary,
                    encodings if selection.encodings else [],
                    parse_statistics(raw) if raw else None,
                    *offset_index(usual.indexes[place], end),
                )
            )
        yield RowGroup(int(columns.rows[group]), found)


def _are_wrong(schema: FileSchema, columns: ColumnArrays, ends: Ints) -> Bools:
    """Return which column chunks violate a rule."""
    values, uncompressed = columns.values, columns.uncompressed
    lengths = np.array([leaf.length for leaf in schema.leaves])
    is_flat = np.array([not leaf.is_repeated for leaf in schema.leaves])
    stop = np.maximum(columns.start + columns.compressed, columns.data_start)
    is_outside = (columns.start < 4) | (stop > ends[:, np.newaxis])
    rows = columns.rows[:, np.newaxis]
    return (  # type: ignore[no-any-return]
        (values < rows) | (is_flat & (values > rows))
        | (np.minimum(np.minimum(values, uncompressed), columns.compressed) < 0)
        | (np.maximum(np.maximum(values, uncompressed), columns.compressed) > MAX_VALUES)
        | (lengths > np.maximum(uncompressed, LONG_VALUE))
        | ((values > 0) & is_outside)
    )  # fmt: skip


def read_varints(data: bytes) -> Ints:
    """Decode consecutive signed (zigzag) integers of at most 62 bits."""
    raw = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(raw < 128)  # At first, the ends of the integers.
    more = np.diff(starts, prepend=-1).astype(np.uint8) - 1
    starts -= more
    values = (raw[starts] & 127).astype(np.int64)
    for place in range(1, int(more.max(initial=0)) + 1):
        longer = np.flatnonzero(more >= place)
        values[longer] |= (raw[starts[longer] + place] & 127).astype(np.int64) << 7 * place
    signs = -(values & 1)
    values >>= 1
    values ^= signs
    return values


def _flags(data: bytes) -> Bools:
    return np.frombuffer(data, np.uint8).astype(bool)
