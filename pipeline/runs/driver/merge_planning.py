"""Plan which slices of the chunks' results make up each file of an output. Pure.

The rows of a folder are in the order of chunks, and of rows within chunks. A folder with much more
than the target size is cut into files of about the same size: between rows, or, if rows are sorted,
at sort keys, so that each file has its own range of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

import numpy as np
import polars as pl

from pipeline.runs.ledger.merge_plan import FILES, SOURCES

DEFAULT_FILE_BYTES: Final = 128 << 20
"""Target size of files, if a job names none."""


def plan_windows(
    slices: Mapping[str, pl.DataFrame], target: int | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Plan the files of some windows, each of which has rows of one of them.

    Args:
        slices: As of `plan_files`, by the label of the window.
        target: Target bytes of a file.

    Returns:
        The files, with their `window`, and the sources of each.
    """
    files, sources, count = [], [], 0
    for label, own in slices.items():
        made, parts = plan_files(own, target)
        if made.height:
            files.append(made.with_columns(window=pl.lit(label)))
            sources.append(parts.with_columns(pl.col("file") + count))
            count += made.height
    if not files:
        empty, none = plan_files(pl.DataFrame(schema={"folder": pl.String}), target)
        return empty.with_columns(window=pl.lit(None, pl.String)), none
    return pl.concat(files), pl.concat(sources)


def plan_files(slices: pl.DataFrame, target: int | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Plan the files of an output; the same slices give the same files.

    Args:
        slices: Indexes of all partial results (see `worker.slices`), with `partial`, the number of
            the partial result.
        target: Target bytes of a file.

    Returns:
        The files, and the sources of each (see `ledger.merge_plan`).
    """
    target = target or DEFAULT_FILE_BYTES
    files: list[pl.DataFrame] = []
    sources: list[pl.DataFrame] = []
    number = 0
    if slices.is_empty():
        return FILES.to_frame(), SOURCES.to_frame()
    ordered = slices.sort("folder", "partial", "offset")
    for own in ordered.partition_by("folder", maintain_order=True):
        size, rows = int(own["length"].sum()), int(own["rows"].sum())
        count = max(1, min(rows, round(size / target)))
        cut = _by_key(own, count) if "samples" in own.columns else _by_rows(own, count)
        parts = list(cut)
        for at, (part, bounds) in enumerate(parts):
            sources.append(part.with_columns(file=pl.lit(number, pl.Int64)))
            share = pl.col("length") * pl.col("take") / (pl.col("rows"))
            files.append(
                bounds.with_columns(
                    folder=pl.lit(own["folder"][0]),
                    bytes=pl.lit(int(part.select(share.sum()).item()), pl.Int64),
                    rows=pl.lit(int(part["take"].sum()), pl.Int64),
                    folder_rows=pl.lit(rows, pl.Int64),
                    is_first=pl.lit(at == 0),
                    is_last=pl.lit(at == len(parts) - 1),
                )
            )
            number += 1
    ends = [name for name in ("low", "high") if name in files[0].columns]
    return (
        pl.concat(files).select(*FILES, *ends),
        pl.concat(sources).select(list(SOURCES)),
    )


_Part = tuple[pl.DataFrame, pl.DataFrame]
"""The sources of a file, and one row with its bounds, if rows are sorted."""


def _by_rows(own: pl.DataFrame, count: int) -> Iterator[_Part]:
    ends, stored = own["rows"].cum_sum().to_numpy(), own["length"].cum_sum().to_numpy()
    starts = ends - own["rows"].to_numpy()
    wanted = np.linspace(0.0, float(stored[-1]), count + 1)
    edges = np.rint(np.interp(wanted, [0, *stored], [0, *ends])).astype(np.int64)
    for start, stop in pairwise(np.unique(edges).tolist()):
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
        skip = np.maximum(start - starts[first : last + 1], 0)
        take = np.minimum(stop, ends[first : last + 1]) - starts[first : last + 1] - skip
        part = own[int(first) : int(last) + 1]
        yield part.with_columns(skip=pl.Series(skip), take=pl.Series(take)), _NO_BOUNDS


_NO_BOUNDS: Final = pl.DataFrame({"none": [None]})


def _by_key(own: pl.DataFrame, count: int) -> Iterator[_Part]:
    whole = own.with_columns(skip=pl.lit(0, pl.Int64), take="rows")
    kind = own["high"].dtype
    edges = _edges(own, count) if count > 1 else pl.Series([], dtype=kind)
    low = _bins(own["samples"].list.first(), edges)
    high = _bins(own["high"], edges)
    bins = range(len(edges) + 1)
    parts = [(at, whole.filter((low <= at) & (high >= at))) for at in bins]
    for at, part in parts:
        if part.height:  # Nothing is below the first edge, if that is the least key.
            bounds = pl.DataFrame(
                {
                    "low": [edges[at - 1] if at else None],
                    "high": [edges[at] if at + 1 in bins else None],
                },
                schema={"low": kind, "high": kind},
            )
            yield part, bounds


def _edges(own: pl.DataFrame, count: int) -> pl.Series:
    """Choose keys between files from the samples, each of which stands for a share of its slice."""
    weight = pl.col("length") / pl.col("samples").list.len()
    samples = own.select("samples", weight=weight).explode("samples").sort("samples")
    sums = samples["weight"].cum_sum().to_numpy()
    wanted = sums[-1] * np.arange(1, count) / count
    chosen = samples["samples"].gather(np.searchsorted(sums, wanted))
    return chosen.drop_nulls().unique(maintain_order=True)


def _bins(keys: pl.Series, edges: pl.Series) -> pl.Series:
    """Return how many edges are not above each key; nulls come first."""
    bins = pl.repeat(0, len(keys), dtype=pl.Int64, eager=True)
    for at in range(len(edges)):
        edge = edges.slice(at, 1)
        bins += (keys >= edge).fill_null(value=False).cast(pl.Int64)
    return bins
