"""Find what would make the next run faster or smaller, with the figures that show it.

Each rule looks at one cause and returns a headline and a sentence, or nothing. A rule speaks only
if following it would matter: a run of seconds needs no advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import polars as pl

from pipeline.report.humanize import byte_size, count, duration, percent, plural
from pipeline.report.run_figures import Share, Totals
from pipeline.report.run_model import RunReport

FACTOR = 5.0
"""Number of times that the largest must exceed the median to be called skewed."""
MIN_FILES = 3
"""Minimum number of files, or of chunks, of which one can stand out."""
MIN_SKEWED_BYTES = 64_000_000
"""Minimum size of a file that stands out."""
SMALL_FILE_BYTES = 8_000_000
"""Median size below which many files are too many."""
MANY_FILES = 100
MIN_SECONDS = 60.0
"""Minimum duration of a run whose use of time matters."""
MAX_IDLE = 0.5
"""Share of idle time of workers from which on there are too many, or too few chunks."""
LARGE_SHARE = 0.5
"""Share of the workers' time from which on one part dominates."""
MAX_RETRIES = 0.02
"""Share of requests that may be tried again."""
MAX_MEMORY = 0.85
"""Share of a worker's memory that may be in use."""
MANY_FILTERED = 0.5
"""Share of the rows that a filter removes, from which on pruning would help."""


class Advice(NamedTuple):
    """One thing to change."""

    headline: str
    text: str


def advice(report: RunReport, totals: Totals, shares: list[Share]) -> list[Advice]:
    """List what to change, the most general first."""
    return [found for rule in _RULES for found in rule(report, totals, shares)]


Rule = Callable[[RunReport, Totals, list[Share]], Iterator[Advice]]


def _skewed_inputs(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    yield from _skew(
        report.inputs, "object of the input", "write inputs of similar size, or set chunks.target"
    )


def _skewed_outputs(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    yield from _skew(
        report.outputs,
        "file of the output",
        "its readers wait for that one: lower chunks.target or chunks.max_rows",
    )


def _skew(files: pl.DataFrame, what: str, then: str) -> Iterator[Advice]:
    if files.height < MIN_FILES:
        return
    median, largest = float(files["bytes"].median() or 0), int(files["bytes"].max() or 0)  # type: ignore[arg-type]
    if median <= 0 or largest < max(MIN_SKEWED_BYTES, FACTOR * median):
        return
    [name] = files.filter(pl.col("bytes") == largest).head(1)["uri"].to_list()
    yield Advice(
        f"One {what} is {largest / median:,.0f} times the others",
        f"{name} has {byte_size(largest)}, and half of the {count(files.height)} have at most "
        f"{byte_size(median)}: {then}.",
    )


def _small_outputs(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    files = report.outputs
    median = float(files["bytes"].median() or 0)  # type: ignore[arg-type]
    if files.height >= MANY_FILES and 0 < median < SMALL_FILE_BYTES:
        yield Advice(
            "The output has many small files",
            f"Half of its {count(files.height)} files have at most {byte_size(median)}; each costs "
            "its readers a request and a footer: raise chunks.target.",
        )


def _slow_chunk(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    seconds = report.completions["seconds"]
    if len(seconds) < MIN_FILES:
        return
    median, longest = float(seconds.median() or 0), float(seconds.max() or 0)  # type: ignore[arg-type]
    mapped = totals.working_seconds
    if longest > FACTOR * median and longest > max(MIN_SECONDS / 4, mapped / 4):
        slow = report.completions.sort("seconds").row(-1, named=True)
        yield Advice(
            "One chunk held up the run",
            f"Chunk {slow['index']} took {duration(longest)} of the {duration(mapped)} in which "
            f"chunks were mapped, half of the chunks at most {duration(median)}: lower "
            "chunks.target, so that large chunks are cut.",
        )


def _idle_workers(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    idle = next((share for share in shares if share.name == "idle"), None)
    if idle is None or totals.active_seconds < MIN_SECONDS or totals.workers < 2:
        return
    if idle.share > MAX_IDLE:
        few = totals.chunks_done < 4 * totals.workers
        then = "lower chunks.target" if few else "use fewer workers"
        yield Advice(
            "Workers were mostly idle",
            f"{percent(idle.share)} of their time, with {plural(totals.chunks_done, 'chunk')} for "
            f"{plural(totals.workers, 'worker')}: {then}.",
        )


def _dominant_part(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    busy = sum(share.seconds for share in shares if share.name != "idle")
    if totals.active_seconds < MIN_SECONDS or not busy:
        return
    explanations = {
        "read": "Reading dominates",
        "encode": "Encoding dominates",
        "upload": "Uploading dominates",
    }
    then = {
        "read": "workers wait for storage: read fewer columns, put workers nearer to the bucket, "
        "or use more workers with a thread each",
        "encode": "set output.compression to lz4 or snappy if readers accept larger files",
        "upload": "workers wait for storage: write fewer or smaller columns, or put workers nearer "
        "to the bucket",
    }
    for share in shares:
        if share.name in explanations and share.seconds / busy > LARGE_SHARE:
            yield Advice(
                explanations[share.name],
                f"{percent(share.seconds / busy)} of the time of chunks: {then[share.name]}.",
            )


def _retried_requests(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    sent = totals.requests.reads + totals.requests.writes
    if sent < MANY_FILES:
        return
    if totals.requests.throttled / sent > MAX_RETRIES:
        yield Advice(
            "Storage throttles requests",
            f"It refused {count(totals.requests.throttled)} of {count(sent)} requests, and workers "
            f"went down to {totals.requests.request_limit} at a time: use fewer workers or larger "
            "chunks, or spread the data over more prefixes.",
        )
    elif totals.requests.retries / sent > MAX_RETRIES:
        yield Advice(
            "Requests to storage fail",
            f"{count(totals.requests.retries)} operations were tried again for {count(sent)} "
            "requests: check the network and the storage service.",
        )


def _full_memory(report: RunReport, totals: Totals, shares: list[Share]) -> Iterator[Advice]:
    limit = report.run.memory_limit
    if limit and totals.memory > MAX_MEMORY * limit:
        yield Advice(
            "A worker nearly ran out of memory",
            f"It had {byte_size(totals.memory)} of {byte_size(limit)}: lower chunks.target, or "
            "raise dask.memory_per_worker.",
        )


def _filter_without_pruning(
    report: RunReport, totals: Totals, shares: list[Share]
) -> Iterator[Advice]:
    read = totals.rows_in + totals.rows_filtered
    pruned = report.pruned
    if not report.run.filter or pruned is None or read < 1_000_000:
        return
    if totals.rows_filtered / read > MANY_FILTERED and not pruned.row_groups_pruned:
        yield Advice(
            "The filter removes rows that had to be read",
            f"{percent(totals.rows_filtered / read)} of the rows that were read, and statistics "
            f"pruned no row group: sort or partition the input by a column of {report.run.filter}.",
        )


_RULES: tuple[Rule, ...] = (
    _slow_chunk,
    _idle_workers,
    _dominant_part,
    _filter_without_pruning,
    _skewed_inputs,
    _skewed_outputs,
    _small_outputs,
    _retried_requests,
    _full_memory,
)
