"""Figures and warnings of a planning, for `--explain` and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from partitioning.listing import Listing
from partitioning.model import Plan, Status
from partitioning.request import PlanRequest
from partitioning.snapshot import Changes, Groups, Ints, Snapshot

_TINY_BYTES: Final = 1_000_000
"""Stored bytes below which an object counts as tiny."""
_MIN_TINY_OBJECTS: Final = 100
"""Number of tiny objects from which on a warning is given."""
_SKEW_FACTOR: Final = 4
"""Ratio of the largest to the median chunk above which a warning is given."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The decoded bytes of the chunks."""

    least: int
    median: int
    p95: int
    most: int
    histogram: tuple[tuple[int, int, int], ...]
    """(from bytes, below bytes, chunks) in powers of two, without empty ends."""


@dataclass(frozen=True, slots=True)
class Explain:
    """The figures of a planning."""

    objects_listed: int
    objects_hidden: int
    objects_empty: int
    objects_unnamed: int
    """Objects without a Parquet name."""
    unnamed_example: str
    """URI of the first of these; empty if there is none."""
    objects_excluded: int
    """Objects left out by include and exclude."""
    objects_pruned: int
    """Objects pruned by partition values."""
    objects_unchanged: int
    """Objects left out because only changes are requested."""
    objects_skipped: int
    """Bad objects."""
    objects_without_rows: int
    """Objects without row groups, or with all of them pruned."""
    objects_planned: int
    row_groups: int
    """Row groups of the planned objects with known footers."""
    row_groups_pruned: int
    """Row groups pruned by statistics, and empty ones."""
    row_groups_cut: int
    """Row groups far above the target, which are cut into chunks of consecutive rows."""
    parts: int
    """Chunks made of these."""
    bytes_listed: int
    """Size of all objects taken from the listing, before pruning."""
    bytes_to_read: int
    """Compressed bytes of the columns and row groups that are read."""
    bytes_decoded: int
    rows: int
    chunks: int
    fragments: int
    footers_read: int
    footers_reused: int
    requests: int
    """Requests to the store; a listing counts its pages of 1,000."""
    seconds: float
    chunk_sizes: Distribution | None
    """Decoded sizes of the chunks; None without chunks."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan, its figures, and the changes since the previous plan."""

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
        request: The request.
        listing: The listing of the input.
        snapshot: The objects.
        ordered: Each row group's object, and the row groups, in plan order.
        plan: The plan.
        reading: Footers read, footers reused, requests for footers.
        notes: Notes on columns, added to the warnings.
        seconds: Duration of the planning.
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
            + _warn_unindexed(np.unique(parts), groups)
            + list(notes)
            + left_out_for_names(listing.unnamed, listing.unnamed_example)
        ),
    )


def _parts(plan: Plan) -> Ints:
    """Return the position of the row group of each chunk that is part of one."""
    table = plan.chunk_table
    if "first_row" not in table.column_names:
        return np.zeros(0, np.int64)
    return table.filter(table["first_row"].is_valid())["start"].to_numpy()  # type: ignore[no-any-return]


def _warn_unindexed(cut: Ints, groups: Groups) -> list[str]:
    """Return a warning about row groups that are read once for each of their parts."""
    unindexed = int((~groups.indexed[cut]).sum())
    if not unindexed:
        return []
    return [
        f"{unindexed} of the {len(cut)} row groups that are cut have no page index: each of their "
        "parts reads all their bytes (pyarrow writes one with write_page_index=True)"
    ]


def left_out_for_names(count: int, example: str) -> list[str]:
    """Return a warning about objects without a Parquet name, if there are any."""
    if not count:
        return []
    objects = "1 object is" if count == 1 else f"{count:,} objects are"
    return [
        f"{objects} left out: not named *.parquet, *.parq or *.pq, such as {example} "
        "(select them with input.include)"
    ]


def _warnings(
    request: PlanRequest,
    snapshot: Snapshot,
    *,
    owner: Ints,
    whole: tuple[Ints, Ints],
    chunks: Ints,
) -> list[str]:
    warnings: list[str] = []
    owner_of_whole, decoded = whole
    objects = np.unique(owner)
    sizes = np.array([snapshot.infos[i].size for i in objects.tolist()], np.int64)
    over = decoded > request.target
    if over.any():
        largest = int(np.argmax(decoded))
        warnings.append(
            f"{int(over.sum())} of {len(owner)} row groups decode to more than the target of "
            f"{size_text(request.target)}; the largest, {size_text(int(decoded[largest]))}, is in "
            f"{snapshot.infos[int(owner_of_whole[largest])].uri}"
        )
    elif (request.per_file or request.per_partition) and (chunks > request.target).any():
        warnings.append(
            f"{int((chunks > request.target).sum())} chunks are above the target of "
            f"{size_text(request.target)}, the largest {size_text(int(chunks.max()))}: per_file "
            "and per_partition do not cut"
        )
    tiny = int((sizes < _TINY_BYTES).sum())
    if tiny >= _MIN_TINY_OBJECTS and tiny * 2 > len(objects):
        warnings.append(
            f"{tiny} of {len(objects)} objects are smaller than 1 MB: reading them is bound by "
            "requests; compact them first"
        )
    median = float(np.median(chunks)) if len(chunks) else 0.0
    if len(chunks) >= _SKEW_FACTOR and chunks.max() > _SKEW_FACTOR * max(1.0, median):
        warnings.append(
            f"chunk sizes are skewed: the largest decodes to {size_text(int(chunks.max()))}, "
            f"the median to {size_text(int(median))}"
        )
    kinds = np.unique(snapshot.schema[snapshot.schema >= 0])
    if len(kinds) > 1:
        warnings.append(f"{len(kinds)} different schemas, read by the rule {request.schema!r}")
    skipped = int((snapshot.status == Status.SKIPPED).sum())
    if skipped:
        noun = "1 object is" if skipped == 1 else f"{skipped:,} objects are"
        warnings.append(f"{noun} not readable Parquet and left out")
    return warnings


def size_text(count: int) -> str:
    """Format a number of bytes in decimal units, as everywhere in the output."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
