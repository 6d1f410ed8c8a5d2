"""Compute a run's timeline: its clock, lanes of chunks, use of workers, throughput.

All functions are pure. Times in results are *active seconds*: seconds since the run began, with
long pauses (e.g. a run that was stopped in the evening and resumed in the morning) cut out.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.report.run_model import RunReport

WORKING = ("map", "reduce", "then", "merge")
"""Phases in which workers work."""
PAUSE_MIN_SECONDS = 30.0
PAUSE_MIN_SHARE = 0.1
MAX_ROWS = 100
MAX_CELLS = 6_000
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
# Minimum duration of a chunk, in seconds: the resolution of Unix times in floats is 0.2 µs.
_INSTANT = 1e-3


@dataclass(frozen=True, slots=True)
class Clock:
    """Converts Unix seconds to active seconds."""

    origin: float
    """Unix seconds of the first event."""
    finish: float
    """Unix seconds of the last event."""
    pauses: tuple[tuple[float, float], ...] = ()
    """Spans of Unix seconds in which nothing ran, in order."""

    @property
    def wall_seconds(self) -> float:
        """Seconds from the first event to the last, with pauses."""
        return self.finish - self.origin

    @property
    def paused_seconds(self) -> float:
        """Total seconds of the pauses."""
        return sum(stop - start for start, stop in self.pauses)

    @property
    def active_seconds(self) -> float:
        """Seconds from the first event to the last, without pauses."""
        return self.wall_seconds - self.paused_seconds

    def active(self, unix: pl.Expr) -> pl.Expr:
        """Convert a column of Unix seconds to active seconds."""
        cut = unix - self.origin
        for start, stop in self.pauses:
            cut = cut - (unix - start).clip(0, stop - start)
        return cut

    def active_at(self, unix: float) -> float:
        """Convert one moment to active seconds."""
        return float(pl.select(self.active(pl.lit(unix))).item())

    def pause_marks(self) -> list[tuple[float, float]]:
        """List the position of each pause, in active seconds, and its length."""
        marks, before = [], 0.0
        for start, stop in self.pauses:
            marks.append((start - self.origin - before, stop - start))
            before += stop - start
        return marks


def make_clock(report: RunReport) -> Clock:
    """Make the run's clock from all times in its report."""
    spans = [
        report.completions.select(
            start=pl.col("started"),
            stop=pl.col("started") + pl.max_horizontal("seconds", pl.lit(_INSTANT)),
        ),
        report.failures.select(start=pl.col("at"), stop=pl.col("at")),
    ]
    # A phase in which chunks ran does not show that the time between them was active: its driver
    # may have died, or waited for workers. Phases without chunks (plan, publish) are active.
    mapped = pl.concat(spans)["start"]
    alone = [
        (phase.started, phase.started + phase.seconds)
        for phase in report.phases
        if not mapped.is_between(phase.started, phase.started + phase.seconds).any()
    ]
    schema = {"start": pl.Float64, "stop": pl.Float64}
    busy = pl.concat([*spans, pl.DataFrame(alone, schema=schema, orient="row")]).sort("start")
    run = report.run
    gaps = _between(report)
    bounds = [moment for moment in (run.started, run.finished) if moment is not None]
    if not busy.is_empty():
        bounds += busy.select(pl.col("start").min(), pl.col("stop").max()).row(0)
    for phase in report.phases:
        bounds += [phase.started, phase.started + phase.seconds]
    if not bounds:
        return Clock(run.created, run.created)
    return Clock(min(bounds), max(bounds), _merged([*_pauses(busy), *gaps]))


def _between(report: RunReport) -> list[tuple[float, float]]:
    """List the spans between two attempts, in which no driver worked on the run."""
    spans, reached = [], float("inf")
    for attempt in sorted(report.attempts, key=lambda attempt: attempt.started):
        if attempt.started > reached:
            spans.append((reached, attempt.started))
        reached = max(attempt.finished, reached if reached < float("inf") else attempt.finished)
    return spans


