"""The world of the fault suite: a real S3 server behind the proxy, datasets, jobs and drivers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import yaml

from pipeline.cluster.local import services
from pipeline.cluster.local.credentials import s3_settings
from pipeline.cluster.local.processes import free_ports
from pipeline.config.job import Job, parse_job
from pipeline.config.settings import Settings
from pipeline.errors import ChunkmapError
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, open_storage
from tests.contracts.source import ROOT
from tests.faults.proxy import Proxy, running_proxy
from tests.faults.rules import Rule
from tests.support import forks

FILES, GROUPS, ROWS = 12, 2, 500
"""Objects, row groups of an object, rows of a row group: a row group is a chunk."""
CHUNKS = FILES * GROUPS
COPIED_BYTES = 5445
"""About half of the outputs are larger: these are uploads, the others are copied."""
START_SECONDS = 60.0
RUN_SECONDS = 120.0
TRANSFORMS = "tests.faults.faulty"
CHECKED: dict[str, Any] = {
    "checks": {
        "rows": {"schema": f"{TRANSFORMS}:Kept", "severity": "quarantine"},
        "run": [{"check": "unique", "columns": ["id"]}],
    }
}
"""Keys of a job that checks rows and the whole."""
READER = ("READER0123456789", "only-reads-and-lists")
"""Credentials that may read and list, and nothing else."""


class Process:
    """A process of the world: started, killed, started again."""

    def __init__(
        self, name: str, command: tuple[str, ...], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.command = command
        self.environment = dict(environment)
        self.folder = folder
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all that it started (they share its session)."""
        if self.runs:
            os.killpg(self.pid, number)

    def kill(self, *_: object) -> None:
        """Kill -9, and see it dead."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def wait(self, seconds: float) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.wait(seconds)

    def stop(self) -> None:
        if self._process is None:
            return
        if self.runs:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process.wait(10)

    def said(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:]


def await_that(condition: Any, what: str, seconds: float = START_SECONDS) -> None:
    """Wait for another process to get somewhere where it gives no other sign."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


@dataclass
class World:
    """An S3 server, the proxy before it, and where everything is kept."""

    folder: Path
    weed: Process
    port: int
    access: dict[str, str]
    proxy: Proxy
    _datasets: dict[str, str] = field(default_factory=dict)

    def settings(self, client: str | None = None) -> Settings:
        """Settings of a client of the proxy, or of one that goes straight to the server."""
        said: dict[str, Any] = {**self.access, "copied_bytes": COPIED_BYTES}
        if client is not None:
            said["endpoint_url"] = self.proxy.endpoint(client)
        return Settings.model_validate(
            {
                "s3": said,
                "transforms": {"allow": [TRANSFORMS], "path": [str(ROOT)]},
                "batches": {"flush_chunks": 2},
                "state_dir": self.folder / "state",
            }
        )

    def environment(self, client: str) -> dict[str, str]:
        """Variables that make another process such a client."""
        s3 = self.settings(client).s3.environment()
        return {
            **os.environ,
            **s3,
            "PYTHONPATH": str(ROOT),
            "CHUNKMAP_TRANSFORMS__ALLOW": f'["{TRANSFORMS}"]',
            "CHUNKMAP_TRANSFORMS__PATH": json.dumps([str(ROOT)]),
            "CHUNKMAP_BATCHES__FLUSH_CHUNKS": "2",
            "CHUNKMAP_S3__COPIED_BYTES": str(COPIED_BYTES),
            "CHUNKMAP_STATE_DIR": str(self.folder / "state"),
            "POLARS_MAX_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
        }

    @cached_property
    def storage(self) -> Storage:
        """Straight to the server."""
        return open_storage(self.settings())

    @cached_property
    def shared_input(self) -> str:
        """The usual dataset, for scenarios that do not touch it."""
        uri = f"s3://{services.BUCKET}/shared-{uuid.uuid4().hex[:6]}/in/"
        self.write(uri)
        return uri

    def write(self, uri: str, files: int = FILES) -> None:
        """A dataset of unique row ids."""
        for number in range(files):
            first = number * GROUPS * ROWS
            self.storage.put(f"{uri}in-{number:03d}.parquet", parquet(rows(first, GROUPS * ROWS)))

    def await_s3(self) -> None:
        await_that(self._serves, "the S3 server")

    def _serves(self) -> bool:
        assert self.weed.runs, self.weed.said()
        return services._has_bucket(self.weed.folder, self.port)

    def restart_s3(self) -> None:
        self.weed.start()
        self.await_s3()


def rows(first: int, count: int) -> pl.DataFrame:
    """Rows with ids of their own."""
    ids = pl.int_range(first, first + count, eager=True)
    return pl.DataFrame({"id": ids, "value": ids * 7 % 1013, "text": ids.cast(pl.String)})


def parquet(frame: pl.DataFrame, group: int = ROWS) -> bytes:
    """A frame as a Parquet file with row groups of so many rows."""
    buffer = io.BytesIO()
    pq.write_table(frame.to_arrow(), buffer, row_group_size=group)
    return buffer.getvalue()


@contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Start the S3 server and the proxy; stop both."""
    folder = folder.resolve()
    ports = free_ports(services.S3_PORTS)
    access = s3_settings(folder, ports[0])
    _add_reader(folder / "s3.json")
    launch = services.s3(folder, ports)
    weed = Process("weed", launch.command, launch.environment, folder)
    with running_proxy(ports[0]) as proxy:
        world = World(folder, weed, ports[0], access, proxy)
        weed.start()
        try:
            world.await_s3()
            yield world
        finally:
            weed.stop()


def _add_reader(config: Path) -> None:
    said = json.loads(config.read_text())
    credentials = [{"accessKey": READER[0], "secretKey": READER[1]}]
    reader = {"name": "reader", "credentials": credentials, "actions": ["Read", "List"]}
    config.write_text(json.dumps({"identities": [*said["identities"], reader]}))


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    summary: dict[str, Any]
    """What it printed; empty when it failed before it could."""
    said: str
    """On standard error."""
    seconds: float


class Command:
    """A driver as a process: the `chunkmap` command, or its serial twin."""

    def __init__(
        self,
        code: str,
        words: tuple[str, ...],
        environment: Mapping[str, str],
        folder: Path,
        *,
        flows: bool = False,
    ) -> None:
        self._since = time.monotonic()
        self._streams = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115
        numbers = [stream.fileno() for stream in self._streams]
        with open(os.devnull) as nothing:
            self._process = forks.forks(flows=flows).start(
                _TRACED + code, words, str(folder), environment, nothing.fileno(), *numbers
            )

    def kill(self, *_: object) -> None:
        """Kill -9, at once."""
        self._process.kill()

    @property
    def has_ended(self) -> bool:
        return self._process.has_ended

    def wait(self, seconds: float = RUN_SECONDS) -> Ended:
        """Its end; when it does not come in time, the process is killed and the test fails."""
        try:
            code = self._process.wait(seconds)
        except TimeoutError:
            self._process.kill(signal.SIGABRT)
            self._process.wait(RUN_SECONDS)
            error = self._printed()[1][-6000:]
            raise AssertionError(f"no end within {seconds:g} s: {error}") from None
        text, error = self._printed()
        summary = json.loads(text) if text.startswith("{") else {}
        return Ended(code, summary, error[-4000:], time.monotonic() - self._since)

    def _printed(self) -> list[str]:
        printed = []
        for stream in self._streams:
            stream.seek(0)
            printed.append(stream.read().decode())
            stream.close()
        return printed


_TRACED = "import faulthandler; faulthandler.enable()\n"
"""One that is ended with SIGABRT says where it was."""


@dataclass
class Scenario:
    """One job over one dataset, with an output of its own."""

    world: World
    name: str
    input: str
    transform: str = "doubled"
    params: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    """Further keys of the job."""
    layout: dict[str, Any] = field(default_factory=dict)
    """Further keys of the job's output."""
    mode: str = "error"
    output: str = ""

    def __post_init__(self) -> None:
        self.output = self.output or f"s3://{services.BUCKET}/{self.name}/out/"

    @property
    def storage(self) -> Storage:
        return self.world.storage

    @cached_property
    def file(self) -> Path:
        """The job file."""
        said = {
            "name": self.name,
            "input": {"uri": self.input},
            "chunks": {"max_rows": ROWS},
            "transform": f"{TRANSFORMS}:{self.transform}",
            "params": self.params,
            "output": {"uri": self.output, "mode": self.mode, **self.layout},
            **self.changes,
        }
        path = self.world.folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(said))
        return path

    @property
    def job(self) -> Job:
        return parse_job(self.file.read_text(), str(self.file))

    @property
    def ledger(self) -> Ledger:
        """Of the newest run."""
        record = runs_of(self.storage, self.output)[-1]
        return Ledger(self.storage, record.output, record.run)

    def start_serially(self, client: str = "driver", **environment: str) -> Command:
        """A process that runs the job without Prefect and Dask."""
        code = (
            "import sys; from tests.faults.serial_driver import main; sys.exit(main(sys.argv[1]))"
        )
        variables = {**self.world.environment(client), **environment}
        return Command(code, (str(self.file),), variables, self.world.folder)

    def run_here(self, resume: ResumeOptions | None = None) -> RunSummary:
        """Run the job serially in this process, which is the proxy's client `driver`."""
        settings = self.world.settings("driver")
        return run_serially(self.job, settings, open_storage(settings), resume)

    def run_read_only(self) -> RunSummary:
        """Run the job with credentials that may not write."""
        said = self.world.settings("driver").model_dump()
        said["s3"] |= {"access_key_id": READER[0], "secret_access_key": READER[1]}
        settings = Settings.model_validate(said)
        return run_serially(self.job, settings, open_storage(settings))

    def run_here_until_done(self, tries: int = 3) -> RunSummary:
        """The same command again until it succeeds."""
        for _ in range(tries - 1):
            try:
                return self.run_here()
            except ChunkmapError:
                continue
        return self.run_here()

    def inject(self, *rules: Rule) -> None:
        """What goes wrong from here on."""
        self.world.proxy.reset(*rules)
