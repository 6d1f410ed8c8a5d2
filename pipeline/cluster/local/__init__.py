"""The embedded stack: S3 (SeaweedFS), a Prefect server and a Dask cluster, on this machine only.

`up` starts what does not run and repairs what is half dead; `down` stops exactly what `up`
started. All of it listens on 127.0.0.1 and keeps its data, logs and state in one folder. Every
account of the machine reaches these ports, so each asks for a secret that lies in that folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.cluster.local import processes
from pipeline.cluster.local.credentials import PREFECT_PASSWORD
from pipeline.cluster.local.start import (
    TITLES,
    Echo,
    await_workers,
    given_elsewhere,
    has_no_workers,
    is_outdated,
    is_usable,
    login,
    start_missing,
)
from pipeline.cluster.local.state import NAMES, Service, ServiceName, StackState, StateFolder
from pipeline.config.layers import EMBEDDED_STACK
from pipeline.config.settings import Settings
from pipeline.private import is_closed

__all__ = [
    "Service",
    "ServiceStatus",
    "StackState",
    "down",
    "is_elsewhere",
    "prefect_login",
    "status",
    "up",
]

_OWN_S3 = ("s3.endpoint_url", "s3.profile", "s3.access_key_id")


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One line of `status`.

    Attributes:
        name: `s3`, `prefect` or `dask`.
        title: The same for people.
        state: `running`, `silent` (runs, but does not answer), `idle` (Dask without workers: `up`
            starts it again), `outdated` (an older version started it, without passwords: `up`
            starts it again), `died` or `stopped`.
        pid: The process, if it runs.
        address: Where its clients connect.
        page: Its page for people, if it has one.
        password_file: Holds what its page asks for, if it asks.
    """

    name: ServiceName
    title: str
    state: str
    pid: int | None = None
    address: str = ""
    page: str = ""
    password_file: str = ""


def up(settings: Settings, echo: Echo = print) -> StackState:
    """Start every service that does not run, and say what runs where.

    Calling it again changes nothing. What a crash left behind is cleared away first; the data in
    S3 is kept, and so are credentials, and ports where they are still free.

    Raises:
        StackError: A service did not start; what this call started is stopped again.
    """
    folder = StateFolder(settings.state_dir)
    folder.create()
    if not is_closed(folder.root):
        echo(f"{folder.root} holds secrets, and other accounts of this machine may read it")
    with folder.lock():
        before = folder.load() or StackState(settings.environment)
        before = replace(before, environment=settings.environment)
        await_workers(before, echo)
        keep = [one.pid for one in before.services.values() if is_usable(one)]
        try:
            state = start_missing(folder, settings, before, echo)
        except BaseException:
            processes.stop(folder.marker(), keep=keep)
            raise
        folder.save(state)
    own = [key for key in _OWN_S3 if settings.source(key) not in ("default", EMBEDDED_STACK)]
    if own:
        echo(f"The settings use another S3 than this one: {own[0]} from {settings.source(own[0])}")
    return state


def is_elsewhere(settings: Settings) -> bool:
    """Whether the settings name a Prefect server, a Dask cluster and an S3 that are not ours."""
    own_s3 = any(settings.source(key) not in ("default", EMBEDDED_STACK) for key in _OWN_S3)
    return own_s3 and set(given_elsewhere(settings)) == {"prefect", "dask"}


def prefect_login(settings: Settings) -> str:
    """How people log in to Prefect's pages; empty if these are not ours, or ask for nothing."""
    if (
        settings.prefect.auth_string is None
        or settings.source("prefect.auth_string") != EMBEDDED_STACK
    ):
        return ""
    return login(str(settings.state_dir / PREFECT_PASSWORD))


def down(settings: Settings, echo: Echo = print) -> None:
    """Stop everything that `up` started, and nothing else. Calling it again changes nothing."""
    folder = StateFolder(settings.state_dir)
    if not folder.root.exists():
        echo("The embedded stack is not up.")
        return
    with folder.lock():
        state = folder.load() or StackState(settings.environment)
        ran = [service for service in state.services.values() if service.alive]
        stopped = processes.stop(folder.marker())
        folder.forget()
    for service in ran:
        echo(f"{TITLES[service.name]}: stopped (process {service.pid})")
    if not stopped:
        echo("The embedded stack is not up.")


def status(settings: Settings) -> list[ServiceStatus]:
    """What runs of the embedded stack."""
    state = StateFolder(settings.state_dir).load() or StackState(settings.environment)
    return [_status_of(name, state.services.get(name)) for name in NAMES]


def _status_of(name: ServiceName, service: Service | None) -> ServiceStatus:
    if service is None:
        return ServiceStatus(name, TITLES[name], "stopped")
    if not service.alive:
        return ServiceStatus(name, TITLES[name], "died")
    state = "running" if processes.answers(service.ports[0]) else "silent"
    if has_no_workers(service):
        state = "idle"
    return ServiceStatus(
        name,
        TITLES[name],
        "outdated" if is_outdated(service) else state,
        service.pid,
        service.address,
        service.page,
        service.password_file,
    )
