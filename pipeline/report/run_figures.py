"""Compute the figures of a run: totals, durations, use of time, slowest chunks, kinds of failure.

All functions are pure: they take a RunReport and return frozen records and data frames. Nothing
here formats or draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from pipeline.report.run_model import NO_REQUESTS, PARTS, Prices, Requests, RunReport
from pipeline.report.run_timeline import WORKING, Clock, attempt_of, concurrency

MESSAGE_KIND = (
    pl.col("message")
    .str.slice(0, 400)
    .str.replace_all(
        r"(?i)\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b|\d+(?:\.\d+)?|\S+://\S+|'[^']*'|\"[^\"]*\"", "…"
    )
)
"""A message without the parts that differ between failures of one kind: numbers, hex ids, quotes,
addresses."""
DRIVER = "driver"
"""Name of the worker in failures that a driver has recorded."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of a run. A chunk that completed twice counts once, except in `*_redone`."""

    chunks_planned: int
    chunks_done: int
    chunks_failed: int
    """Number of chunks that were still failed at the end."""
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    workers: int
    attempts_redone: int
    """Attempts beyond the first of each chunk: failed ones of completed chunks, and duplicates."""
    seconds_redone: float
    """Worker seconds of duplicates; those of failed attempts are not recorded."""
    attempts_failed: int
    wall_seconds: float
    paused_seconds: float
    active_seconds: float
    rows_filtered: int = 0
    """Planned rows of completed chunks that the job's filter removed or that could not be read."""
    requests: Requests = NO_REQUESTS
    """Requests to S3 of workers and drivers; zero if unknown."""
    memory: int = 0
    """Largest resident bytes of any worker's process; 0 if unknown."""
    working_seconds: float = 0.0
    """Active seconds in which chunks were mapped or reduced."""
    worker_seconds: float = 0.0
    """Seconds of all workers while chunks were mapped or reduced, idle or not."""

    @property
    def chunks_left(self) -> int:
        """Number of chunks without a completion."""
        return max(0, self.chunks_planned - self.chunks_done)

    @property
    def rows_per_second(self) -> float:
        """Input rows per second of active time, planning and publishing included."""
        return self.rows_in / self.active_seconds if self.active_seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Input bytes per second of active time, planning and publishing included."""
        return self.bytes_in / self.active_seconds if self.active_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a whole."""

    name: str
    seconds: float
    share: float
    """Share of the whole, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Durations:
    """The distribution of durations, in seconds."""

    minimum: float
    maximum: float
    mean: float
    quantiles: tuple[tuple[float, float], ...]
    """Pairs (q, seconds) for all QUANTILES."""

    def quantile(self, q: float) -> float:
        """Look up the seconds of one of QUANTILES."""
        return dict(self.quantiles)[q]


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed attempts of one kind: messages differ only in names and numbers."""

    error: str
    attempts: int
    chunks: int
    chunks_final: int
    """Chunks with this error that were still failed at the end."""
    transient: bool
    first_at: float
    """Unix seconds of the first failure."""
    last_at: float
    chunk: str
    """Chunk of an example, to which index, worker (or nothing) and full message belong."""
    index: int
    worker: str
    message: str
    trace: str
    """Traceback, with the user's frames first."""
    where: str
    """Objects, rows and partition of the chunk."""
    line: str
    """File, line and function of the user's code; empty if unknown."""


def first_completions(report: RunReport) -> pl.DataFrame:
    """Select one completion per chunk: the one that ended first."""
    ended = pl.col("started") + pl.col("seconds")
    return report.completions.sort(ended, "attempt").unique("chunk", keep="first").sort("index")


