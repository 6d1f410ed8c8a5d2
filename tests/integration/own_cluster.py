"""Schedulers and workers as processes of their own, beside the shared world's S3 and Prefect."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from pipeline.cluster.certificates import make
from pipeline.cluster.local.processes import HOST, answers, free_ports
from pipeline.config.sections import DaskSettings
from tests.faults.world import Process, await_that
from tests.integration.world import REPOSITORY, World

PATIENCE = 180.0
"""Seconds; a process that imports Prefect and Dask may take long on a busy machine."""


@dataclass
class OwnCluster:
    """A scheduler, its workers, and the variables with which commands reach it."""

    world: World
    folder: Path
    certificates: Path
    port: int
    scheduler: Process
    workers: dict[str, Process] = field(default_factory=dict)
    pages: dict[str, int] = field(default_factory=dict)
    """The port of each worker's metrics."""

    @property
    def address(self) -> str:
        return f"tls://{HOST}:{self.port}"

    def tls(self, part: str, folder: Path | None = None) -> dict[str, str]:
        """The settings of a process's certificate."""
        folder = folder or self.certificates
        return {
            "CHUNKMAP_DASK__TLS__CA": str(folder / "ca.pem"),
            "CHUNKMAP_DASK__TLS__CERT": str(folder / f"{part}.pem"),
            "CHUNKMAP_DASK__TLS__KEY": str(folder / f"{part}-key.pem"),
        }

    @property
    def client(self) -> dict[str, str]:
        """Variables of a command that uses this cluster."""
        return {"CHUNKMAP_DASK__SCHEDULER": self.address, **self.tls("client")}

    @property
    def settings(self) -> DaskSettings:
        """The same, for a client in this process."""
        files = {"ca": "ca.pem", "cert": "client.pem", "key": "client-key.pem"}
        tls = {name: self.certificates / file for name, file in files.items()}
        return DaskSettings.model_validate({"scheduler": self.address, "tls": tls})

    def add(self, name: str, **more: str) -> Process:
        """Start a worker and wait until it serves."""
        [pages] = free_ports(1)
        settings = self.world.settings
        environment = {
            **_bare(),
            **settings.s3.environment(),
            **self.tls("worker"),
            "CHUNKMAP_DASK__SCHEDULER": self.address,
            "CHUNKMAP_TRANSFORMS__ALLOW": "shop",
            "CHUNKMAP_TRANSFORMS__PATH": str(self.world.root),
            "CHUNKMAP_LOGS__FORMAT": "json",
            "CHUNKMAP_DASK__STOP_SECONDS": "10",
            "CHUNKMAP_DASK__RESOURCES": "{GPU: 1}",
            **more,
        }
        command = (sys.executable, "-m", "pipeline.cluster.worker", "--name", name)
        arguments = ("--dashboard-address", f"{HOST}:{pages}")
        worker = Process(name, (*command, *arguments), environment, self.folder)
        self.workers[name], self.pages[name] = worker.start(), pages
        await_that(lambda: self._serves(worker, pages), f"worker {name}", PATIENCE)
        return worker

    def _serves(self, worker: Process, port: int) -> bool:
        assert worker.runs, worker.said()
        if "Registered to" not in worker.said(50_000):
            return False
        with urlopen(f"http://{HOST}:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)

    def metrics(self, name: str) -> dict[str, float]:
        """What a worker tells Prometheus: values by name and labels, as the text has them."""
        with urlopen(f"http://{HOST}:{self.pages[name]}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {key: float(value) for key, value in pairs}

    def lines(self, name: str) -> list[dict[str, str]]:
        """A worker's log lines that are JSON: those since it set up its logs."""
        text = self.workers[name].said(10**6).splitlines()
        return [json.loads(line) for line in text if line.startswith("{")]


def _bare() -> dict[str, str]:
    foreign = ("CHUNKMAP_", "AWS_", "PREFECT_", "DASK_")
    kept: Mapping[str, str] = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(REPOSITORY)}


@contextmanager
def own_cluster(world: World, folder: Path) -> Iterator[OwnCluster]:
    """A scheduler under TLS, and one worker `one`; stopped at the end."""
    certificates = folder / "certs"
    make(certificates)
    port, pages = free_ports(2)
    command = (sys.executable, "-m", "pipeline.cluster.scheduler", "--host", HOST)
    arguments = ("--port", str(port), "--dashboard-address", f"{HOST}:{pages}")
    scheduler = Process("scheduler", (*command, *arguments), {}, folder)
    cluster = OwnCluster(world, folder, certificates, port, scheduler)
    scheduler.environment = {**_bare(), **cluster.tls("scheduler")}
    scheduler.start()
    try:
        await_that(lambda: answers(port), "the scheduler", PATIENCE)
        cluster.add("one")
        yield cluster
    finally:
        for process in (*cluster.workers.values(), scheduler):
            process.kill()  # Each would take seconds to say goodbye to those that end as well.
