"""Runs as they happen, made up from a seed: what the tests of the report render."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import polars as pl

from pipeline.report.run_model import (
    COMPLETION_SCHEMA,
    FAILURE_SCHEMA,
    OPTIONAL,
    MappedGroups,
    Phase,
    RunInfo,
    RunReport,
    RunState,
)

START = 1_767_225_600.0
FINGERPRINT = "v2-b1946ac92492d234"
NASTY = (
    "<script>alert(1)</script> & \"quoted\" 'too' </script><!-- `x` | é\u2028 漢字 "
    "\x1b[2J \x9b31m \u202e"
)
ERRORS = (
    (
        "ClientError",
        "An error occurred (503) SlowDown on GetObject of s3://lake/e/{i}.parquet",
        True,
    ),
    ("ReadTimeout", "no bytes for 60 s from s3://lake/e/{i}.parquet", True),
    ("KilledWorker", "chunk {i} was on tcp://10.0.0.{i}:41235 when it died (out of memory)", False),
    (
        "ComputeError",
        "conversion from `str` to `i64` failed in column 'qty' for 3 out of {i} values: "
        "['12x', 'n/a']\n\nTraceback (most recent call last):\n"
        '  File "pipeline/examples/revenue.py", line 41, in revenue\n    return orders.collect()',
        False,
    ),
)


def info(state: RunState = "done", chunks: int = 0, rows: int = 0) -> RunInfo:
    """A run of the revenue job."""
    return RunInfo(
        id="3f9c2a7be1d04458",
        job="lineitem-revenue",
        input="s3://lake/tpch/lineitem/",
        output="s3://lake/marts/revenue/",
        mode="error",
        transform="pipeline.examples.revenue:revenue",
        fingerprint=FINGERPRINT,
        state=state,
        chunks_planned=chunks,
        rows_planned=rows,
        created=START,
        started=START + 1,
        rounds=2,
        threads_per_worker=None,
        environment={
            "chunkmap": "0.1.0",
            "Python": "3.11.2",
            "Polars": "2.1.0",
            "Workers": "8 with 1 thread each",
            "Processor": "AMD EPYC 9R14, 16 cores",
            "Memory": "64 GiB",
        },
        prefect_url="http://127.0.0.1:4200/runs/flow-run/0198c0de",
        resume_command=None if state == "done" else "chunkmap retry 3f9c2a7be1d04458",
    )


def make(
    chunks: int,
    workers: int = 8,
    seed: int = 1,
    mean: float = 1.5,
    error_rate: float = 0.01,
    final_rate: float = 0.0,
    threads: int = 1,
    state: RunState = "done",
    pause: float = 0.0,
) -> RunReport:
    """Chunks mapped by workers as they come free, with retries, stragglers and a ramp-up."""
    rng = random.Random(seed)
    slots = [
        (START + 6 + rng.expovariate(1 / 1.5), f"tcp://10.0.0.{w + 11}:{40001 + w}")
        for w in range(workers)
        for _ in range(threads)
    ]
    heapq.heapify(slots)
    done, failed = [], []
    middle = chunks // 2
    for index in range(chunks):
        if pause and index == middle:
            resumed = max(at for at, _ in slots) + pause
            slots = [(resumed + rng.random(), name) for _, name in slots]
            heapq.heapify(slots)
        chunk = f"{rng.getrandbits(128):032x}"
        batch = f"r1-b{index // 20:04d}"
        final = rng.random() < final_rate
        attempts = 3 if final else 1 + (rng.random() < error_rate)
        kind = rng.choice(ERRORS[2:] if final else ERRORS[:3])
        for attempt in range(1, attempts + 1):
            at, worker = heapq.heappop(slots)
            rows = int(rng.gauss(240_000, 18_000))
            size = int(rows * rng.uniform(38, 44))
            slow = rng.choice((4, 8)) if rng.random() < 0.006 else 1
            compute = mean * 0.5 * rng.lognormvariate(0, 0.25) * slow
            read, stage = mean * 0.33 * rng.lognormvariate(0, 0.35), mean * 0.12 * rng.uniform(1, 2)
            seconds = read + compute + stage + 0.012
            name = f"{batch}-a{attempt}"
            if attempt < attempts or final:
                taken = seconds * rng.random()
                message = kind[1].format(i=index)
                error = (chunk, index, batch, name, worker, at + taken, kind[0], message)
                line = "prices.py:12 in euros"
                trace = f"Your code (most recent call last):\n  {line}\n{kind[0]}: {message}"
                where = f"s3://demo/prices/{index}.parquet, rows 0 to {rows - 1:,}"
                failed.append((*error, trace, where, line, kind[2], final))
                heapq.heappush(slots, (at + taken + 0.3, worker))
                continue
            heapq.heappush(slots, (at + seconds + 0.02 + rng.expovariate(12), worker))
            times = (at, seconds, read, compute, stage)
            amounts = (rows, int(rows * 0.83), size, int(size * 0.6))
            done.append((chunk, index, batch, name, worker, *times, *amounts))
    first = [name for name in COMPLETION_SCHEMA if name not in OPTIONAL]
    completions = pl.DataFrame(
        done, schema={name: COMPLETION_SCHEMA[name] for name in first}, orient="row"
    ).with_columns(
        encode_seconds=pl.col("compute_seconds") * 0.3,
        reads=pl.lit(3),
        writes=pl.lit(1),
        retries=pl.when(pl.col("index") % 97 == 5).then(1).otherwise(0),
        memory=400_000_000 + pl.col("bytes_in") * 8,
        code=pl.lit(FINGERPRINT),
    )
    failures = pl.DataFrame(failed, schema=FAILURE_SCHEMA, orient="row")
    left = chunks // 5 if state in ("running", "interrupted") else 0
    return _closed(completions, failures, state, chunks + left)


def _closed(
    completions: pl.DataFrame, failures: pl.DataFrame, state: RunState, chunks: int
) -> RunReport:
    ends = [START + 6.0, *(completions["started"] + completions["seconds"]), *failures["at"]]
    mapped = max(ends)
    rows_done = sum(completions["rows_in"].to_list())
    run = info(state, chunks, rows_done + 240_000 * (chunks - completions.height))
    phases = [Phase("plan", START + 1, 4.6), Phase("map", START + 5.6, mapped - START - 5.6)]
    if state == "done":
        phases.append(Phase("publish", mapped, 3.4))
    finished = None if state == "running" else mapped + (3.4 if state == "done" else 0.2)
    return RunReport(replace(run, finished=finished), completions, failures, tuple(phases))


def empty(state: RunState = "running") -> RunReport:
    """A run that has planned and mapped nothing yet."""
    return RunReport(info(state, 40, 9_600_000), phases=(Phase("plan", START + 1, 4.6),))


def all_failed(chunks: int = 60) -> RunReport:
    """Every chunk failed, three times."""
    return make(chunks, final_rate=1.0, state="failed")


def hostile() -> RunReport:
    """A run in which every text tries to break out of the page."""
    report = make(30, final_rate=0.2, error_rate=0.3, state="failed")
    run = replace(
        report.run,
        id=NASTY,
        job=NASTY,
        input=NASTY,
        output=NASTY,
        mode=NASTY,
        transform=NASTY,
        fingerprint=NASTY,
        environment={NASTY: NASTY},
        prefect_url="javascript:alert(1)//" + NASTY,
        resume_command=NASTY,
    )
    text = pl.lit(NASTY) + pl.int_range(pl.len()).cast(pl.String)
    return RunReport(
        run,
        report.completions.with_columns(chunk=text, batch=text, attempt=text, worker=text),
        report.failures.with_columns(
            **dict.fromkeys(("chunk", "batch", "attempt", "worker", "error"), text),
            **dict.fromkeys(("message", "trace", "where", "line"), text),
        ),
        (Phase(NASTY, START, 3.0),),
        groups=groups(NASTY),
    )


def groups(name: str = "shop.forecast:forecast") -> MappedGroups:
    """Pieces of a reduced result, one of which failed in two ways."""
    failed = make(30, final_rate=0.2, error_rate=0.3, state="failed").failures
    text = pl.lit(name) + pl.int_range(pl.len()).cast(pl.String)
    return MappedGroups(
        name,
        (name, "day"),
        {name: name},
        pieces=12,
        done=11,
        failed=1,
        rows_in=400,
        rows_out=90,
        bytes_out=12_345,
        seconds=61.5,
        longest=20.0,
        failures=failed.with_columns(**dict.fromkeys(("error", "message", "where", "line"), text)),
    )
