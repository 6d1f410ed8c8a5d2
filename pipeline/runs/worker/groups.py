"""Cut a reduced result into pieces with whole groups, and map a function over the groups."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from typing import Any, Final

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.errors import GroupsFailedError, TransformError, Transient
from pipeline.report.humanize import plural
from pipeline.runs.transforms.user_code import describe, is_from_signal, user_code
from pipeline.runs.worker.null_types import fill_types, types_of_frames
from pipeline.storage import Storage

PIECES: Final = 100
"""Number of pieces of a result, about, if a job says nothing."""
MAX_PIECES: Final = 10_000
"""Maximum number of pieces: each is an object, which the last step of the reduce stores."""
WRITERS: Final = 16
"""Number of pieces that are stored at a time."""
_SHOWN_GROUPS: Final = 5
"""Maximum number of failed groups that a failure names."""
_SHOWN_VALUE: Final = 60
"""Maximum characters of a value in the name of a group."""
_SHOWN_COLUMNS: Final = 3
"""Maximum number of columns that name a group of one row."""


# -- cut into pieces --------------------------------------------------------------------------


def in_groups(frame: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Sort rows by the columns of their groups; rows of a group keep their order.

    Args:
        frame: The reduced result.
        by: Columns that make up a group. Without any, each row is a group.

    Raises:
        TransformError: the frame lacks a column, or it cannot be grouped by one.
    """
    if not by:
        return frame
    for name in by:
        if name not in frame.columns:
            near = get_close_matches(name, frame.columns, 1)
            raise TransformError(
                f"the reduced result has no column {name!r} (then.by)"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" It has {', '.join(frame.columns) or 'no columns'}"
            )
    with user_code("the reduced result", f"cannot be grouped by {', '.join(by)} (then.by):"):
        return frame.sort(_keys(frame, by), maintain_order=True)


def _keys(frame: pl.DataFrame, by: Sequence[str]) -> list[pl.Expr]:
    # By position: a name such as `*` or `^k$` would be taken as a pattern.
    return [pl.nth(frame.columns.index(name)).alias(str(at)) for at, name in enumerate(by)]


def group_sizes(frame: pl.DataFrame, by: Sequence[str]) -> list[int]:
    """Count the rows of each group of a frame that is in groups (see `in_groups`), in order."""
    if not by:
        return [1] * frame.height
    keys = frame.select(_keys(frame, by))
    rows = keys.group_by(keys.columns, maintain_order=True).len("rows")["rows"]
    return list(rows)


def cut_groups(sizes: Sequence[int], row_bytes: float, target: int, limit: int | None) -> list[int]:
    """Cut groups into pieces. Pure.

    Args:
        sizes: Rows of each group.
        row_bytes: Bytes of a row in memory, on average.
        target: Maximum bytes of a piece, unless a single group has more.
        limit: Maximum number of groups in a piece; None: as many as make about PIECES pieces.

    Returns:
        The number of groups in each piece.
    """
    limit = limit or math.ceil(len(sizes) / PIECES)
    pieces: list[int] = []
    groups = rows = 0
    for size in sizes:
        if groups and (groups == limit or (rows + size) * row_bytes > target):
            pieces.append(groups)
            groups = rows = 0
        groups, rows = groups + 1, rows + size
    return [*pieces, groups] if groups else pieces


def store_pieces(storage: Storage, folder: str, frame: pl.DataFrame, job: Job) -> int:
    """Cut a reduced result into pieces, and store each as a Parquet object; return their bytes.

    Args:
        storage: Where the run's state is.
        folder: URI of a folder for them, with a slash at its end.
        frame: The reduced result. Without rows there is one piece, without rows.
        job: The job.

    Raises:
        TransformError: it cannot be grouped, or has too many groups.
    """
    then = job.then
    assert then is not None, "only a job with `then` has pieces"
    frame = in_groups(frame, then.by)
    sizes = group_sizes(frame, then.by)
    row_bytes = frame.estimated_size() / max(1, frame.height)
    counts = cut_groups(sizes, row_bytes, job.chunks.target, then.max_groups)
    if len(counts) > MAX_PIECES:
        raise TransformError(
            f"the reduced result has {plural(len(sizes), 'group')} (then.by), which would be "
            f"{len(counts):,} pieces, more than {MAX_PIECES:,}",
            hint="raise then.max_groups or chunks.target, or group by fewer columns",
        )
    ends = [0]
    at = 0
    for count in counts:
        ends.append(ends[-1] + sum(sizes[at : at + count]))
        at += count
    parts = [frame[start:stop] for start, stop in pairwise(ends)] or [frame]
    store = partial(_store_piece, storage, folder)
    return sum(map_concurrently(store, list(enumerate(parts)), WRITERS))