def attempt_of(report: RunReport, moments: pl.Series) -> pl.Series:
    """Number the attempt in which each moment (Unix seconds) lies: the last that worked by then.

    An attempt begins with its first phase in which workers are needed: before, it may have watched
    another one. What seems earlier than all, by another machine's clock, is of the first.
    """
    starts = pl.Series(
        sorted(
            min((p.started for p in attempt.phases if p.name in WORKING), default=attempt.started)
            for attempt in report.attempts
        ),
        dtype=pl.Float64,
    )
    first = 1 if report.attempts else 0
    return starts.search_sorted(moments, side="right").cast(pl.Int64).clip(first)


def _merged(spans: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Merge spans that overlap, in order."""
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def _pauses(busy: pl.DataFrame) -> tuple[tuple[float, float], ...]:
    gaps = busy.select(start=pl.col("stop").cum_max().shift(1), stop=pl.col("start")).filter(
        pl.col("stop") - pl.col("start") > PAUSE_MIN_SECONDS
    )
    if gaps.is_empty():
        return ()
    total = float(busy["stop"].max() - busy["start"].min())  # type: ignore[operator, arg-type]
    gaps = gaps.with_columns(seconds=pl.col("stop") - pl.col("start"))
    shortest = max(PAUSE_MIN_SECONDS, PAUSE_MIN_SHARE * (total - float(gaps["seconds"].sum())))
    kept = gaps.filter(pl.col("seconds") > shortest)
    return tuple(kept.select("start", "stop").iter_rows())


def spans(report: RunReport, clock: Clock) -> pl.DataFrame:
    """Sort the completions by start, and add `start` and `stop` in active seconds."""
    start = clock.active(pl.col("started"))
    return (
        report.completions.with_columns(start=start)
        .with_columns(stop=pl.col("start") + pl.max_horizontal("seconds", pl.lit(_INSTANT)))
        .sort("start", "chunk")
    )


def worker_order(workers: Sequence[str]) -> list[str]:
    """Sort names naturally: worker-2 before worker-10."""

    def key(name: str) -> list[tuple[int, int, str]]:
        pieces = re.split(r"(\d+)", name)
        return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces]

    return sorted(set(workers), key=key)


def concurrency(spans: pl.DataFrame) -> pl.DataFrame:
    """Count the maximum chunks that each worker mapped at once: columns worker, lanes."""
    starts = spans.select("worker", at="start", step=pl.lit(1, pl.Int64))
    stops = spans.select("worker", at="stop", step=pl.lit(-1, pl.Int64))
    # At the same instant, the end of a chunk counts before the start of the next.
    return (
        pl.concat([starts, stops])
        .with_columns(pl.col("at").round(3))
        .sort("at", "step")
        .with_columns(lanes=pl.col("step").cum_sum().over("worker"))
        .group_by("worker")
        .agg(pl.col("lanes").max().clip(lower_bound=1))
        .sort("worker")
    )


def lanes(spans: pl.DataFrame) -> pl.Series:
    """Assign a lane to each span, so that the spans of one worker and lane do not overlap.

    The spans must be sorted by start. Meant for a few thousand spans.
    """
    free: dict[str, list[int]] = {}
    ends: dict[str, list[tuple[float, int]]] = {}
    chosen: list[int] = []
    for worker, start, stop in spans.select("worker", "start", "stop").iter_rows():
        running, idle = ends.setdefault(worker, []), free.setdefault(worker, [])
        while running and running[0][0] <= start + 1e-3:
            heapq.heappush(idle, heapq.heappop(running)[1])
        lane = heapq.heappop(idle) if idle else len(running)
        heapq.heappush(running, (stop, lane))
        chosen.append(lane)
    return pl.Series("lane", chosen, dtype=pl.Int64)


def worker_rows(workers: Sequence[str]) -> dict[str, str]:
    """Assign a row to each worker; with more than MAX_ROWS workers, several share a row."""
    ordered = worker_order(workers)
    size = -(-len(ordered) // MAX_ROWS) or 1
    groups = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    return {
        name: _one_line(f"{group[0]} … {group[-1]}" if len(group) > 1 else name)
        for group in groups
        for name in group
    }


def _one_line(text: str) -> str:
    # Vega puts labels into expressions, whose strings must not contain line ends of any kind.
    return " ".join(text.split())


def utilisation(spans: pl.DataFrame, seconds: float, threads: int | None) -> pl.DataFrame:
    """Compute the busy share of each row of workers over time.

    Returns columns row, start, stop (active seconds), chunks (active then) and busy (0 to 1).
    """
    rows = worker_rows(spans["worker"].unique().to_list())
    slots = concurrency(spans).with_columns(
        row=pl.col("worker").replace_strict(rows, return_dtype=pl.String),
        lanes=pl.lit(threads, pl.Int64) if threads else pl.col("lanes"),
    )
    bins = max(40, min(240, MAX_CELLS // max(1, slots["row"].n_unique())))
    width = seconds / bins or _INSTANT
    cells = (
        _spread(spans.select("worker", "start", "stop"), width, bins)
        .join(slots.select("worker", "row"), on="worker")
        .group_by("row", "bin")
        .agg(pl.col("overlap").sum(), chunks=pl.len())
        .join(slots.group_by("row").agg(pl.col("lanes").sum()), on="row")
    )
    return cells.select(
        "row",
        start=pl.col("bin") * width,
        stop=(pl.col("bin") + 1) * width,
        chunks="chunks",
        busy=(pl.col("overlap") / (width * pl.col("lanes"))).clip(0, 1),
    ).sort("row", "start")


def throughput(spans: pl.DataFrame, seconds: float, bins: int = 120) -> pl.DataFrame:
    """Compute rows and bytes per second over time, spreading each chunk evenly over its duration.

    Returns columns start, stop (active seconds), rows_per_second, bytes_per_second (both of input)
    without gaps: the rate is 0 where nothing ran.
    """
    width = nice_step(seconds / bins)
    number = max(1, int(-(-seconds // width)))
    share = pl.col("overlap") / (pl.col("stop") - pl.col("start"))
    sums = (
        _spread(spans.select("start", "stop", "rows_in", "bytes_in"), width, number)
        .group_by("bin")
        .agg(rows=(pl.col("rows_in") * share).sum(), size=(pl.col("bytes_in") * share).sum())
    )
    start = pl.col("bin") * width
    # The last bin extends past the end of the run: divide by the part before the end.
    covered = pl.min_horizontal(start + width, pl.lit(max(seconds, _INSTANT))) - start
    return (
        pl.DataFrame({"bin": range(number)}, schema={"bin": pl.Int64})
        .join(sums, on="bin", how="left")
        .select(
            start=start,
            stop=start + covered,
            rows_per_second=(pl.col("rows") / covered).fill_null(0),
            bytes_per_second=(pl.col("size") / covered).fill_null(0),
        )
    )


def _spread(spans: pl.DataFrame, width: float, bins: int) -> pl.DataFrame:
    """Repeat each span for every bin that it touches, with its `overlap` in seconds."""
    touched = pl.int_ranges(
        (pl.col("start") / width).floor().clip(0, bins - 1).cast(pl.Int64),
        (pl.col("stop") / width).ceil().clip(1, bins).cast(pl.Int64),
    )
    low, high = pl.col("bin") * width, (pl.col("bin") + 1) * width
    overlap = pl.min_horizontal("stop", high) - pl.max_horizontal("start", low)
    return (
        spans.with_columns(bin=touched)
        .explode("bin", empty_as_null=False)
        .with_columns(overlap=overlap.clip(lower_bound=0))
    )


def nice_step(seconds: float) -> float:
    """Round up to a common length of time: 0.5, 2, 15, 60, 300 and so on."""
    if seconds <= 0:
        return _INSTANT
    if seconds < 1:
        scale = 1.0
        while scale > 1e-9 and seconds <= scale / 10:
            scale /= 10
        return next(s * scale for s in (0.1, 0.2, 0.5, 1.0) if s * scale >= seconds * (1 - 1e-9))
    if seconds <= _STEPS[-1]:
        return float(next(step for step in _STEPS if step >= seconds))
    return 86_400.0 * -(-seconds // 86_400)


def ticks(seconds: float, number: int = 8) -> list[float]:
    """Choose about `number` round moments from 0 to `seconds` for an axis of time."""
    step = nice_step(seconds / number)
    return [round(at * step, 9) for at in range(int(seconds / step + 1e-9) + 1)]