def totals(report: RunReport, clock: Clock) -> Totals:
    """Compute the totals of a run."""
    done = first_completions(report)
    duplicates = report.completions.height - done.height
    # The first failure of a chunk that never completed is not repeated work; its retries are.
    retried = report.failures.height - (
        report.failures.join(done, on="chunk", how="anti")["chunk"].n_unique()
    )
    workers = _workers(report)
    working = _working_seconds(report, clock)
    rows_in = int(done["rows_in"].sum())
    # The results of chunks are not what is written, if they are reduced and mapped again.
    made = done.select(pl.col("rows_out", "bytes_out").sum()).row(0)
    memory = int(report.completions["memory"].max() or 0)  # type: ignore[arg-type]
    if report.groups is not None:
        made = report.groups.rows_out, report.groups.bytes_out
        memory = max(memory, report.groups.memory)
    return Totals(
        chunks_planned=report.run.chunks_planned,
        chunks_done=done.height,
        chunks_failed=report.failures.filter("final")["chunk"].n_unique(),
        rows_in=rows_in,
        rows_out=int(made[0]),
        bytes_in=int(done["bytes_in"].sum()),
        bytes_out=int(made[1]),
        workers=workers["worker"].n_unique(),
        attempts_redone=duplicates + retried,
        seconds_redone=max(
            0.0, float(report.completions["seconds"].sum()) - float(done["seconds"].sum())
        ),
        attempts_failed=report.failures.height,
        rows_filtered=max(0, (report.run.rows_done or rows_in) - rows_in),
        requests=requests(report),
        memory=memory,
        working_seconds=sum(working.values()),
        worker_seconds=sum(
            seconds * _number_of_workers(workers, attempt) for attempt, seconds in working.items()
        ),
        wall_seconds=clock.wall_seconds,
        paused_seconds=clock.paused_seconds,
        active_seconds=clock.active_seconds,
    )


def requests(report: RunReport) -> Requests:
    """Add up the requests to S3 of workers, per completion, and of drivers, per attempt."""
    whole = requests_of(report.completions)
    if report.groups is not None:
        whole = whole.plus(report.groups.requests)
    for attempt in report.attempts:
        whole = whole.plus(attempt.requests)
    return whole


def requests_of(completions: pl.DataFrame) -> Requests:
    """Add up the requests to S3 of some completions."""
    limit = pl.col("request_limit")
    sums = completions.select(
        pl.col("reads", "writes", "retries", "throttled").sum(),
        limit.filter(limit > 0).min().fill_null(0),
    ).row(0, named=True)
    return Requests(**{name: int(value) for name, value in sums.items()})


def _workers(report: RunReport) -> pl.DataFrame:
    """List the workers of each attempt: after a resume, others may have taken their place."""
    seen = pl.concat(
        [
            report.completions.select("worker", at="started"),
            report.failures.select("worker", "at"),
        ]
    ).filter(~pl.col("worker").is_in(["", DRIVER]))
    return seen.select("worker", attempt=attempt_of(report, seen["at"])).unique()


def _number_of_workers(workers: pl.DataFrame, attempt: int) -> int:
    """Count the workers of an attempt.

    Of one that only merged or reduced none is known: take those of the one before.
    """
    known = workers.filter(pl.col("attempt") <= attempt)
    last = known.filter(pl.col("attempt") == pl.col("attempt").max())
    return int((workers if last.is_empty() else last)["worker"].n_unique())


