"""Row groups to chunks: order kept, nothing read, nothing random.

A row group far above the target is cut into parts of consecutive rows. With an offset index a part
is read by its pages. Without one, each part takes reading the whole row group, so it has few parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

CUT_ABOVE: Final = 2
"""Times the target that a row group may decode to before it is cut."""
MOST_UNINDEXED: Final = 4
"""Parts of a row group without an offset index, at most: that often its bytes are read."""
MOST_RATIO: Final = 256
"""Of the least part's decoded bytes to the stored bytes that each part beyond those must have."""


@dataclass(frozen=True, slots=True)
class PackRules:
    """Where a chunk ends."""

    target: int
    """Decoded bytes; a row group above it is a chunk of its own, or cut."""
    open_cost: int = 0
    """Bytes that an object counts at least; never lets one object alone exceed the target."""
    max_rows: int | None = None
    per_file: bool = False
    """A chunk ends with its object and nowhere else."""
    per_partition: bool = False
    """A chunk ends with its partition and nowhere else."""
    cross_partitions: bool = False
    least_part: int = 1
    """Decoded bytes of a part of a row group, at least."""

    @property
    def cut_from(self) -> int | None:
        """Decoded bytes from which a row group is cut; None if none is."""
        if self.per_file or self.per_partition:
            return None
        return max(CUT_ABOVE * self.target + 1, 2 * self.least_part)


def parts_of(rules: PackRules, rows: int, decoded: int, most: int) -> int:
    """Return into how many parts of consecutive rows a row group is cut.

    Args:
        rules: where a chunk ends.
        rows: of the row group.
        decoded: its decoded bytes.
        most: parts, at most.
    """
    if rules.cut_from is None or decoded < rules.cut_from:
        return 1
    wanted = min(-(-decoded // rules.target), decoded // rules.least_part)
    return max(1, min(wanted, most, rows))


class PartLimit:
    """How many parts the row groups of one object may have.

    A footer may claim any number of rows, and none of them has been read. What is there are the
    object's bytes: so that a plan stays in proportion to them, each further part takes some.
    """

    def __init__(self, rules: PackRules, size: int) -> None:
        self._bytes_of_part = max(1, rules.least_part // MOST_RATIO)
        self._left = size // self._bytes_of_part

    def most(self, stored: int, *, is_indexed: bool) -> int:
        """Return the most parts of a row group, of so many stored bytes."""
        more = min(self._left, stored // self._bytes_of_part) if is_indexed else 0
        return MOST_UNINDEXED + more

    def take(self, parts: int) -> None:
        """Note that a row group is cut."""
        self._left -= max(0, parts - MOST_UNINDEXED)


def pack(
    rules: PackRules,
    objects: Sequence[int],
    partitions: Sequence[int],
    rows: Sequence[int],
    decoded: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges over the row groups, in order, covering each exactly once.

    A chunk's weight is the sum over its objects of max(decoded bytes, open cost); it exceeds
    the target only for a single row group.

    Args:
        rules: where a chunk ends.
        objects: for each row group, a number that changes with the object.
        partitions: for each row group, a number that changes with the partition.
        rows: rows of each row group.
        decoded: decoded bytes of each row group.
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
