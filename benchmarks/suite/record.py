"""What one session of benchmarks measured: every raw sample, as one JSON file with a schema.

The schema is committed (record.schema.json) and tested: a change of it is a new SCHEMA_VERSION.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.suite.datasets import Card
from benchmarks.suite.stats import Interval, median

SCHEMA_VERSION: Literal[3] = 3
SCHEMA_FILE = Path(__file__).parents[1] / "record.schema.json"

REPORT = "report"
"""The phase of a run that comes after its output is published."""

State = Literal["ok", "wrong", "failed", "missing"]
"""`wrong`: it wrote something else than was expected. `missing`: it could not be installed."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Iteration(_Model):
    """One time the work was done."""

    work_seconds: float
    """Wall-clock seconds from asking for the work until it is done; start-up is apart."""
    rows: int | None = None
    """As the subject tells it; what was written is counted and checked apart."""
    cpu_seconds: float | None = None
    """Processor seconds of the work: of a peer that is one process, that process; of chunkmap, its
    workers. Null for others, and where the processes changed meanwhile."""
    files: int | None = None
    """Parquet objects of the output, as S3 lists them."""
    bytes: int | None = None
    """Bytes of those objects."""
    figures: dict[str, Any] = {}
    """What else the subject tells, such as the seconds of its phases."""


class Process(_Model):
    """One process of a subject; its first iteration is cold, the others are warm."""

    round: int
    """Which of the interleaved repeats, from 0."""
    startup_seconds: float
    """From starting the process until it asks for its first work."""
    peak_bytes: int
    """Of the process tree and the services that work for it, over start-up and all iterations."""
    cpu_seconds: float
    """User and system, of the same processes over the same time."""
    load: float
    """The machine's load average (1 minute) before it started."""
    iterations: tuple[Iteration, ...]


class Traffic(_Model):
    """What one iteration asked S3 for, counted by a proxy in a pass that is not timed."""

    requests: dict[str, dict[str, int]]
    """Kind of request to status to number."""
    bytes_read: int
    """Of answers' bodies."""
    bytes_written: int
    """Of requests' bodies."""

    @property
    def moved(self) -> int:
        """Bytes both ways."""
        return self.bytes_read + self.bytes_written

    @property
    def total(self) -> int:
        """Requests of all kinds."""
        return sum(sum(by_status.values()) for by_status in self.requests.values())


class Result(_Model):
    """One subject's measurements on one workload."""

    workload: str
    subject: str
    title: str
    workers: int = 0
    """Worker threads of a scaling curve; 0 for the cluster as it is."""
    tasks: int = 0
    """Chunks or tasks, where their cost is what is measured."""
    state: State
    error: str = ""
    versions: dict[str, str] = {}
    processes: tuple[Process, ...] = ()
    codecs: tuple[str, ...] = ()
    """Compression of the output's column chunks, as a footer of it says."""
    traffic: Traffic | None = None

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells it from the others of a record."""
        return self.workload, self.subject, self.workers, self.tasks

    def cold(self) -> list[float]:
        """Seconds of each process's first iteration."""
        return [
            process.iterations[0].work_seconds for process in self.processes if process.iterations
        ]

    def warm(self) -> list[float]:
        """Seconds of all later iterations."""
        return [i.work_seconds for process in self.processes for i in process.iterations[1:]]

    def samples(self) -> list[float]:
        """What comparisons are made of: warm seconds where there are any, else cold.

        Where the cost of a task is measured they are divided by the number of tasks.
        """
        seconds = [each.work_seconds for each in self.compared()]
        return [value / self.tasks for value in seconds] if self.tasks else seconds

    def compared(self) -> list[Iteration]:
        """The iterations that comparisons are made of: warm where there are any, else cold."""
        warm = [each for process in self.processes for each in process.iterations[1:]]
        return warm or [each for process in self.processes for each in process.iterations]

    def cpu_samples(self) -> list[float]:
        """Processor seconds of the work."""
        return [each.cpu_seconds for each in self.compared() if each.cpu_seconds]

    def phase_samples(self) -> list[dict[str, float]]:
        """Seconds of each phase of a run, as chunkmap tells them."""
        told = [each.figures.get("phases") for each in self.compared()]
        return [phases for phases in told if phases]

    def published_samples(self) -> list[float]:
        """Seconds from the call until the output is published: all phases but the report."""
        return [sum(p.values()) - p.get(REPORT, 0.0) for p in self.phase_samples()]

    def phases(self) -> dict[str, float]:
        """Median seconds of each phase, in the order of a run."""
        samples = self.phase_samples()
        names = dict.fromkeys(name for phases in samples for name in phases)
        return {name: median([p.get(name, 0.0) for p in samples]).value for name in names}

    def output_bytes(self) -> float | None:
        """Median of the bytes written by an iteration; None where it was not listed."""
        return self._listed("bytes")

    def output_files(self) -> float | None:
        """Median of the objects written by an iteration; None where it was not listed."""
        return self._listed("files")

    def requests_per_file(self) -> float | None:
        """S3 requests of one iteration for each object that it wrote; None where not counted."""
        files = self.output_files()
        return self.traffic.total / files if self.traffic is not None and files else None

    def _listed(self, name: Literal["files", "bytes"]) -> float | None:
        iterations = [each for process in self.processes for each in process.iterations]
        values = [getattr(each, name) for each in iterations if getattr(each, name) is not None]
        return median(values).value if values else None

    def startup(self) -> Interval:
        """Seconds to start up."""
        return median([process.startup_seconds for process in self.processes])

    def peak_bytes(self) -> float:
        """Median peak of memory."""
        return median([process.peak_bytes for process in self.processes]).value

    def cpu_seconds(self) -> float:
        """Median CPU seconds of a whole process."""
        return median([process.cpu_seconds for process in self.processes]).value


