"""Inspect a cluster, and call functions in its processes, even if some of them hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.reachability import connect_scheduler
from pipeline.cluster.tls import client_security
from pipeline.config.sections import DaskSettings
from pipeline.errors import EngineUnavailableError

ASK_SECONDS = 5.0
"""Maximum seconds of a call in one process."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the scheduler sees it."""

    address: str
    name: str
    status: str
    threads: int
    memory: int
    """Bytes in use."""
    memory_limit: int
    """Bytes that it may use; 0 means no limit."""
    cpu: float
    """Percent of one core."""
    running: int
    """Number of tasks that it runs, of any kind."""
    queued: int
    """Number of tasks that wait for it."""
    seen: float
    """Unix seconds of its last heartbeat, by the scheduler's clock."""


class ClusterClient:
    """A running cluster, through a client of its scheduler."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def scheduler(self) -> str:
        """The scheduler's address."""
        return str(self._client.scheduler.address)

    @property
    def dashboard(self) -> str:
        """The address of the dashboard; empty if there is none."""
        return str(self._client.dashboard_link or "")

    def workers(self) -> list[WorkerView]:
        """List all workers, sorted by name."""
        info = self._client.scheduler_info(n_workers=-1)["workers"]
        views = [_view(address, worker) for address, worker in info.items()]
        return sorted(views, key=lambda view: (len(view.name), view.name))

    def ask(
        self, question: Callable[..., Any], *arguments: Any, seconds: float = ASK_SECONDS
    ) -> dict[str, Any]:
        """Call a function in each worker; returns results, or exceptions, by address.

        Workers that left meanwhile, as after scaling down, are left out.
        """
        addresses = [worker.address for worker in self.workers()]
        answers = self._client.sync(_ask_all, self._client, addresses, question, arguments, seconds)
        by_address = dict(zip(addresses, answers, strict=True))
        if not any(isinstance(answer, Exception) for answer in answers):
            return by_address
        remaining = {worker.address for worker in self.workers()}
        return {address: answer for address, answer in by_address.items() if address in remaining}

    def tell(
        self, addresses: Sequence[str], call: Callable[..., Any], *arguments: Any, seconds: float
    ) -> None:
        """Call a function in some workers; large arguments go to the scheduler once.

        Workers that do not answer are ignored, and so are errors.
        """
        if not addresses:
            return

        async def run() -> None:
            called = self._client.run(
                call, *arguments, workers=list(addresses), on_error="ignore", asynchronous=True
            )
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(called, seconds)

        self._client.sync(run)

    def ask_scheduler(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the scheduler's process; returns its result or exception."""
        try:
            return self._client.run_on_scheduler(question, *arguments)
        except Exception as error:
            return error

    def scale(self, workers: int) -> bool:
        """Request a number of workers; returns False if the scheduler cannot scale its cluster."""

        async def call() -> bool:
            answer = await self._client.scheduler.chunkmap_scale(n=workers)
            # A scheduler without this handler answers None.
            return answer is not None

        return bool(self._client.sync(call))


def _view(address: str, worker: dict[str, Any]) -> WorkerView:
    measured = worker.get("metrics", {})
    tasks = measured.get("task_counts", {})
    return WorkerView(
        address=address,
        name=str(worker["name"]),
        status=str(worker["status"]),
        threads=int(worker["nthreads"]),
        memory=int(measured.get("memory", 0)),
        memory_limit=int(worker.get("memory_limit") or 0),
        cpu=float(measured.get("cpu", 0.0)),
        running=int(tasks.get("executing", 0)),
        queued=int(tasks.get("ready", 0)),
        seen=float(worker.get("last_seen", 0.0)),
    )


async def _ask_all(
    client: Any, addresses: Sequence[str], question: Any, arguments: Sequence[Any], seconds: float
) -> list[Any]:
    async def one(address: str) -> Any:
        call = client.run(
            question, *arguments, workers=[address], on_error="return", asynchronous=True
        )
        try:
            return (await asyncio.wait_for(call, seconds)).get(address, _gone(address))
        except (OSError, TimeoutError) as error:
            return TimeoutError(f"{address} does not answer within {seconds:g} s {error}".strip())

    return list(await asyncio.gather(*map(one, addresses)))


def _gone(address: str) -> Exception:
    return ConnectionError(f"{address} has left")


@contextmanager
def cluster_of(settings: DaskSettings) -> Iterator[ClusterClient]:
    """Connect to the scheduler that the settings name.

    Raises:
        EngineUnavailableError: No scheduler is set, or none answers there.
    """
    if settings.scheduler is None:
        raise EngineUnavailableError(
            "no running Dask cluster is set (dask.scheduler)",
            "start one with `chunkmap up` or in compose, or set CHUNKMAP_DASK__SCHEDULER; "
            "otherwise each run starts its own workers",
        )
    security = client_security(settings)
    with connect_scheduler(settings.scheduler, settings.connect_timeout, security) as client:
        yield ClusterClient(client)
