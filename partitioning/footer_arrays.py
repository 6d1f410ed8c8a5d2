"""Decode and check the numbers of many usual footers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
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
    MAGIC,
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
    """Parse a footer as `parse_footer` does, but faster if it is usual.

    Raises:
        BadFooter: As in `parse_footer`.
    """
    usual = _MATCHER.match(data)
    if usual is not None:
        end = size - END - len(data)
        read = _read_large if len(data) >= _LARGE else _read_small
        groups = read(usual, end, selection)
        if groups is not None:
            (rows,) = _read_numbers(usual.rows)
            return Footer(
                usual.schema, rows, groups, usual.count, usual.created_by, usual.arrow_schema
            )
    return parse_footer(data, size, selection)


def _read_large(usual: UsualFooter, end: int, selection: FooterSelection) -> list[RowGroup] | None:
    """Return the selected row groups; None if the footer does not pass the checks."""
    columns, are_good = read_columns(usual.schema, [usual], [end])
    if not are_good.all():
        return None
    kept = [at for at, leaf in enumerate(usual.schema.leaves) if selection.has_column(leaf)]
    found = []
    for group in _selected(usual, selection):
        numbers = [
            array[group, kept].tolist()
            for array in (
                columns.start, columns.data_start, columns.compressed, columns.uncompressed,
                columns.values, columns.has_dictionary,
            )
        ]  # fmt: skip
        build = _Builder(usual, selection, group, end)
        chunks = [build.chunk(at, own) for at, *own in zip(kept, *numbers, strict=True)]
        found.append(RowGroup(int(columns.rows[group]), chunks))
    return found


def _read_small(usual: UsualFooter, end: int, selection: FooterSelection) -> list[RowGroup] | None:
    """Do the same one by one: of few numbers, arrays take longer than the numbers."""
    leaves = usual.schema.leaves
    if usual.types != bytes(leaf.physical for leaf in leaves) * usual.count:
        return None
    numbers = iter(_read_numbers(usual.numbers)[1::2])
    dictionaries = iter(_read_numbers(usual.dictionaries)[1::2])
    has_offset = iter(usual.has_dictionary)
    all_rows = _read_numbers(usual.group_rows)[3::4]
    if sum(all_rows) != _read_numbers(usual.rows)[0]:
        return None
    selected = _selected(usual, selection)
    found = []
    for group, rows in enumerate(all_rows):
        build = _Builder(usual, selection, group, end)
        chunks = []
        for at, leaf in enumerate(leaves):
            values, uncompressed, compressed, data_start = islice(numbers, 4)
            offset = next(dictionaries) if next(has_offset) else 0
            start = min(data_start, offset) if offset > 0 else data_start
            if (
                not 0 <= rows <= values
                or (values > rows and not leaf.is_repeated)
                or min(uncompressed, compressed) < 0
                or max(values, uncompressed, compressed) > MAX_VALUES
                or leaf.length > max(uncompressed, LONG_VALUE)
                or (values and (start < len(MAGIC) or max(start + compressed, data_start) > end))
            ):
                return None
            if group in selected and selection.has_column(leaf):
                own = (start, data_start, compressed, uncompressed, values, offset > 0)
                chunks.append(build.chunk(at, own))
        if group in selected:
            found.append(RowGroup(rows, chunks))
    return found


def _selected(usual: UsualFooter, selection: FooterSelection) -> range:
    """Return the selected row groups that the footer has."""
    if selection.groups is None:
        return range(usual.count)
    return range(selection.groups.start, min(selection.groups.stop, usual.count))


@dataclass(frozen=True, slots=True)
class _Builder:
    """Builds the column chunks of a row group from their numbers, which are checked."""

    usual: UsualFooter
    selection: FooterSelection
    group: int
    end: int
    """Offset of the footer."""

    def chunk(self, at: int, numbers: Sequence[int]) -> ColumnChunk:
        """Return the column chunk of a leaf.

        Args:
            at: The leaf.
            numbers: Start, data_start, compressed, uncompressed, values and has_dictionary, as of
                `ColumnChunk`.
        """
        start, data_start, compressed, uncompressed, values, has_dictionary = numbers
        usual, leaf = self.usual, self.usual.schema.leaves[at]
        place = self.group * len(usual.schema.leaves) + at
        codec, encodings = codec_and_encodings(usual.kinds[place])
        raw = usual.statistics[place] if self.selection.has_statistics(leaf) else b""
        index = usual.indexes[place]
        return ColumnChunk(
            leaf,
            codec,
            start,
            data_start,
            compressed,
            uncompressed,
            values,
            bool(has_dictionary),
            encodings if self.selection.encodings else [],
            parse_statistics(raw) if raw else None,
            *(offset_index(index, self.end) if index else (0, 0)),
        )


def _read_numbers(data: bytes) -> list[int]:
    """Decode consecutive signed (zigzag) integers, as `read_varints` does."""
    found = []
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        if byte > 127:
            shift += 7
        else:
            found.append((value >> 1) ^ -(value & 1))
            value = shift = 0
    return found


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