def _store_piece(storage: Storage, folder: str, item: tuple[int, pl.DataFrame]) -> int:
    number, frame = item
    buffer = io.BytesIO()
    with user_code("the reduced result", "cannot be stored for `then`:"):
        frame.write_parquet(buffer, compression="zstd")
    storage.put_new(f"{folder}{number:07d}.parquet", buffer.getvalue())
    return buffer.tell()


# -- map --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupMap:
    """Maps a function over the groups of a piece; called like a transform."""

    name: str
    """Name of the function, for errors."""
    function: Callable[..., Any]
    by: tuple[str, ...]

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The user's function without bound parameters, as `inspect.unwrap` looks for it."""
        function = self.function
        while isinstance(function, partial):
            function = function.func
        return function

    def __call__(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Map the groups one after the other; return the rows of all results, in that order.

        Raises:
            GroupsFailedError: the function failed for some groups. All others were mapped too.
            TransformError: results of groups have different columns.
        """
        results: list[tuple[str, pl.DataFrame]] = []
        failed: list[tuple[str, BaseException]] = []
        for key, rows in groups_of(frame.collect(), self.by):
            try:
                results.append((key, self._map(rows)))
            except BaseException as error:
                if is_from_signal(error) or isinstance(error, Transient):
                    raise
                failed.append((key, error))
        if failed:
            count = len(results) + len(failed)
            raise self._error(failed, count) from failed[0][1]
        return _joined(self.name, results).lazy()

    def first_failed(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Return the rows of the first group for which the function fails; of none, no rows."""
        whole = frame.collect()
        for _, rows in groups_of(whole, self.by):
            try:
                self._map(rows)
            except BaseException as error:
                if is_from_signal(error):
                    raise
                return rows.lazy()
        return whole.head(0).lazy()

    def _map(self, rows: pl.DataFrame) -> pl.DataFrame:
        result = self.function(rows.lazy())
        if not isinstance(result, pl.LazyFrame):
            raise TypeError(f"it returned {type(result).__name__}, not a LazyFrame")
        return result.collect()

    def _error(self, failed: Sequence[tuple[str, BaseException]], count: int) -> GroupsFailedError:
        keys = [key for key, _ in failed]
        shown = "; ".join(keys[:_SHOWN_GROUPS])
        more = f" and {len(keys) - _SHOWN_GROUPS:,} more" if len(keys) > _SHOWN_GROUPS else ""
        noun = "group" if len(keys) == 1 else "groups"
        return GroupsFailedError(
            f"{self.name} raised {describe(failed[0][1])} (group {keys[0]})",
            f"{noun} {shown}{more}, {len(keys):,} of the {count:,} in its piece",
        )


def groups_of(frame: pl.DataFrame, by: Sequence[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the key and the rows of each group of a frame that is in groups."""
    start = 0
    for size in group_sizes(frame, by):
        rows = frame[start : start + size]
        start += size
        yield key_text(rows, by), rows


def key_text(rows: pl.DataFrame, by: Sequence[str]) -> str:
    """Name a group by its values, such as `country='DE', day=2024-02-29`."""
    names = by or rows.columns[:_SHOWN_COLUMNS]
    values = rows[:1].select(_keys(rows, names)).row(0)
    pairs = zip(names, map(_value_text, values), strict=True)
    return ", ".join(f"{name}={text}" for name, text in pairs)


def _value_text(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    text = "null" if value is None else text
    return text if len(text) <= _SHOWN_VALUE else f"{text[: _SHOWN_VALUE - 1]}…"


def _joined(name: str, results: Sequence[tuple[str, pl.DataFrame]]) -> pl.DataFrame:
    """Return the rows of all results; columns that are all null take the types of others."""
    types = types_of_frames([frame for _, frame in results])
    first_key, first = results[0]
    first, _ = fill_types(first, types)
    frames = []
    for key, result in results:
        frame, _ = fill_types(result, types)
        if set(frame.columns) == set(first.columns):
            frame = frame[first.columns]
        if frame.schema != first.schema:
            raise GroupsFailedError(
                f"{name} returned other columns for one group, {dict(frame.schema)}, than for "
                f"another, {dict(first.schema)} (group {key}; group {first_key})",
                f"groups {first_key}; {key}",
            )
        frames.append(frame)
    return pl.concat(frames)
