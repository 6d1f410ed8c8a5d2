"""What planning found out, in figures: for `--explain`, reports and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from partitioning.listing import Listing
from partitioning.model import Plan, Status
from partitioning.request import MIB, PlanRequest
from partitioning.snapshot import Changes, Groups, Ints, Snapshot

_TINY: Final = MIB
"""Stored bytes below which an object counts as tiny."""
_MANY: Final = 100
"""Tiny objects from which they are worth a warning."""
_SKEW: Final = 4
"""Times the median chunk from which the largest is worth a warning."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The decoded bytes of the chunks."""

    least: int
    median: int
    p95: int
    most: int
    histogram: tuple[tuple[int, int, int], ...]
    """(from bytes, below bytes, chunks), in powers of two, empty ends left out."""


@dataclass(frozen=True, slots=True)
class Explain:
    """The figures of one planning."""

    objects_listed: int
    objects_hidden: int
    objects_empty: int
    objects_unnamed: int
    """Without a Parquet name."""
    unnamed_example: str
    """URI of the first of them; empty if there is none."""
    objects_excluded: int
    """By include and exclude."""
    objects_pruned: int
    """By partition values."""
    objects_unchanged: int
    """Left out because the request asks for changes only."""
    objects_skipped: int
    """Bad ones."""
    objects_without_rows: int
    """All their row groups pruned, or none there."""
    objects_planned: int
    row_groups: int
    """Of the objects whose footers are known and that are not left out."""
    row_groups_pruned: int
    """By statistics, and empty ones."""
    row_groups_cut: int
    """Far above the target: mapped as several chunks of consecutive rows."""
    parts: int
    """Chunks that these are."""
    bytes_listed: int
    """Of all objects taken from the listing, before pruning."""
    bytes_to_read: int
    """Compressed, of the columns and row groups that are read."""
    bytes_decoded: int
    rows: int
    chunks: int
    fragments: int
    footers_read: int
    footers_reused: int
    requests: int
    """To the store; a listing counts as its pages of 1,000."""
    seconds: float
    chunk_sizes: Distribution | None
    """None without chunks."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan, how it came about, and what differs from the plan before."""

    plan: Plan
    explain: Explain
    changes: Changes


def distribution(decoded: Ints) -> Distribution | None:
    """Return the distribution of some sizes in bytes."""
    if not len(decoded):
        return None
    powers = np.array([int(d).bit_length() for d in decoded])
    counts = np.bincount(powers)
    low = int(powers.min())
    bars = tuple((2 ** (p - 1) if p else 0, 2**p, int(counts[p])) for p in range(low, len(counts)))
    return Distribution(
        least=int(decoded.min()),
        median=int(np.median(decoded)),
        p95=int(np.percentile(decoded, 95)),
        most=int(decoded.max()),
        histogram=bars,
    )


def explain(
    request: PlanRequest,
    listing: Listing,
    snapshot: Snapshot,
    ordered: tuple[Ints, Groups],
    plan: Plan,
    *,
    reading: tuple[int, int, int],
    notes: Sequence[str],
    seconds: float,
) -> Explain:
    """Return the figures.

    Args:
        request: what was asked for.
        listing: what was listed.
        snapshot: the objects.
        ordered: each row group's object, and the row groups, in plan order.
        plan: the outcome.
        reading: footers read, footers reused, requests for footers.
        notes: what is told of columns.
        seconds: how long it took.
    """
    owner, groups = ordered
    status = snapshot.status
    planned = status[owner] == Status.PLANNED
    member = planned & groups.kept
    chunk_sizes = plan.chunk_table["decoded_bytes"].to_numpy()
    with_rows = len(np.unique(owner[member]))
    parts = _parts(plan)
    whole = member.copy()
    whole[parts] = False
    return Explain(
        objects_listed=listing.listed,
        objects_hidden=listing.hidden,
        objects_empty=listing.empty,
        objects_unnamed=listing.unnamed,
        unnamed_example=listing.unnamed_example,
        objects_excluded=listing.excluded,
        objects_pruned=int((status == Status.PRUNED).sum()),
        objects_unchanged=int((status == Status.UNCHANGED).sum()),
        objects_skipped=int((status == Status.SKIPPED).sum()),
        objects_without_rows=int((status == Status.PLANNED).sum()) - with_rows,
        objects_planned=with_rows,
        row_groups=int(planned.sum()),
        row_groups_pruned=int((planned & ~groups.kept).sum()),
        row_groups_cut=len(np.unique(parts)),
        parts=len(parts),
        bytes_listed=sum(info.size for info in snapshot.infos),
        bytes_to_read=plan.stored_bytes,
        bytes_decoded=plan.decoded_bytes,
        rows=plan.rows,
        chunks=len(plan),
        fragments=plan.fragments,
        footers_read=reading[0],
        footers_reused=reading[1],
        requests=listing.requests + reading[2],
        seconds=seconds,
        chunk_sizes=distribution(chunk_sizes),
        warnings=tuple(
            _warnings(
                request,
                snapshot,
                owner=owner[member],
                whole=(owner[whole], groups.decoded[whole]),
                chunks=chunk_sizes,
            )
            + _read_often(np.unique(parts), groups)
            + list(notes)
            + left_out_for_names(listing.unnamed, listing.unnamed_example)
        ),
    )


