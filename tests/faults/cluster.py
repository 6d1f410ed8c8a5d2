"""A Prefect server and a Dask cluster of processes that can each be killed and started again."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from distributed import Client

from pipeline.cluster.local import services
from pipeline.cluster.local.credentials import prefect_password
from pipeline.cluster.local.processes import HOST, answers, free_ports
from pipeline.cluster.resources import ALLOWED_FAILURES, PRELOAD
from pipeline.config.sections import PrefectSettings
from tests.faults.world import Command, Process, Scenario, World, await_that
from tests.support import forks

DASK = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(ALLOWED_FAILURES),
    # A stopped worker is given up after this long (by default 5 minutes).
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "12s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
}


@dataclass
class Cluster:
    """Everything that `chunkmap run` talks to."""

    world: World
    prefect: Process
    scheduler: Process
    access: dict[str, str]
    """Variables that reach the Prefect server."""
    address: str
    workers: dict[str, Process] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    """By which the scheduler knows the workers."""

    # -- processes ----------------------------------------------------------------------------

    def environment(self, client: str) -> dict[str, str]:
        return {**self.world.environment(client), **DASK, **self.access}

    def add_worker(self, name: str, *, nanny: bool = False, **more: str) -> Process:
        """Start a worker whose S3 requests the proxy knows by its name."""
        # The scheduler may still hold the name of the one that was killed.
        label = f"{name}-{uuid.uuid4().hex[:4]}"
        arguments = ["--name", label, "--nthreads", "1", "--nworkers", "1", "--host", HOST]
        arguments += ["--no-dashboard", "--nanny" if nanny else "--no-nanny"]
        arguments += ["--local-directory", str(self.world.folder / "spill")]
        arguments += ["--memory-limit", more.pop("memory", "0")]
        for module in PRELOAD:
            arguments += ["--preload", module]
        command = (sys.executable, "-m", "distributed.cli.dask_worker", self.address, *arguments)
        environment = {**self.environment(name), **more}
        worker = Process(name, command, environment, self.world.folder).start()
        self.workers[name] = worker
        self.labels[name] = label
        return worker

    def repair(self) -> None:
        """Bring back what a scenario killed: two plain workers, and what they need."""
        if not self.prefect.runs:
            self.prefect.start()
        if not self.scheduler.runs:
            self.scheduler.start()
            await_that(self.has_scheduler, "the scheduler")
        for name, worker in list(self.workers.items()):
            if name not in ("w0", "w1"):
                worker.stop()
                del self.workers[name]
        for name in ("w0", "w1"):
            if name not in self.workers or not self.workers[name].runs:
                self.add_worker(name)
        self.await_workers(2)
        await_that(self.has_prefect, "the Prefect server")

    def await_workers(self, count: int) -> None:
        def there() -> bool:
            for name in [n for n in ("w0", "w1") if n in self.workers and not self.workers[n].runs]:
                self.add_worker(name)  # One whose scheduler had given it up has ended since.
            with Client(self.address, set_as_default=False, timeout=20) as client:
                names = {w["name"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}
            return names == {self.labels[name] for name in self.workers} and len(names) == count

        await_that(there, f"{count} workers")

    def has_scheduler(self) -> bool:
        assert self.scheduler.runs, self.scheduler.said()
        return answers(int(self.address.rpartition(":")[2]))

    def has_prefect(self) -> bool:
        assert self.prefect.runs, self.prefect.said()
        return services._status_of(self.access["PREFECT_API_URL"] + "/health") == 200

    def kill_workers(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.kill()

    # -- commands -----------------------------------------------------------------------------

    def start(self, scenario: Scenario, *flags: str, client: str = "driver") -> Command:
        """`chunkmap run JOB --json`."""
        return self.give("run", str(scenario.file), *flags, client=client)

    def give(self, *words: str, client: str = "driver") -> Command:
        """A command of `chunkmap`, with `--json`."""
        environment = {**self.environment(client), "CHUNKMAP_DASK__SCHEDULER": self.address}
        words = (*words, "--json")
        return Command(forks.MAIN, words, environment, self.world.folder, flows=True)


def worker_process(nanny: Process) -> psutil.Process:
    """The worker that a nanny watches over."""
    children = psutil.Process(nanny.pid).children()
    return max(children, key=lambda child: child.memory_info().rss)


def stop_signal(process: Process) -> None:
    """SIGSTOP."""
    process.signal(signal.SIGSTOP)


@contextmanager
def running_cluster(world: World) -> Iterator[Cluster]:
    """Start everything side by side; stop it at the end."""
    prefect_port, scheduler_port = free_ports(2)
    root = _made(world.folder / "prefect-root")
    launch = services.prefect(root, (prefect_port,))
    given = {"api_url": launch.address, "auth_string": prefect_password(root)}
    access = PrefectSettings.model_validate(given).environment()
    _made(launch.folder)
    prefect = Process("prefect", launch.command, launch.environment, world.folder)
    arguments = ("--host", HOST, "--port", str(scheduler_port), "--no-dashboard", "--no-show")
    # Imported with the first task otherwise, while no heartbeat is heard.
    preload = ("--preload", "pipeline.flows.map_dataset")
    command = (sys.executable, "-m", "distributed.cli.dask_scheduler", *arguments, *preload)
    scheduler = Process(
        "scheduler", command, {**os.environ, **DASK, "PYTHONPATH": os.getcwd()}, world.folder
    )
    address = f"tcp://{HOST}:{scheduler_port}"
    cluster = Cluster(world, prefect, scheduler, access, address)
    try:
        cluster.repair()
        yield cluster
    finally:
        for process in (*cluster.workers.values(), scheduler, prefect):
            process.kill()  # To stop one takes seconds: it waits for others, which end as well.


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
