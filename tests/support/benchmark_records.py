"""Made-up peers, datasets and records."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from benchmarks.peers.protocol import Spec
from benchmarks.suite.datasets import Card
from benchmarks.suite.digest import digest
from benchmarks.suite.expected import Expected
from benchmarks.suite.measure import Conditions, Contender
from benchmarks.suite.record import Iteration, Machine, Noise, Process, Record, Result, Traffic
from benchmarks.suite.stats import noise_floor
from benchmarks.suite.subjects import Answer
from benchmarks.suite.workloads import Workload

FRAME = pl.DataFrame(
    {"id": [1, 2, 3], "value": [0.5, 1.5, 2.5], "name": ["a", "b", "c"]},
)
SCHEMA = dict(FRAME.schema)
EXPECTED = Expected(SCHEMA, digest(FRAME, SCHEMA))
WORKLOAD = Workload("made-up", "three rows", "map", "nowhere", "same")


@dataclass(slots=True)
class MadeUp:
    """A subject that writes a frame, or does worse."""

    name: str
    writes: pl.DataFrame | None = field(default_factory=lambda: FRAME)
    seconds: Callable[[int], float] = lambda call: 1.0
    error: str = ""
    codec: Literal["zstd", "uncompressed"] = "zstd"
    wrote_bytes: int = 0
    """Of the last result."""
    calls: list[Spec] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def run(self, spec: Spec, variables: Mapping[str, str]) -> Answer:
        self.calls.append(spec)
        self.order.append(self.name)
        if self.error:
            return Answer(error=self.error)
        iterations = []
        for number in range(spec.iterations):
            output = f"{spec.output}{number}/"
            if self.writes is not None:
                folder = Path(output.removeprefix("file://"))
                folder.mkdir(parents=True, exist_ok=True)
                assert not list(folder.iterdir()), "something was left there by an earlier process"
                self.writes.write_parquet(folder / "result.parquet", compression=self.codec)
                self.wrote_bytes = (folder / "result.parquet").stat().st_size
            took = self.seconds(len(self.calls))
            iterations.append(
                {"work_seconds": took, "output": output, "rows": 3, "extra": 1, "cpu_seconds": 0.5}
            )
        return Answer(0.25, tuple(iterations), {"made-up": "1.0"}, "", 10**6, 0.5)


def contender(subject: MadeUp) -> Contender:
    return Contender(subject.name, subject.name.title(), subject)


def conditions(folder: Path, repeat: int = 3) -> Conditions:
    return Conditions(folder.as_uri(), "session", "s", repeat, 2)


def card(name: str = "lineitem") -> Card:
    return Card(
        name=name,
        scale="s",
        uri=f"s3://made-up/{name}/",
        version=1,
        seed=1,
        rows=6_001_215,
        files=8,
        row_groups=28,
        bytes=181_525_717,
        columns={"id": "int64"},
        made_seconds=1.0,
    )


def result(
    workload: str,
    subject: str,
    seconds: Sequence[float],
    *,
    workers: int = 0,
    tasks: int = 0,
) -> Result:
    """An ok result: each sample is the warm iteration of a process, cold ones take twice as long"""
    return Result(
        workload=workload,
        subject=subject,
        title=subject.replace("-", " ").title() if subject != "chunkmap" else subject,
        workers=workers,
        tasks=tasks,
        state="ok",
        versions={"python": "3.11.7", subject: "1.2.3"},
        processes=tuple(
            Process(
                round=number,
                startup_seconds=0.5,
                peak_bytes=400_000_000,
                cpu_seconds=2 * value,
                load=0.1,
                iterations=(
                    Iteration(work_seconds=2 * value, rows=3),
                    Iteration(
                        work_seconds=value,
                        rows=3,
                        cpu_seconds=1.5 * value,
                        files=50,
                        bytes=9_000_000,
                        figures={"phases": {"map": value}},
                    ),
                ),
            )
            for number, value in enumerate(seconds)
        ),
        codecs=("ZSTD",),
        traffic=Traffic(
            requests={"GetObject": {"206": 100, "404": 2}, "PutObject": {"200": 3}},
            bytes_read=10**8,
            bytes_written=10**7,
        )
        if not workers and not tasks
        else None,
    )


def bad(workload: str, subject: str, state: str, error: str) -> Result:
    return Result.model_validate(
        {
            "workload": workload,
            "subject": subject,
            "title": subject,
            "state": state,
            "error": error,
        }
    )


def around(value: float) -> list[float]:
    """Five samples within 2% of a value."""
    return [value * factor for factor in (0.98, 0.99, 1.0, 1.01, 1.02)]


def record(*results: Result, day: int = 1, noise: bool = True, **changes: object) -> Record:
    pairs = {"chunkmap": (tuple(around(1.0)), tuple(around(1.01)))}
    floor = noise_floor(list(pairs.values()))
    made = Record(
        id=f"202601{day:02d}-000000-abcd",
        created=datetime.datetime(2026, 1, day, tzinfo=datetime.UTC),
        scale="s",
        repeat=5,
        iterations=2,
        command="chunkmap bench run",
        machine=Machine(
            cpu="Made-up CPU",
            cores=2,
            memory_bytes=8 * 10**9,
            system="Linux 6.1",
            python="3.11.7",
            commit="0123456789ab",
            dirty=False,
            load=0.1,
            cluster_threads=2,
        ),
        datasets=(card(),),
        noise=Noise(workload="row-map", pairs=pairs, floor=floor) if noise else None,
        results=results,
        complete=True,
    )
    return made.model_copy(update=changes)


def full_record(day: int = 1, factor: float = 1.0) -> Record:
    """A record with everything in it: ratios, curves, a wrong, a failed and a missing peer."""
    hostile = "ValueError: </script><script>alert(1)</script> | pipes & <b>tags</b>\n" * 3
    return record(
        result("row-map", "chunkmap", around(2.0 * factor)),
        result("row-map", "polars", around(2.01)),
        result("row-map", "duckdb", around(3.0)),
        result("row-map", "ray-data", around(20.0)),
        bad("row-map", "daft", "wrong", "wrong result: 2 rows, expected 3"),
        bad("row-map", "pyspark", "missing", "PySpark needs `java`, which is not installed"),
        bad("row-map", "dask-dataframe", "failed", hostile),
        result("few-rows", "chunkmap", around(1.5)),
        result("few-rows", "polars", around(1.0)),
        *(result("wait", "chunkmap", around(100 / n + 0.5), workers=n) for n in (1, 8, 32)),
        *(result("ledger", "chunkmap", around(n * 3e-4), tasks=n) for n in (100, 1000, 10_000)),
        *(result("ledger", "ray-data", around(n * 1e-3), tasks=n) for n in (100, 1000, 10_000)),
        result("ledger", "prefect-naive", around(20.0), tasks=200),
        day=day,
    )
