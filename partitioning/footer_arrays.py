"""The numbers of many usual footers, decoded and checked together."""

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
    MOST_VALUES,
    ColumnChunk,
    FileSchema,
    Footer,
    Leaf,
    RequestedState,
    RowGroup,
    parse_footer,
    parse_statistics,
)
from partitioning.thrift import Values

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ColumnArrays:
    """The column chunks of footers of one schema: a line per row group, a column per leaf.

    The same as `ColumnChunk` has.
    """

    rows: Ints
    """Rows of each row group."""
    values: Ints
    uncompressed: Ints
    compressed: Ints
    data_start: Ints
    start: Ints
    has_dictionary: Bools

    def claims(
        self, footer: UsualFooter, first: int, group: int, leaf: Leaf
    ) -> tuple[int, Values | None]:
        """Return the values and the statistics of a column chunk, which were asked for.

        Args:
            footer: The footer.
            first: Its first row group here.
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
        schema: Theirs.
        footers: The footers; at least one.
        ends: Offset in its object where each begins, and what it tells of must end.

    Returns:
        The column chunks, and for each footer whether it passed the checks. What did not is to be
        given to `parse_footer`, which says why.
    """
    leaves = len(schema.leaves)
    numbers = read_varints(b"".join(one.numbers for one in footers)).reshape(-1, leaves, 4, 2)
    values, uncompressed, compressed, data_start = (numbers[:, :, at, 1] for at in range(4))
    has_offset = _flags(b"".join(one.has_dictionary for one in footers)).reshape(-1, leaves)
    offsets = np.zeros(has_offset.shape, np.int64)
    offsets[has_offset] = read_varints(b"".join(one.dictionaries for one in footers))[1::2]
    rows = read_varints(b"".join(one.group_rows for one in footers))[3::4]
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
    counts = np.array([one.count for one in footers])
    types = np.frombuffer(b"".join(one.types for one in footers), np.uint8).reshape(-1, leaves)
    is_wrong = _are_wrong(schema, columns, np.repeat(np.array(ends), counts))
    is_wrong |= types != np.array([leaf.physical for leaf in schema.leaves])
    wrong = is_wrong.any(axis=1) | (rows < 0)
    firsts = np.cumsum(counts) - counts
    claimed = read_varints(b"".join(one.rows for one in footers))
    are_good = ~np.logical_or.reduceat(wrong, firsts) & (np.add.reduceat(rows, firsts) == claimed)
    return columns, are_good


_MATCHER: Final = FooterMatcher(statistics=True)
_LARGE: Final = 4 << 10
"""Bytes of a footer from which arrays pay though there is no other to decode with it."""


def read_footer(data: bytes, size: int, wish: RequestedState) -> Footer:
    """Return what `parse_footer` does, sooner if the footer is a usual one and not small.

    Raises:
        BadFooter: as `parse_footer`.
    """
    usual = _MATCHER.match(data) if len(data) >= _LARGE else None
    if usual is not None:
        columns, are_good = read_columns(usual.schema, [usual], [size - END - len(data)])
        if are_good.all():
            groups = list(_row_groups(usual, columns, wish, size - END - len(data)))
            return Footer(
                usual.schema, int(columns.rows.sum()), groups, usual.count, usual.created_by,
                usual.arrow_schema,
            )  # fmt: skip
    return parse_footer(data, size, wish)


def _row_groups(
    usual: UsualFooter, columns: ColumnArrays, wish: RequestedState, end: int
) -> Iterator[RowGroup]:
    """Yield the row groups that are wanted."""
    leaves = [(leaf, wish.has_statistics(leaf)) for leaf in usual.schema.leaves]
    kept = [at for at, (leaf, _) in enumerate(leaves) if wish.has_column(leaf)]
    for group in range(usual.count) if wish.groups is None else wish.groups:
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
                    encodings if wish.encodings else [],
                    parse_statistics(raw) if raw else None,
                    *offset_index(usual.indexes[place], end),
                )
            )
        yield RowGroup(int(columns.rows[group]), found)


def _are_wrong(schema: FileSchema, columns: ColumnArrays, ends: Ints) -> Bools:
    """Tell which column chunks break a rule."""
    values, uncompressed = columns.values, columns.uncompressed
    lengths = np.array([leaf.length for leaf in schema.leaves])
    is_flat = np.array([not leaf.is_repeated for leaf in schema.leaves])
    stop = np.maximum(columns.start + columns.compressed, columns.data_start)
    is_outside = (columns.start < 4) | (stop > ends[:, np.newaxis])
    rows = columns.rows[:, np.newaxis]
    return (  # type: ignore[no-any-return]
        (values < rows) | (is_flat & (values > rows))
        | (np.minimum(np.minimum(values, uncompressed), columns.compressed) < 0)
        | (np.maximum(np.maximum(values, uncompressed), columns.compressed) > MOST_VALUES)
        | (lengths > np.maximum(uncompressed, LONG_VALUE))
        | ((values > 0) & is_outside)
    )  # fmt: skip


def read_varints(data: bytes) -> Ints:
    """Return signed (zigzag) integers of at most 62 bits that lie one after the other."""
    raw = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(raw < 128)  # So far where each ends.
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