def _working_seconds(report: RunReport, clock: Clock) -> dict[int, float]:
    """Return the active seconds in which workers were needed, by the number of the attempt."""
    phases = [phase for phase in report.phases if phase.name in WORKING]
    done = report.completions
    if not phases and done.is_empty():
        return {}
    spans = pl.DataFrame(
        [(phase.started, phase.started + phase.seconds) for phase in phases]
        or done.select(
            start=pl.col("started").min(), stop=(pl.col("started") + pl.col("seconds")).max()
        ).rows(),
        schema={"start": pl.Float64, "stop": pl.Float64},
        orient="row",
    )
    seconds = (clock.active(pl.col("stop")) - clock.active(pl.col("start"))).clip(0)
    sums = (
        spans.select(seconds=seconds, attempt=attempt_of(report, spans["start"]))
        .group_by("attempt", maintain_order=True)
        .agg(pl.col("seconds").sum())
    )
    return {int(attempt): float(total) for attempt, total in sums.iter_rows()}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one kind of use costs."""

    name: str
    amount: float
    """Requests, or worker seconds."""
    price: float
    """Price of 1,000 requests or of an hour."""
    cost: float


def costs(report: RunReport, totals: Totals) -> list[Cost]:
    """Compute the cost of a run; empty without prices."""
    return cost_of(report.prices, totals.requests, totals.worker_seconds)


def cost_of(prices: Prices | None, used: Requests, worker_seconds: float) -> list[Cost]:
    """Multiply requests and worker seconds by prices; empty without prices."""
    if prices is None:
        return []
    return [
        _cost("requests that read", used.reads, prices.per_1000_reads, 1000),
        _cost("requests that write or list", used.writes, prices.per_1000_writes, 1000),
        _cost("worker time", worker_seconds, prices.per_worker_hour, 3600),
    ]


def _cost(name: str, amount: float, price: float, unit: int) -> Cost:
    return Cost(name, amount, price, amount * price / unit)


def part_seconds(part: str) -> pl.Expr:
    """Return the seconds of one of PARTS, from columns of completions."""
    if part == "upload":
        return pl.col("stage_seconds")
    if part == "compute":
        return (pl.col("compute_seconds") - pl.col("encode_seconds")).clip(0)
    return pl.col(f"{part}_seconds")


def durations(seconds: pl.Series) -> Durations | None:
    """Compute the distribution of durations; None if there are none."""
    if seconds.is_empty():
        return None
    values = seconds.sort()
    return Durations(
        minimum=float(values[0]),
        maximum=float(values[-1]),
        mean=float(values.sum()) / len(values),
        quantiles=tuple(
            (q, float(values.quantile(q, interpolation="linear") or 0.0)) for q in QUANTILES
        ),
    )


def histogram(seconds: pl.Series, bins: int = 40) -> tuple[pl.DataFrame, bool]:
    """Count durations in bins of equal width, or of equal ratio if their tail is long.

    Returns columns start, stop (seconds), count; and whether the bins are logarithmic.
    """
    schema = {"start": pl.Float64, "stop": pl.Float64, "count": pl.Int64}
    if seconds.is_empty():
        return pl.DataFrame(schema=schema), False
    positive = seconds.clip(1e-6)
    low, high = float(positive.min()), float(positive.max())  # type: ignore[arg-type]
    if high - low < 1e-9 * high:
        edge = [(low * 0.95, low * 1.05, len(seconds))]
        return pl.DataFrame(edge, schema=schema, orient="row"), False
    # On a linear axis, a straggler of ten times the median would push all others into a few bins.
    logarithmic = high > 5 * float(positive.median() or high)  # type: ignore[arg-type]
    # With few chunks in many bins, the shape would not be visible.
    number = min(bins, max(6, math.ceil(2 * len(seconds) ** 0.5)))
    scaled = positive.log10() if logarithmic else positive
    first = math.log10(low) if logarithmic else low
    width = ((math.log10(high) if logarithmic else high) - first) / number
    bin_ = ((scaled - first) / width).floor().clip(0, number - 1).cast(pl.Int64).alias("bin")
    edges = pl.DataFrame({"bin": range(number)}, schema={"bin": pl.Int64}).with_columns(
        start=first + pl.col("bin") * width, stop=first + (pl.col("bin") + 1) * width
    )
    if logarithmic:
        edges = edges.with_columns((pl.col("start", "stop") * math.log(10)).exp())
    counts = bin_.to_frame().group_by("bin").agg(count=pl.len().cast(pl.Int64))
    table = edges.join(counts, on="bin", how="left").sort("bin")
    return table.select("start", "stop", pl.col("count").fill_null(0)), logarithmic


def time_shares(report: RunReport, spans: pl.DataFrame) -> list[Share]:
    """Divide the workers' time during the map stage (their threads times its duration) into parts.

    The parts are those of PARTS, other (the rest of chunks) and idle. Empty without completions.
    """
    if spans.is_empty():
        return []
    busy = float((spans["stop"] - spans["start"]).sum())
    available = sum(
        _thread_seconds(some, report.run.threads_per_worker)
        for _, some in spans.group_by(attempt_of(report, spans["started"]))
    )
    sums = spans.select(part_seconds(part).sum().alias(part) for part in PARTS).row(0, named=True)
    parts = {
        **sums,
        "other": max(0.0, busy - sum(sums.values())),
        "idle": max(0.0, available - busy),
    }
    whole = sum(parts.values()) or 1.0
    return [Share(name, seconds, seconds / whole) for name, seconds in parts.items()]


def _thread_seconds(spans: pl.DataFrame, threads: int | None) -> float:
    """Multiply the threads of an attempt's workers by the seconds in which it mapped chunks.

    Args:
        spans: The chunks that it mapped.
        threads: Threads of a worker; if unknown, as many as its chunks overlapped.
    """
    workers = concurrency(spans)
    slots = threads * workers.height if threads else int(workers["lanes"].sum())
    return slots * (float(spans["stop"].max()) - float(spans["start"].min()))  # type: ignore[arg-type]


def phase_shares(report: RunReport, clock: Clock) -> list[Share]:
    """Sum up the drivers' phases by name, in order, without pauses.

    What no phase covers is the share `other`, so that they add up to the clock's active seconds.
    """
    sums: dict[str, float] = {}
    for phase in report.phases:
        started = clock.active_at(phase.started)
        active = max(0.0, clock.active_at(phase.started + phase.seconds) - started)
        sums[phase.name] = sums.get(phase.name, 0.0) + active
    rest = clock.active_seconds - sum(sums.values())
    if sums and rest > 0.01:
        sums["other"] = rest
    whole = sum(sums.values()) or 1.0
    return [Share(name, seconds, seconds / whole) for name, seconds in sums.items()]


def slowest(report: RunReport, number: int = 15) -> pl.DataFrame:
    """Select the completions that took longest, slowest first, with all columns and PARTS."""
    parts = (part_seconds(part).alias(part) for part in PARTS)
    order = report.completions.sort(["seconds", "chunk"], descending=[True, False])
    return order.head(number).with_columns(parts)


def largest(files: pl.DataFrame, number: int) -> pl.DataFrame:
    """Select the largest files (schema FILE_SCHEMA), largest first."""
    return files.sort(["bytes", "uri"], descending=[True, False]).head(number)


def per_worker(spans: pl.DataFrame) -> pl.DataFrame:
    """Sum up each worker: worker, chunks, rows_in, bytes_in, busy_seconds, memory, first, last."""
    return (
        spans.group_by("worker")
        .agg(
            chunks=pl.len(),
            rows_in=pl.col("rows_in").sum(),
            bytes_in=pl.col("bytes_in").sum(),
            busy_seconds=(pl.col("stop") - pl.col("start")).sum(),
            memory=pl.col("memory").max(),
            first=pl.col("start").min(),
            last=pl.col("stop").max(),
        )
        .sort("worker")
    )


def failure_groups(failures: pl.DataFrame) -> list[FailureGroup]:
    """Group failed attempts by kind; kinds with chunks still failed first, then by attempts.

    Args:
        failures: Failed attempts (schema FAILURE_SCHEMA) at chunks, or at pieces of groups.
    """
    frame = (
        failures.with_columns(kind=MESSAGE_KIND)
        .sort("at")
        .group_by("error", "kind", maintain_order=True)
        .agg(
            attempts=pl.len(),
            chunks=pl.col("chunk").n_unique(),
            chunks_final=pl.col("chunk").filter("final").n_unique(),
            transient=pl.col("transient").all(),
            first_at=pl.col("at").min(),
            last_at=pl.col("at").max(),
            **{
                # A chunk that is still failed is the better example.
                name: pl.col(name).sort_by("final", descending=True, maintain_order=True).first()
                for name in ("chunk", "index", "worker", "message", "trace", "where", "line")
            },
        )
        .sort(["chunks_final", "attempts"], descending=True, maintain_order=True)
    )
    return [FailureGroup(**row) for row in frame.drop("kind").iter_rows(named=True)]
