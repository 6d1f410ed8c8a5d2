"""What a peer's script is given and what it prints. Standard library only.

The specification is a JSON file:

    {"workload": "row-map", "input": "s3://…/data/", "output": "s3://…/out/", "params": {},
     "transform": "row_map", "cores": 2, "iterations": 2, "tasks": 0}

S3 is found by the standard AWS variables. The work is done `iterations` times, each time into
`<output><number>/`: the first is cold, the others are warm. With `"serve": true` it is done each
time a line arrives on standard input instead, and a line is printed for each.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

State = TypeVar("State")
LAUNCHED = "BENCHMARK_LAUNCHED"
"""Variable: when the suite started this process, in Unix seconds."""
_loaded = time.time()


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to be done."""

    workload: str
    input: str
    """Prefix of the Parquet files, ending with a slash."""
    output: str
    """Prefix to write under, ending with a slash."""
    transform: str
    """Name of a function in benchmarks.transforms."""
    params: Mapping[str, Any] = field(default_factory=dict)
    cores: int = 2
    iterations: int = 1
    tasks: int = 0
    """How many tasks that do nothing, where that is the workload."""
    serve: bool = False
    job: Mapping[str, Any] = field(default_factory=dict)
    """The job file, for chunkmap itself."""
    workers: int = 0
    """Worker threads, where a workload is run on several numbers of them."""
    finalize: str = ""
    """Name of a function in benchmarks.transforms that comes last, where a workload reduces."""
    keys: Sequence[str] = ()
    """Columns whose values are to be the output's Hive partitions."""

    def glob(self) -> str:
        """The input as a pattern of files."""
        return self.input + "**/*.parquet"


@dataclass(frozen=True, slots=True)
class S3:
    """Where S3 is, from the standard variables."""

    endpoint: str
    key: str
    secret: str
    region: str

    @property
    def host(self) -> str:
        """The endpoint without its scheme."""
        return self.endpoint.partition("://")[2].rstrip("/")

    def object_store(self) -> dict[str, str]:
        """Options as Polars and other users of Rust's object_store spell them."""
        return {
            # Under both names: a variable AWS_ENDPOINT_URL_S3 wins over the plain one.
            "aws_endpoint_url": self.endpoint,
            "aws_endpoint_url_s3": self.endpoint,
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "aws_region": self.region,
            "aws_allow_http": "true",
        }

    def fsspec(self) -> dict[str, Any]:
        """Options as s3fs spells them."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": self.region},
        }

    def arrow(self) -> dict[str, str]:
        """Arguments of pyarrow.fs.S3FileSystem."""
        return {
            "access_key": self.key,
            "secret_key": self.secret,
            "endpoint_override": self.endpoint,
            "region": self.region,
        }


def s3() -> S3:
    """S3 as the environment names it."""
    get = os.environ.get
    return S3(
        get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com",
        get("AWS_ACCESS_KEY_ID", ""),
        get("AWS_SECRET_ACCESS_KEY", ""),
        get("AWS_REGION") or get("AWS_DEFAULT_REGION") or "us-east-1",
    )


Work = Callable[[State, Spec, str], "int | dict[str, Any] | None"]
"""Does the work once, given what start-up made, the specification and where to write. Returns
rows, or figures of its own, or nothing."""


def own_cpu(state: object) -> float:
    """Processor seconds of this process, for peers that are no more than it."""
    return time.process_time()


def main(
    start: Callable[[Spec], State],
    work: Mapping[str, Work[State]],
    stop: Callable[[State], None] = lambda state: None,
    packages: tuple[str, ...] = (),
    cpu: Callable[[State], float | None] = lambda state: None,
) -> None:
    """Run a peer's script: start up, do the work, print one JSON line.

    Args:
        start: Imports, clusters, connections: all that a user pays once.
        work: Name of a workload, or `map` for any that maps, to what does it.
        stop: Ends what `start` started.
        packages: Distributions whose versions are reported.
        cpu: Processor seconds that the processes which work have taken so far; None: not known.
    """
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    # Libraries print; the one line of JSON must stand alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    report: dict[str, Any] = {"versions": _versions(packages), "iterations": []}
    code = 0
    try:
        do = work.get(spec.workload) or work["map"]
        state = start(spec)
        try:
            report["startup_seconds"] = time.time() - float(os.environ.get(LAUNCHED, _loaded))
            if spec.serve:
                _serve(do, state, spec, report, answers)
                return
            for number in range(spec.iterations):
                report["iterations"].append(_metered(do, state, spec, number, cpu))
        finally:
            stop(state)
    except BaseException as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        report["error"] = f"{type(error).__name__}: {error} {notes}".strip()[:4000]
        traceback.print_exc()
        code = 1
    print(json.dumps(report), file=answers, flush=True)
    sys.stderr.flush()
    # Some libraries' threads would keep the process for minutes.
    os._exit(code)


def _serve(do: Work[State], state: State, spec: Spec, report: dict[str, Any], answers: Any) -> None:
    print(json.dumps(report), file=answers, flush=True)
    for number, _ in enumerate(sys.stdin):
        print(json.dumps(_timed(do, state, spec, number)), file=answers, flush=True)


def _metered(
    do: Work[State], state: State, spec: Spec, number: int, cpu: Callable[[State], float | None]
) -> dict[str, Any]:
    before = cpu(state)
    figures = _timed(do, state, spec, number)
    after = cpu(state)
    if before is not None and after is not None:
        figures.setdefault("cpu_seconds", after - before)
    return figures


def _timed(do: Work[State], state: State, spec: Spec, number: int) -> dict[str, Any]:
    output = f"{spec.output}{number}/"
    clock = time.perf_counter()
    given = do(state, spec, output)
    seconds = time.perf_counter() - clock
    figures = given if isinstance(given, dict) else {"rows": given}
    return {"work_seconds": seconds, "output": output, **figures}


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
