"""Windows over what was listed or planned: which window each chunk is in, and what each reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from partitioning.errors import WindowError
from partitioning.hivepaths import NULL_VALUE, raw_values
from partitioning.listing import Listing
from partitioning.model import PARTITION_PREFIX, ObjectInfo, Plan
from partitioning.windows import Window, Windowing, no_column


@dataclass(frozen=True, slots=True)
class WindowInput:
    """The objects of one window."""

    window: Window
    objects: int
    bytes: int
    """Of the objects, together."""
    digest: str
    """32 hex digits over the URI, ETag and size of each: another one means other input."""


def inputs_digest(objects: Iterable[tuple[str, str, int]]) -> str:
    """Return 32 hex digits over the (uri, etag, size) of objects, in whatever order."""
    found = hashlib.blake2b(digest_size=16)
    for uri, etag, size in sorted((uri, etag.strip('"'), size) for uri, etag, size in objects):
        found.update(f"{len(uri)}:{uri},{len(etag)}:{etag},{size};".encode())
    return found.hexdigest()


def inputs_of_listing(listing: Listing, windowing: Windowing) -> dict[str, WindowInput]:
    """Return what a listing holds for each window, by label, in order.

    Before anything is planned this says which windows the input has, and by the digests (see
    `CommitEntry.inputs` in the manifest of an output) which have changed. Objects whose value is
    null are in no time window, and not counted.

    Raises:
        WindowError: the listing has no such Hive column, or a value does not fit the grain.
    """
    if not listing.objects:
        return {}
    windows = _Windows(windowing)
    raws = {d: dict(raw_values(d)).get(windowing.column) for d in set(listing.directories)}
    if not any(raw is not None for raw in raws.values()):
        names = {name for d in raws for name, _ in raw_values(d)}
        raise no_column(windowing.column, sorted(names))
    return _inputs(
        (windows.of(raws[directory]), info)
        for info, directory in zip(listing.objects, listing.directories, strict=True)
    )


def inputs_of_plan(plan: Plan, windowing: Windowing) -> dict[str, WindowInput]:
    """Return what a plan's listing held for each window, by label, as `inputs_of_listing`.

    Of a whole plan: `Plan.take` forgets the objects that its chunks do not read.
    """
    table = _objects(plan, windowing)
    uris, etags, sizes = (table[name].to_pylist() for name in ("uri", "etag", "size"))
    windows = _Windows(windowing)
    return _inputs(
        (windows.of_uri(uri), ObjectInfo(uri, etag, size))
        for uri, etag, size in zip(uris, etags, sizes, strict=True)
    )


def windows_of_plan(plan: Plan, windowing: Windowing) -> list[str]:
    """Return the label of each chunk's window, in the plan's order.

    Raises:
        WindowError: the plan has no such Hive column, a value does not fit the grain, or a chunk
            holds rows of two windows (it was planned with `cross_partitions`).
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
        window = windows.of_uri(uris[index].as_py())
        if window is None:
            raise WindowError(
                f"column {windowing.column!r} is null in {uris[index].as_py()}: its rows are in no "
                f"{windowing.grain}"
            )
        labels[index] = window.label
    found = [labels[index] for index in first.tolist()]
    for rank, (label, index) in enumerate(zip(found, last.tolist(), strict=True)):
        if labels[index] != label:
            raise WindowError(
                f"chunk {rank} holds rows of the windows {label} and {labels[index]}: plan "
                "without cross_partitions, and spell a value in one way"
            )
    return found


def _objects(plan: Plan, windowing: Windowing) -> pa.Table:
    table = plan.table("objects")
    names = [
        name.removeprefix(PARTITION_PREFIX)
        for name in table.column_names
        if name.startswith(PARTITION_PREFIX)
    ]
    if windowing.column not in names:
        raise no_column(windowing.column, names)
    return table


class _Windows:
    """The window of each raw value, worked out once."""

    def __init__(self, windowing: Windowing) -> None:
        self._rule = windowing
        self._known: dict[str, Window | None] = {}
        self._raws: dict[str, str | None] = {}

    def of(self, raw: str | None) -> Window | None:
        """The window, or None for null."""
        value = NULL_VALUE if raw is None else raw
        if value not in self._known:
            null = value == NULL_VALUE and self._rule.grain != "value"
            self._known[value] = None if null else self._rule.window_of(value)
        return self._known[value]

    def of_uri(self, uri: str) -> Window | None:
        directory = uri.rpartition("/")[0]
        if directory not in self._raws:
            # Directories above the prefix may have the name too: the last one wins, in a plan too.
            self._raws[directory] = dict(raw_values(directory)).get(self._rule.column)
        return self.of(self._raws[directory])


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
