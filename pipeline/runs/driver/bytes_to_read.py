"""Estimate the bytes that workers request for a plan."""

from __future__ import annotations

import numpy as np

from partitioning import Plan
from pipeline.runs.worker.chunk_source import WHOLE_BYTES


def bytes_to_read(plan: Plan) -> int:
    """Return the bytes that workers request: columns and footers, or the whole of small objects."""
    objects = plan.table("objects").select(["size", "footer_size"])
    sizes, footers = (objects[name].to_numpy() for name in ("size", "footer_size"))
    groups = plan.table("row_groups").select(["object", "stored"])
    owners, stored = groups["object"].to_numpy(), groups["stored"].to_numpy()
    chunks = plan.chunk_table
    start, stop = chunks["start"].to_numpy(), chunks["stop"].to_numpy()
    lengths = stop - start
    chunk = np.repeat(np.arange(len(chunks)), lengths)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths - start, lengths)
    kept = plan.table("row_groups")["kept"].to_numpy(zero_copy_only=False)[position]
    chunk, position = chunk[kept], position[kept]
    owner = owners[position]
    is_small = sizes[owner] <= WHOLE_BYTES
    # A chunk may have many row groups of an object, whose footer it reads once.
    readers = np.unique(np.stack([chunk, owner]), axis=1)[1]
    small = sizes[readers] <= WHOLE_BYTES
    columns = int(chunks["stored_bytes"].to_numpy().sum()) - int(stored[position][is_small].sum())
    return columns + int(sizes[readers][small].sum()) + int(footers[readers][~small].sum())
