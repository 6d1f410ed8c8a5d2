"""A scheduler or a worker as a process of its own, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from typing import Any
from urllib.parse import urlsplit

from distributed import Scheduler
from distributed.comm.core import connect
from distributed.security import Security

from pipeline.cluster.graceful_worker import GracefulNanny
from pipeline.cluster.resources import PRELOAD, configure, for_container, machine
from pipeline.cluster.tls import security_of
from pipeline.config.settings import Settings
from pipeline.errors import EngineUnavailableError, SettingsError

log = logging.getLogger("distributed.chunkmap")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SCHEDULER_SECONDS = 120.0
"""How long a worker waits for its scheduler."""
SCHEDULER_PORT, SCHEDULER_PAGES, WORKER_PAGES = 8786, ":8787", ":8788"


def serve_scheduler(
    settings: Settings, host: str | None, port: int = SCHEDULER_PORT, pages: str = SCHEDULER_PAGES
) -> int:
    """Run a scheduler until SIGTERM or SIGINT.

    Args:
        settings: With `dask.tls` every connection must be encrypted and certified.
        host: The address to listen at. Default: every one under TLS, else this machine's alone,
            because whoever reaches a scheduler without TLS can run code on its workers.
        port: Of the scheduler; 0 takes any.
        pages: Address of its pages, `/health` and `/metrics`, such as `:8787`.

    Returns:
        The process's exit code.
    """
    configure()
    _raise_limits()
    security = security_of(settings.dask.tls)
    if host is None:
        host = "0.0.0.0" if security else "127.0.0.1"
    elif security is None and host not in LOOPBACK:
        log.warning("No TLS (dask.tls): whoever reaches %s:%d can run code on workers", host, port)

    async def run() -> int:
        scheduler = Scheduler(
            host=host,
            port=port,
            protocol="tls" if security else "tcp",
            security=security,
            dashboard_address=_at(pages, host),
            # Imported with the first task otherwise, while no heartbeat is heard.
            preload=PRELOAD[-3:],
        )
        return await _served(scheduler)

    return asyncio.run(run())


def serve_worker(
    settings: Settings,
    *,
    name: str | None = None,
    host: str | None = None,
    pages: str = WORKER_PAGES,
    folder: str | None = None,
) -> int:
    """Run one worker, which takes the container or machine to itself, until SIGTERM or SIGINT.

    It then takes no more work, ends the chunks at hand, stores what is done, hands the rest back,
    and leaves, within `dask.stop_seconds`. A second signal ends it at once.

    Args:
        settings: With `dask.scheduler`, `dask.tls` and the sizes.
        name: By which the scheduler and the ledger know it. Default: its address.
        host: The address to listen at. Default: the one that leads to the scheduler.
        pages: Address of `/health` and `/metrics`, such as `:8788`.
        folder: For its temporary files.

    Returns:
        The process's exit code.

    Raises:
        SettingsError: no scheduler is set.
        EngineUnavailableError: it does not answer for two minutes.
    """
    dask = settings.dask
    if dask.scheduler is None:
        raise SettingsError(
            "a worker needs the scheduler's address (dask.scheduler)",
            "set CHUNKMAP_DASK__SCHEDULER, such as tls://dask-scheduler:8786",
        )
    cores, available = machine()
    profile = for_container(cores, dask.threads_per_worker, dask.memory_per_worker, available)
    variables = profile.environment()
    configure({f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in variables.items()})
    _raise_limits()
    if host is None and urlsplit(dask.scheduler).hostname in LOOPBACK:
        host = "127.0.0.1"
    security = security_of(dask.tls)
    lifetime = {} if dask.lifetime is None else _lifetime(dask.lifetime)

    async def run() -> int:
        await _reached(str(dask.scheduler), security)
        nanny = GracefulNanny(
            dask.scheduler,
            name=name,
            nthreads=profile.threads,
            memory_limit=profile.memory,
            host=host,
            dashboard_address=_at(pages, host),
            dashboard=False,
            local_directory=folder,
            security=security,
            preload=list(PRELOAD),
            stop_seconds=dask.stop_seconds,
            # A scheduler that is being started anew is waited for, one that is gone for ever not.
            death_timeout=SCHEDULER_SECONDS,
            **lifetime,
        )
        log.info("Worker of %d threads, Polars with %d", profile.threads, profile.polars_threads)
        return await _served(nanny)

    return asyncio.run(run())


def _lifetime(seconds: float) -> dict[str, Any]:
    """Staggered, lest workers that were started together all leave together."""
    return {
        "lifetime": f"{seconds} s",
        "lifetime_stagger": f"{seconds / 10} s",
        "lifetime_restart": True,
    }


def _at(pages: str, host: str | None) -> str:
    """`:8787` where the server itself listens."""
    return f"{host}{pages}" if host and pages.startswith(":") else pages


async def _reached(scheduler: str, security: Security | None) -> None:
    """Wait for the scheduler, which may be about to start; a nanny gives up soon."""
    log.info("Looking for the scheduler at %s", scheduler)
    arguments = {} if security is None else security.get_connection_args("worker")
    try:
        comm = await connect(scheduler, timeout=SCHEDULER_SECONDS, **arguments)
    except OSError as error:
        raise EngineUnavailableError(
            f"no scheduler answers at {scheduler} (dask.scheduler): {error}",
            "start it, or mend the address; one that asks for TLS needs dask.tls",
        ) from error
    await comm.close()


async def _served(server: Any) -> int:
    """Run a server until SIGTERM or SIGINT, or its own end; returns the exit code."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()

    def note(number: signal.Signals) -> None:
        if told.done():
            signal.raise_signal(signal.SIGKILL)  # Told twice: at once.
        told.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note, number)

    async def run() -> None:
        await server
        log.info("%s runs at %s", type(server).__name__, server.address)
        await server.finished()

    running = asyncio.ensure_future(run())
    both: list[asyncio.Future[Any]] = [told, running]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        running.cancel()
        await server.close(reason=told.result())
        return 0
    # A worker whose scheduler is gone leaves; whoever restarts it makes it look again.
    running.result()
    return 1


def _raise_limits() -> None:
    """As many open files as we may have: a connection for each worker, client and S3 request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
