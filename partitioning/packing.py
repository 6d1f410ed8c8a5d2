"""Pack row groups into chunks, in their order and deterministically.

A row group far above the target is cut into parts of consecutive rows. With an offset index, only
the pages of a part are read. Without one, each part reads the whole row group, so there are few
parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

CUT_ABOVE: Final = 2
"""Multiple of the target above which a row group is cut."""
MAX_UNINDEXED_PARTS: Final = 4
"""Maximum number of parts of a row group without an offset index, each of which reads all of it."""
MAX_RATIO: Final = 256
"""Maximum ratio of decoded to stored bytes of additional parts (see `PartLimit`)."""


@dataclass(frozen=True, slots=True)
class PackRules:
    """Rules for the ends of chunks."""

    target: int
    """Target size in decoded bytes; a larger row group is a chunk by itself, or cut."""
    open_cost: int = 0
    """Minimum bytes that an object counts; a single object never exceeds the target by it."""
    max_rows: int | None = None
    per_file: bool = False
    """Whether each object is one chunk."""
    per_partition: bool = False
    """Whether each partition is one chunk."""
    cross_partitions: bool = False
    min_part: int = 1
    """Minimum decoded bytes of a part of a row group."""

    @property
    def cut_from(self) -> int | None:
        """Decoded bytes from which on a row group is cut; None if none is cut."""
        if self.per_file or self.per_partition:
            return None
        return max(CUT_ABOVE * self.target + 1, 2 * self.min_part)


def parts_of(rules: PackRules, rows: int, decoded: int, max_parts: int) -> int:
    """Return the number of parts of consecutive rows that a row group is cut into.

    Args:
        rules: Rules for the ends of chunks.
        rows: Number of rows of the row group.
        decoded: Decoded bytes of the row group.
        max_parts: Maximum number of parts.
    """
    if rules.cut_from is None or decoded < rules.cut_from:
        return 1
    wanted = min(-(-decoded // rules.target), decoded // rules.min_part)
    return max(1, min(wanted, max_parts, rows))


class PartLimit:
    """Limits the number of parts of an object's row groups.

    A footer may claim any number of rows, which planning does not read. To keep the size of a plan
    proportional to the bytes of the object, each additional part uses up some of these bytes.
    """

    def __init__(self, rules: PackRules, size: int) -> None:
        self._bytes_per_part = max(1, rules.min_part // MAX_RATIO)
        self._left = size // self._bytes_per_part

    def max_parts(self, stored: int, *, is_indexed: bool) -> int:
        """Return the maximum number of parts of a row group with this number of stored bytes."""
        more = min(self._left, stored // self._bytes_per_part) if is_indexed else 0
        return MAX_UNINDEXED_PARTS + more

    def take(self, parts: int) -> None:
        """Record the number of parts of a row group."""
        self._left -= max(0, parts - MAX_UNINDEXED_PARTS)


def pack(
    rules: PackRules,
    objects: Sequence[int],
    partitions: Sequence[int],
    rows: Sequence[int],
    decoded: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges of row groups, in order, that cover each row group once.

    The weight of a chunk is the sum over its objects of max(decoded bytes, open cost). It exceeds
    the target only for a single row group.

    Args:
        rules: Rules for the ends of chunks.
        objects: For each row group, a number that changes with the object.
        partitions: For each row group, a number that changes with the partition.
        rows: Number of rows of each row group.
        decoded: Decoded bytes of each row group.
    """
    count = len(objects)
    if rules.per_file or rules.per_partition:
        yield from _runs(objects if rules.per_file else partitions)
        return
    open_cost = min(rules.open_cost, rules.target)
    start = weight = own = held = 0  # weight: of the objects before the current one
    for i in range(count):
        size = decoded[i]
        same = i > start and objects[i] == objects[i - 1]
        before = weight if same else weight + max(own, open_cost) * (i > start)
        total = own + size if same else size
        if i > start and (
            before + max(total, open_cost) > rules.target
            or (rules.max_rows is not None and held + rows[i] > rules.max_rows)
            or (not rules.cross_partitions and partitions[i] != partitions[i - 1])
        ):
            yield start, i
            start, before, total, held = i, 0, size, 0
        weight, own, held = before, total, held + rows[i]
    if count:
        yield start, count


def _runs(keys: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for i in range(1, len(keys)):
        if keys[i] != keys[i - 1]:
            yield start, i
            start = i
    if keys:
        yield start, len(keys)