def _parts(plan: Plan) -> Ints:
    """Return for each chunk that is part of a row group the position of that row group."""
    table = plan.chunk_table
    if "first_row" not in table.column_names:
        return np.zeros(0, np.int64)
    return table.filter(table["first_row"].is_valid())["start"].to_numpy()  # type: ignore[no-any-return]


def _read_often(cut: Ints, groups: Groups) -> list[str]:
    """Return a sentence on row groups that are read once for each of their parts."""
    unindexed = int((~groups.indexed[cut]).sum())
    if not unindexed:
        return []
    return [
        f"{unindexed} of the {len(cut)} row groups that are cut have no page index: each of their "
        "parts reads all their bytes (pyarrow writes one with write_page_index=True)"
    ]


def left_out_for_names(count: int, example: str) -> list[str]:
    """Return a sentence on objects that are not named as Parquet objects are; none without any."""
    if not count:
        return []
    objects = "1 object is" if count == 1 else f"{count:,} objects are"
    return [
        f"{objects} left out: not named *.parquet, *.parq or *.pq, such as {example} "
        "(input.include names what is read)"
    ]


def _warnings(
    request: PlanRequest,
    snapshot: Snapshot,
    *,
    owner: Ints,
    whole: tuple[Ints, Ints],
    chunks: Ints,
) -> list[str]:
    found: list[str] = []
    owner_of_whole, decoded = whole
    objects = np.unique(owner)
    sizes = np.array([snapshot.infos[i].size for i in objects.tolist()], np.int64)
    over = decoded > request.target
    if over.any():
        largest = int(np.argmax(decoded))
        found.append(
            f"{int(over.sum())} of {len(owner)} row groups decode to more than the target of "
            f"{mib(request.target)}; the largest, {mib(int(decoded[largest]))}, is in "
            f"{snapshot.infos[int(owner_of_whole[largest])].uri}"
        )
    elif (request.per_file or request.per_partition) and (chunks > request.target).any():
        found.append(
            f"{int((chunks > request.target).sum())} chunks are above the target of "
            f"{mib(request.target)}, the largest {mib(int(chunks.max()))}: per_file and "
            "per_partition do not cut"
        )
    tiny = int((sizes < _TINY).sum())
    if tiny >= _MANY and tiny * 2 > len(objects):
        found.append(
            f"{tiny} of {len(objects)} objects are smaller than 1 MiB: reading them is bound by "
            "requests; compacting them first pays"
        )
    if len(chunks) >= _SKEW and chunks.max() > _SKEW * max(1.0, float(np.median(chunks))):
        found.append(
            f"chunk sizes are skewed: the largest decodes to {mib(int(chunks.max()))}, "
            f"the median to {mib(int(np.median(chunks)))}"
        )
    kinds = np.unique(snapshot.schema[snapshot.schema >= 0])
    if len(kinds) > 1:
        found.append(f"{len(kinds)} different schemas, read by the rule {request.schema!r}")
    skipped = int((snapshot.status == Status.SKIPPED).sum())
    if skipped:
        found.append(f"{skipped} objects are not readable Parquet and are left out")
    return found


def mib(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / MIB:.1f} MiB" if count >= MIB / 10 else f"{count / 1024:.1f} KiB"
