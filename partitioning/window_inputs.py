"""Find the window of each chunk, and the objects of each window, of a listing or a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from partitioning.errors import WindowError
from partitioning.hive_paths import raw_values
from partitioning.listing import Listing
from partitioning.model import PARTITION_PREFIX, ObjectInfo, Plan
from partitioning.windows import Window, Windowing, no_column


@dataclass(frozen=True, slots=True)
class WindowInput:
    """The objects of one window."""

    window: Window
    objects: int
    bytes: int
    """Total size of the objects in bytes."""
    digest: str
    """Digest of the objects: 32 hex digits over URI, ETag and size. It changes with the input."""


def inputs_digest(objects: Iterable[tuple[str, str, int]]) -> str:
    """Return 32 hex digits over the (uri, etag, size) of objects, independent of their order."""
    digest = hashlib.blake2b(digest_size=16)
    for uri, etag, size in sorted((uri, etag.strip('"'), size) for uri, etag, size in objects):
        digest.update(f"{len(uri)}:{uri},{len(etag)}:{etag},{size};".encode())
    return digest.hexdigest()


def inputs_of_listing(listing: Listing, windowing: Windowing) -> dict[str, WindowInput]:
    """Return the objects of each window of a listing, by label, in order.

    This shows, before planning, which windows the input has and which have changed (compare the
    digests with those of an earlier listing). Objects with a null are in no
    time window, and not counted.

    Raises:
        WindowError: The listing has no such Hive column, or a value does not fit the grain.
    """
    if not listing.objects:
        return {}
    names = {name for d in set(listing.directories) for name, _ in raw_values(d)}
    _check_columns(windowing, sorted(names))
    windows = _Windows(windowing)
    return _inputs(
        (windows.of(directory), info)
        for info, directory in zip(listing.objects, listing.directories, strict=True)
    )


@dataclass(frozen=True, slots=True)
class OutsideInput:
    """The objects that are in no window, because a value is null or missing."""

    objects: int = 0
    bytes: int = 0
    """Total size of the objects in bytes."""
    folders: tuple[str, ...] = ()
    """Hive values of the objects, sorted: `ds=__HIVE_DEFAULT_PARTITION__`."""


def outside_of_windows(listing: Listing, windowing: Windowing) -> OutsideInput:
    """Return the objects of a listing that are in no window at all.

    Raises:
        WindowError: A value does not fit the grain.
    """
    windows = _Windows(windowing)
    outside = [
        (directory, info.size)
        for info, directory in zip(listing.objects, listing.directories, strict=True)
        if windows.of(directory) is None
    ]
    folders = {_format_values(windowing, directory) for directory in {d for d, _ in outside}}
    return OutsideInput(len(outside), sum(size for _, size in outside), tuple(sorted(folders)))


def _format_values(windowing: Windowing, directory: str) -> str:
    """Return the values of a directory as folders; `no ds` if there is none."""
    raws = dict(raw_values(directory))
    return "/".join(f"{n}={raws[n]}" if n in raws else f"no {n}" for n in windowing.columns)


def inputs_of_plan(plan: Plan, windowing: Windowing) -> dict[str, WindowInput]:
    """Return the objects of each window of a plan, by label, as `inputs_of_listing`.

    It needs a complete plan: `Plan.take` drops the objects that its chunks do not read.
    """
    table = _objects(plan, windowing)
    uris, etags, sizes = (table[name].to_pylist() for name in ("uri", "etag", "size"))
    windows = _Windows(windowing)
    return _inputs(
        (windows.of(uri.rpartition("/")[0]), ObjectInfo(uri, etag, size))
        for uri, etag, size in zip(uris, etags, sizes, strict=True)
    )


def label_of_folder(windowing: Windowing, folder: str) -> str | None:
    """Return the label of a folder's window; None if it is in no window.

    Raises:
        WindowError: Its values do not fit the grain.
    """
    raws = dict(raw_values(folder))
    if any(name not in raws for name in windowing.columns):
        return None
    window = windowing.window_of_raws(raws)
    return None if window is None else window.label


def windows_of_plan(plan: Plan, windowing: Windowing) -> list[str]:
    """Return the label of each chunk's window, in the order of the plan.

    Raises:
        WindowError: The plan has no such Hive column, a value does not fit the grain, or a chunk
            has rows of two windows (it was planned with `cross_partitions`).
    """
    objects = _objects(plan, windowing)
    if not len(plan):
        return []
    owner = plan.table("row_groups")["object"].to_numpy().astype(np.int64)
    table = plan.chunk_table
    first = owner[table["start"].to_numpy()]
    last = owner[table["stop"].to_numpy() - 1]
    windows, uris = _Windows(windowing), objects["uri"]
    labels: dict[int, str] = {}
    for index in np.union1d(first, last).tolist():
        window = windows.of(uris[index].as_py().rpartition("/")[0])
        if window is None:
            raise WindowError(
                f"column {windowing.title!r} is null in {uris[index].as_py()}: its rows are in no "
                f"{windowing.grain}"
            )
        labels[index] = window.label
    of_chunks = [labels[index] for index in first.tolist()]
    for rank, (label, index) in enumerate(zip(of_chunks, last.tolist(), strict=True)):
        if labels[index] != label:
            raise WindowError(
                f"chunk {rank} has rows of the windows {label} and {labels[index]}: plan without "
                "cross_partitions, and use one spelling per value"
            )
    return of_chunks


def _objects(plan: Plan, windowing: Windowing) -> pa.Table:
    table = plan.table("objects")
    names = [
        name.removeprefix(PARTITION_PREFIX)
        for name in table.column_names
        if name.startswith(PARTITION_PREFIX)
    ]
    _check_columns(windowing, names)
    return table


def _check_columns(windowing: Windowing, names: Sequence[str]) -> None:
    for column in windowing.columns:
        if column not in names:
            raise no_column(column, names)


class _Windows:
    """The window of each directory, computed once for equal values."""

    def __init__(self, windowing: Windowing) -> None:
        self._rule = windowing
        self._known: dict[tuple[str | None, ...], Window | None] = {}
        self._directories: dict[str, Window | None] = {}

    def of(self, directory: str) -> Window | None:
        """Return the window of a directory, or None for null.

        Directories above the prefix may have values too; the last value of a name wins, as in a
        plan.
        """
        if directory not in self._directories:
            raws = dict(raw_values(directory))
            values = tuple(raws.get(name) for name in self._rule.columns)
            if values not in self._known:
                self._known[values] = self._rule.window_of_raws(raws)
            self._directories[directory] = self._known[values]
        return self._directories[directory]


def _inputs(found: Iterator[tuple[Window | None, ObjectInfo]]) -> dict[str, WindowInput]:
    groups: dict[Window, list[tuple[str, str, int]]] = {}
    for window, info in found:
        if window is not None:
            groups.setdefault(window, []).append((info.uri, info.etag, info.size))
    return {
        window.label: WindowInput(
            window, len(group), sum(size for _, _, size in group), inputs_digest(group)
        )
        for window, group in sorted(groups.items())
    }
