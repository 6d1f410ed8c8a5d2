"""A client that looks at a cluster, and asks each of its processes, however some of them hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.reachability import check_scheduler
from pipeline.cluster.tls import security_of
from pipeline.config.sections import DaskSettings
from pipeline.errors import EngineUnavailableError

ASK_SECONDS = 5.0
"""How long one process may take to say what it is."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the scheduler sees it."""

    address: str
    name: str
    status: str
    threads: int
    memory: int
    """Bytes that it uses."""
    memory_limit: int
    """Bytes; 0 means none."""
    cpu: float
    """Percent of one core."""
    running: int
    """Tasks that it runs, of whatever sort."""
    queued: int
    """Tasks that wait for it."""
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
        """The address of Dask's pages; empty if it has none."""
        return str(self._client.dashboard_link or "")

    def workers(self) -> list[WorkerView]:
        """All workers, by name."""
        info = self._client.scheduler_info(n_workers=-1)["workers"]
        found = [_view(address, worker) for address, worker in info.items()]
        return sorted(found, key=lambda one: (len(one.name), one.name))

    def ask(
        self, question: Callable[..., Any], *arguments: Any, seconds: float = ASK_SECONDS
    ) -> dict[str, Any]:
        """What each worker answers, by address; an exception for one that fails or hangs.

        One that leaves meanwhile, as it does after scaling down, is not among them.
        """
        addresses = [one.address for one in self.workers()]
        answers = self._client.sync(_ask_all, self._client, addresses, question, arguments, seconds)
        given = dict(zip(addresses, answers, strict=True))
        if not any(isinstance(answer, Exception) for answer in answers):
            return given
        there = {one.address for one in self.workers()}
        return {address: answer for address, answer in given.items() if address in there}

    def ask_scheduler(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What the scheduler's process answers, or the exception that it raises."""
        try:
            return self._client.run_on_scheduler(question, *arguments)
        except Exception as error:
            return error

    def scale(self, workers: int) -> bool:
        """Ask whoever holds the cluster for so many workers; False if nobody can be asked."""

        async def call() -> bool:
            answer = await self._client.scheduler.chunkmap_scale(n=workers)
            # Dask's answer to what no scheduler of ours has been taught is None.
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
    """A client of the scheduler that the settings name.

    Raises:
        EngineUnavailableError: no scheduler is set, or none answers there.
    """
    from distributed import Client

    if settings.scheduler is None:
        raise EngineUnavailableError(
            "no running Dask cluster is set (dask.scheduler)",
            "start one with `chunkmap up` or in compose, or set CHUNKMAP_DASK__SCHEDULER; without, "
            "each run starts workers of its own",
        )
    security = security_of(settings.tls)
    check_scheduler(settings.scheduler, settings.connect_timeout, security)
    with Client(
        settings.scheduler,
        security=security,
        set_as_default=False,
        timeout=settings.connect_timeout,
    ) as client:
        yield ClusterClient(client)