class Noise(_Model):
    """The A/A run: the same subject measured as if it were two."""

    workload: str
    pairs: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    """Subject to the two sets of samples."""
    floor: float
    """As a share: a ratio within 1 ± this is no difference."""
    attempts: int = 1
    """A/A runs until the floor was as low as was asked for; the last one counts."""


class Machine(_Model):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    commit: str
    dirty: bool
    """There were uncommitted changes."""
    branch: str = ""
    packages: dict[str, str] = {}
    load: float
    """1-minute load average before anything was measured."""
    cluster_threads: int = 0
    """Worker threads of the cluster that chunkmap ran on."""


class Record(_Model):
    """One session."""

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    """2: `repeat` and `iterations` may be null. 3: iterations have `cpu_seconds`, `files` and
    `bytes`, results `codecs`, noise `attempts`. Records of earlier versions are read as well."""
    id: str
    created: datetime
    scale: str
    repeat: int | None = Field(ge=1)
    """Processes of each subject on each workload; null in records that had a default by suite."""
    iterations: int | None = Field(ge=1)
    """Times that each of them does the work, if it was asked for."""
    command: str
    """That gives this session again."""
    request: dict[str, Any] = {}
    """The same for `--resume`: see session.Request."""
    machine: Machine
    datasets: tuple[Card, ...] = ()
    noise: Noise | None = None
    results: tuple[Result, ...] = ()
    complete: bool = False
    """False while it is under way, or when it was interrupted."""

    def of(self, workload: str, subject: str) -> list[Result]:
        """The results of a subject on a workload: several, where it is a curve."""
        return [r for r in self.results if (r.workload, r.subject) == (workload, subject)]

    def workloads(self) -> list[str]:
        """Names of workloads, in the order they were measured."""
        return list(dict.fromkeys(result.workload for result in self.results))

    @property
    def floor(self) -> float:
        """The noise floor; infinite where none was measured, so that nothing is a difference."""
        return self.noise.floor if self.noise is not None else float("inf")


def load_record(path: Path) -> Record:
    """Read a record.

    Raises:
        pydantic.ValidationError: it is not a record of this version.
    """
    return Record.model_validate_json(path.read_bytes())


def records_in(folder: Path) -> list[Record]:
    """All records of a folder, oldest first."""
    return sorted((load_record(path) for path in folder.glob("*.json")), key=lambda r: r.created)


def with_results(record: Record, results: Iterable[Result]) -> Record:
    """The record with these results in place of those of the same key, or after them."""
    merged = {result.key: result for result in (*record.results, *results)}
    return record.model_copy(update={"results": tuple(merged.values())})
