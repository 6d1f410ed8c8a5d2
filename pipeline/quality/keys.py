"""Find the values of a key that occur more than once in several frames together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.quality.evaluate import Found
from pipeline.quality.results import MAX_EXAMPLES, example_of

Read = Callable[[], pl.DataFrame]
Hashes = npt.NDArray[np.uint64]

ROWS_AT_ONCE: Final = 1 << 27
"""Maximum number of rows whose hashes are in memory together: a gigabyte."""
CONFIRMED_AT_ONCE: Final = 1000
"""Number of hashes whose keys are compared in one pass."""
_FIRST_ROWS: Final = 1000
"""Rows of a frame that mostly show if it is in no order."""
_MARK_BITS: Final = 20
"""Bits of a hash by which those are looked up whose half occurs more than once."""
_MARKS: Final = np.uint32((1 << _MARK_BITS) - 1)


def repeated_keys(frames: Sequence[Read], rows: int, columns: Sequence[str]) -> Found:
    """Count the values of a key that occur more than once.

    Where each frame is in the order of its keys and has a range of its own, as files often are, no
    key can be there twice. Otherwise hashes of 64 bits are compared first, which takes 12 bytes a
    row; keys with equal hashes are then compared themselves, so that two keys with one hash do not
    count.

    Args:
        frames: Functions that read the frames, which have these columns. Each is called once for
            each ROWS_AT_ONCE rows, and again if frames are in order or keys seem to be repeated.
        rows: Number of rows of all frames.
        columns: Columns of the key; nulls are equal to each other.
    """
    if _are_apart(frames, columns):
        return Found(0)
    passes = max(1, -(-rows // ROWS_AT_ONCE))
    count, examples = 0, list[str]()
    for part in range(passes):
        hashes = _repeated_hashes(frames, columns, part, passes)
        confirmed = _confirm(frames, columns, hashes, examples)
        count += confirmed
    return Found(count, tuple(examples[:MAX_EXAMPLES]))


def _key(read: Read, columns: Sequence[str]) -> pl.DataFrame:
    frame = read().select(columns)
    # Their codes differ from frame to frame.
    coded = [name for name, kind in frame.schema.items() if kind in (pl.Categorical, pl.Enum)]
    return frame.cast(dict.fromkeys(coded, pl.String)) if coded else frame


_Bounds = tuple[tuple[Any, ...], tuple[Any, ...]]
"""The first and the last key of a frame."""


def _are_apart(frames: Sequence[Read], columns: Sequence[str]) -> bool:
    """Whether the keys of each frame rise strictly, and no two frames' ranges overlap."""
    if not frames or _rising(frames[0], columns) is None:
        return False  # The others are most probably not in order either.
    bounds = map_concurrently(lambda read: _rising(read, columns), frames)
    known = [found for found in bounds if found]
    if None in bounds or len({tuple(map(type, first)) for first, _ in known}) > 1:
        return False
    known.sort()
    return all(last < first for (_, last), (first, _) in pairwise(known))


def _rising(read: Read, columns: Sequence[str]) -> _Bounds | tuple[()] | None:
    """Return the bounds of a frame whose keys rise strictly, none if it is empty; None if not."""
    frame = _key(read, columns)
    if frame.is_empty():
        return ()
    # Floats have a NaN, and two zeros.
    if not all(kind.is_integer() or kind in (pl.String, pl.Date) for kind in frame.dtypes):
        return None
    rises = pl.lit(value=False)
    for at in reversed(range(frame.width)):
        value, before = pl.nth(at), pl.nth(at).shift(1)
        rises = (value > before) | ((value == before) & rises)
    has_nulls = pl.any_horizontal(pl.nth(at).has_nulls() for at in range(frame.width))
    for part in (frame.head(_FIRST_ROWS), frame):
        nulls, rising = part.select(nulls=has_nulls, rising=rises.slice(1).all()).row(0)
        if nulls or not rising:
            return None
    return frame.row(0), frame.row(-1)


def _repeated_hashes(
    frames: Sequence[Read], columns: Sequence[str], part: int, passes: int
) -> Hashes:
    def hashes_of(read: Read) -> Hashes:
        hashes = _key(read, columns).hash_rows().to_numpy()
        return hashes if passes == 1 else hashes[hashes % passes == part]

    several = map_concurrently(hashes_of, frames)
    hashes = np.concatenate(several) if several else np.empty(0, np.uint64)
    del several
    return repeats_of(hashes)


def repeats_of(hashes: Hashes) -> Hashes:
    """Return the hashes that occur more than once, in order."""
    # Half of each is sorted in half the time. Few are equal by chance: 1,000 of 3 million.
    halves = hashes.view(np.uint32)[::2]
    marked = np.zeros(1 << _MARK_BITS, np.bool_)
    marked[_repeated(halves) & _MARKS] = True
    return np.unique(_repeated(hashes[marked[halves & _MARKS]]))


def _repeated(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    ordered = np.sort(values)
    found: npt.NDArray[Any] = ordered[1:][ordered[1:] == ordered[:-1]]
    return found


def _confirm(
    frames: Sequence[Read], columns: Sequence[str], hashes: Hashes, examples: list[str]
) -> int:
    """Count the repeated keys among those with these hashes; add examples.

    Once some are confirmed, the other hashes count as one key each.
    """
    for start in range(0, len(hashes), CONFIRMED_AT_ONCE):
        wanted = pl.Series(hashes[start : start + CONFIRMED_AT_ONCE], dtype=pl.UInt64)

        def keys_of(read: Read, wanted: pl.Series = wanted) -> pl.DataFrame:
            frame = _key(read, columns)
            some = frame.filter(frame.hash_rows().is_in(wanted.implode()))
            return some.group_by(pl.all()).len("chunkmap_rows")

        parts = [part for part in map_concurrently(keys_of, frames) if part.height]
        keys = pl.concat(parts, how="vertical_relaxed").group_by(pl.exclude("chunkmap_rows")).sum()
        repeated = keys.filter(pl.col("chunkmap_rows") > 1)
        if repeated.height:
            first = repeated.sort("chunkmap_rows", descending=True).head(MAX_EXAMPLES)
            for row in first.to_dicts():
                times = row.pop("chunkmap_rows")
                examples.append(f"{example_of(row)} ({times:,} rows)")
            return repeated.height + max(0, len(hashes) - start - CONFIRMED_AT_ONCE)
    return 0
