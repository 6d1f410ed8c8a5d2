"""The local stack: S3 (SeaweedFS), a Prefect server and a Dask cluster, on this machine only.

`up` starts services that do not run and restarts broken ones; `down` stops exactly what `up`
started. All services listen on 127.0.0.1 and keep their data, logs and state in one folder. Every
account of the machine can reach these ports, so each requires a secret that is in that folder.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cluster.local import processes, services
from pipeline.cluster.local.credentials import PREFECT_PASSWORD
from pipeline.cluster.local.start import (
    TITLES,
    Echo,
    Wait,
    await_workers,
    given_elsewhere,
    has_no_workers,
    is_outdated,
    is_usable,
    login,
    start_missing,
)
from pipeline.cluster.local.state import NAMES, Service, ServiceName, StackState, StateFolder
from pipeline.config.layers import EMBEDDED_STACK, ENDPOINT_VARIABLES
from pipeline.config.settings import Settings
from pipeline.errors import StackError
from pipeline.private import is_closed

__all__ = [
    "Service",
    "ServiceStatus",
    "StackState",
    "down",
    "is_elsewhere",
    "prefect_login",
    "reclaim_space",
    "s3_variables",
    "status",
    "up",
]

LARGE_BYTES = 1 << 30
"""Bytes on disk of the stack's S3 above which `down` returns the space of deleted objects."""
GARBAGE_SHARE = 0.1
"""Share of deleted objects in a file of S3 from which on the file is rewritten."""
RECLAIM_SECONDS = 120
"""Maximum duration of that."""
_OWN_S3 = ("s3.endpoint_url", "s3.profile", "s3.access_key_id")


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One line of `status`.

    Attributes:
        name: `s3`, `prefect` or `dask`.
        title: The name for people.
        state: `running`, `silent` (runs, but does not answer), `idle` (Dask without workers, which
            `up` restarts), `outdated` (started without passwords by an older version; `up` restarts
            it), `died` or `stopped`.
        pid: The process, if it runs.
        address: The address for clients.
        page: The address of its UI, if it has one.
        password_file: The file with the password of its UI, if it has one.
    """

    name: ServiceName
    title: str
    state: str
    pid: int | None = None
    address: str = ""
    page: str = ""
    password_file: str = ""


def _unseen(what: str) -> None:
    """Do not show what is being waited for."""


def up(settings: Settings, echo: Echo = print, wait: Wait = _unseen) -> StackState:
    """Start every service that does not run, and print the addresses.

    Calling it again changes nothing. Remains of a crash are removed first; the data in S3 and the
    credentials are kept, and so are ports that are still free.

    Raises:
        StackError: A service did not start. Services that this call started are stopped.
    """
    folder = StateFolder(settings.state_dir)
    folder.create()
    if not is_closed(folder.root):
        echo(f"{folder.root} holds secrets, but other accounts of this machine can read it")
    with folder.lock():
        before = folder.load() or StackState(settings.environment)
        before = replace(before, environment=settings.environment)
        await_workers(before, echo, wait)
        keep = [service.pid for service in before.services.values() if is_usable(service)]
        try:
            state = start_missing(folder, settings, before, echo, wait)
        except BaseException:
            processes.stop(folder.marker(), keep=keep)
            raise
        folder.save(state)
    own = [key for key in _OWN_S3 if _names_another_s3(settings, key, state)]
    if own:
        echo(f"The settings use another S3: {own[0]} from {settings.source(own[0])}")
    return state


def _names_another_s3(settings: Settings, key: str, state: StackState) -> bool:
    """Whether the source of a setting of S3 overrides the stack's S3, and with another address."""
    source = settings.source(key)
    if source in ENDPOINT_VARIABLES:
        return settings.s3.endpoint_url != state.s3.get("endpoint_url")
    return source.startswith(("CHUNKMAP_", "flag "))


def s3_variables(settings: Settings) -> dict[str, str]:
    """Return the variables with which other tools reach the S3 of the running stack; secrets too.

    Raises:
        StackError: It does not run.
    """
    state = StateFolder(settings.state_dir).load()
    if state is None or not state.alive("s3"):
        raise StackError("the S3 of the local stack is not running", "start it: chunkmap up")
    s3 = state.s3
    return {
        "AWS_ENDPOINT_URL": s3["endpoint_url"],
        "AWS_ENDPOINT_URL_S3": s3["endpoint_url"],
        "AWS_ACCESS_KEY_ID": s3["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": s3["secret_access_key"],
        "AWS_REGION": s3["region"],
        "AWS_DEFAULT_REGION": s3["region"],
        "AWS_ALLOW_HTTP": "true",  # Polars, delta-rs and obstore refuse plain HTTP without it.
    }


def is_elsewhere(settings: Settings) -> bool:
    """Whether the settings name another Prefect server, Dask cluster and S3 than the stack's."""
    own_s3 = any(settings.source(key) not in ("default", EMBEDDED_STACK) for key in _OWN_S3)
    return own_s3 and set(given_elsewhere(settings)) == {"prefect", "dask"}


def prefect_login(settings: Settings) -> str:
    """Describe how to log in to the stack's Prefect UI; empty if another one is set."""
    if (
        settings.prefect.auth_string is None
        or settings.source("prefect.auth_string") != EMBEDDED_STACK
    ):
        return ""
    return login(str(settings.state_dir / PREFECT_PASSWORD))


def down(settings: Settings, echo: Echo = print, wait: Wait = _unseen) -> None:
    """Stop everything that `up` started, and nothing else. Calling it again changes nothing."""
    folder = StateFolder(settings.state_dir)
    if not folder.root.exists():
        echo("The local stack is not up.")
        return
    with folder.lock():
        state = folder.load() or StackState(settings.environment)
        running = [service for service in state.services.values() if service.alive]
        if state.alive("s3") and stored_bytes(folder.root) > LARGE_BYTES:
            wait("S3 to return the space of deleted objects")
            _reclaim(folder, state)
        if running:
            wait(", ".join(TITLES[service.name] for service in running) + " to stop")
        stopped = processes.stop(folder.marker())
        folder.forget()
    for service in running:
        echo(f"{TITLES[service.name]}: stopped (process {service.pid})")
    if not stopped:
        echo("The local stack is not up.")


def reclaim_space(settings: Settings) -> None:
    """Return the disk space of deleted objects to the system, if the stack's S3 runs.

    SeaweedFS keeps it until an administrator asks for it. Without that, a disk is full after some
    dozen benchmarks, of which no object is left.
    """
    folder = StateFolder(settings.state_dir)
    state = folder.load()
    if state is not None and state.alive("s3"):
        _reclaim(folder, state)


def _reclaim(folder: StateFolder, state: StackState) -> None:
    command = services.s3_shell(folder.root, state.services["s3"].ports)
    with suppress(OSError, subprocess.SubprocessError):  # There will be another time.
        subprocess.run(
            command,
            input=f"lock\nvolume.vacuum -garbageThreshold={GARBAGE_SHARE}\nunlock\n",
            text=True,
            capture_output=True,
            timeout=RECLAIM_SECONDS,
            check=False,
        )


def stored_bytes(root: Path) -> int:
    """Count the bytes on disk that the S3 of a stack holds, deleted objects included."""
    return sum(file.stat().st_size for file in (root / "s3").glob("*.dat"))


def status(settings: Settings) -> list[ServiceStatus]:
    """List the services of the local stack with their states."""
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
