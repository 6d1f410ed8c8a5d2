"""Run a scheduler or a worker in this process until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import re
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
from pipeline.errors import EngineUnavailableError, SettingsError, UsageError

log = logging.getLogger("distributed.chunkmap")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SCHEDULER_SECONDS = 120.0
"""Seconds that a worker waits for its scheduler."""
SCHEDULER_PORT, SCHEDULER_PAGES, WORKER_PAGES = 8786, ":8787", ":8788"


def serve_scheduler(
    settings: Settings, host: str | None, port: int = SCHEDULER_PORT, pages: str = SCHEDULER_PAGES
) -> int:
    """Run a scheduler until SIGTERM or SIGINT.

    Args:
        settings: The settings; with `dask.tls`, every connection must be encrypted and certified.
        host: The address to listen on. Default: all addresses with TLS, else 127.0.0.1, because
            everyone who reaches a scheduler without TLS can run code on its workers.
        port: The scheduler's port; 0 takes any.
        pages: The address of the dashboard, `/health` and `/metrics`, such as `:8787`.

    Returns:
        The exit code of the process.

    Raises:
        EngineUnavailableError: It cannot listen there, e.g. as the port is taken.
    """
    configure()
    _raise_limits()
    security = security_of(settings.dask.tls)
    host = host and host.strip("[]")
    if host is None:
        host = "0.0.0.0" if security else "127.0.0.1"
    elif security is None and host not in LOOPBACK:
        log.warning("No TLS (dask.tls): any client of %s:%d can run code on workers", host, port)

    async def run() -> int:
        scheduler = Scheduler(
            host=_bracketed(host),
            port=port,
            protocol="tls" if security else "tcp",
            security=security,
            dashboard_address=_with_host(pages, host),
            # Otherwise the first task would import them, and delay heartbeats.
            preload=PRELOAD[-3:],
        )
        return await _serve(scheduler)

    try:
        return asyncio.run(run())
    except (OSError, RuntimeError) as error:  # Dask wraps some of them.
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise EngineUnavailableError(
            f"a scheduler cannot listen on {_bracketed(host)}:{port}: {reason}",
            "end what listens there, or choose another address: --host, --port (0 takes a free "
            "port), --dashboard-address",
        ) from error


def serve_worker(
    settings: Settings,
    *,
    name: str | None = None,
    host: str | None = None,
    pages: str = WORKER_PAGES,
    folder: str | None = None,
) -> int:
    """Run one worker, which uses the whole container or machine, until SIGTERM or SIGINT.

    It then takes no more work, finishes its current chunks, stores completions, hands back the rest
    and ends, within `dask.stop_seconds`. A second signal ends it at once.

    Args:
        settings: The settings, with `dask.scheduler`, `dask.tls` and sizes.
        name: The worker's name in the cluster and in the ledger. Default: its address.
        host: The address to listen on. Default: the one facing the scheduler.
        pages: The address of `/health` and `/metrics`, such as `:8788`.
        folder: The folder for its temporary files.

    Returns:
        The exit code of the process.

    Raises:
        SettingsError: No scheduler is set.
        EngineUnavailableError: It does not answer for two minutes.
    """
    dask = settings.dask
    if dask.scheduler is None:
        raise SettingsError(
            "a worker needs the scheduler's address (dask.scheduler)",
            "set CHUNKMAP_DASK__SCHEDULER, e.g. to tls://dask-scheduler:8786",
        )
    cores, available = machine()
    profile = for_container(cores, dask.threads_per_worker, dask.memory_per_worker, available)
    variables = profile.environment()
    configure({f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in variables.items()})
    _raise_limits()
    host = host and host.strip("[]")
    if host is None and urlsplit(dask.scheduler).hostname in LOOPBACK:
        host = "127.0.0.1"
    security = security_of(dask.tls)
    lifetime = {} if dask.lifetime is None else _lifetime(dask.lifetime)

    async def run() -> int:
        await _wait_for_scheduler(str(dask.scheduler), security)
        nanny = GracefulNanny(
            dask.scheduler,
            name=name,
            nthreads=profile.threads,
            memory_limit=profile.memory,
            resources=dict(dask.resources) or None,
            host=host and _bracketed(host),
            dashboard_address=_with_host(pages, host),
            dashboard=False,
            local_directory=folder,
            security=security,
            preload=list(PRELOAD),
            stop_seconds=dask.stop_seconds,
            # Long enough for a scheduler that restarts.
            death_timeout=SCHEDULER_SECONDS,
            **lifetime,
        )
        log.info("Worker of %d threads, Polars with %d", profile.threads, profile.polars_threads)
        return await _serve(nanny)

    return asyncio.run(run())


def _lifetime(seconds: float) -> dict[str, Any]:
    """Make Dask's lifetime options, staggered so that workers do not all leave together."""
    return {
        "lifetime": f"{seconds} s",
        "lifetime_stagger": f"{seconds / 10} s",
        "lifetime_restart": True,
    }


def _with_host(pages: str, host: str | None) -> Any:
    """Add the server's host to an address such as `:8787`.

    Raises:
        UsageError: The address has no port.
    """
    if pages.startswith("["):
        address, _, number = pages[1:].rpartition("]:")
        return (address, _port(number, pages))
    if not host or not pages.startswith(":"):
        return pages
    # Dask cuts a text at each colon.
    return (host, _port(pages[1:], pages)) if ":" in host else f"{host}{pages}"


def _port(number: str, pages: str) -> int:
    if re.fullmatch("[0-9]{1,5}", number) and int(number) < 1 << 16:
        return int(number)
    raise UsageError(f"--dashboard-address {pages}: its port is no number", hint="write [::1]:8787")


def _bracketed(host: str) -> str:
    """Write an IPv6 address as in URLs, in brackets."""
    return f"[{host}]" if ":" in host else host


async def _wait_for_scheduler(scheduler: str, security: Security | None) -> None:
    """Wait for the scheduler, which may be starting; a nanny itself gives up early."""
    log.info("Connecting to the scheduler at %s", scheduler)
    arguments = {} if security is None else security.get_connection_args("worker")
    try:
        comm = await connect(scheduler, timeout=SCHEDULER_SECONDS, **arguments)
    except OSError as error:
        raise EngineUnavailableError(
            f"no scheduler answers at {scheduler} (dask.scheduler): {error}",
            "start it, or fix the address; a scheduler with TLS needs dask.tls",
        ) from error
    await comm.close()


async def _serve(server: Any) -> int:
    """Run a server until SIGTERM or SIGINT, or its own end; returns the exit code."""
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[str] = loop.create_future()

    def handle(number: signal.Signals) -> None:
        if signalled.done():
            signal.raise_signal(signal.SIGKILL)  # The second signal ends it at once.
        signalled.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)

    async def run() -> None:
        await server
        log.info("%s runs at %s", type(server).__name__, server.address)
        await server.finished()

    running = asyncio.ensure_future(run())
    both: list[asyncio.Future[Any]] = [signalled, running]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if signalled.done():
        running.cancel()
        await server.close(reason=signalled.result())
        return 0
    # A worker without a scheduler ends; when it is restarted, it waits for one again.
    running.result()
    return 1


def _raise_limits() -> None:
    """Raise the limit on open files: each worker, client and S3 request needs a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
