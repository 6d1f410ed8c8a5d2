"""Start the missing services of the stack in parallel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pipeline.cluster.local import processes, services
from pipeline.cluster.local.credentials import prefect_password, s3_settings, tls_settings
from pipeline.cluster.local.services import Launch
from pipeline.cluster.local.state import Service, ServiceName, StackState, StateFolder
from pipeline.config.layers import EMBEDDED_STACK
from pipeline.config.settings import Settings
from pipeline.errors import StackError

Echo = Callable[[str], None]
"""Shows a line."""
Wait = Callable[[str], None]
"""Shows what is being waited for."""
Ports = dict[ServiceName, tuple[int, ...]]

TITLES: dict[ServiceName, str] = {
    "s3": "S3 (SeaweedFS)",
    "prefect": "Prefect server",
    "dask": "Dask cluster",
}
_COUNTS: dict[ServiceName, int] = {
    "s3": services.S3_PORTS,
    "prefect": services.PREFECT_PORTS,
    "dask": services.DASK_PORTS,
}
_START_SECONDS = 300.0
WORKERS_SECONDS = 60.0
"""Seconds that `up` waits for a worker to come back before it restarts the Dask cluster. All
workers may be away for a while if chunks of a job run out of memory."""
_ATTEMPTS = 3
_POLL = 0.05  # seconds
_LOG_LINES = 15


class _PortTaken(Exception):
    """A service ended because another program took one of its ports before it started."""


@dataclass(slots=True)
class _Pending:
    launch: Launch
    service: Service
    since: float


def given_elsewhere(settings: Settings) -> dict[ServiceName, str]:
    """Describe the services that the settings name elsewhere, which the stack does not start."""
    elsewhere: dict[ServiceName, str] = {}
    for name, key, value in (
        ("prefect", "prefect.api_url", settings.prefect.api_url),
        ("dask", "dask.scheduler", settings.dask.scheduler),
        ("dask", "dask.cluster_class", settings.dask.cluster_class),
    ):
        if value and settings.source(key) != EMBEDDED_STACK:
            elsewhere[cast(ServiceName, name)] = f"{value} (from {settings.source(key)})"
    return elsewhere


def choose_ports(
    state: StackState,
    running: Mapping[ServiceName, Service],
    last: Mapping[ServiceName, Sequence[int]],
) -> Ports:
    """Choose the ports of every service: its current ports, else its last ones, else free ones.

    Args:
        state: The last known state.
        running: The services that keep running.
        last: The ports of services that were stopped.
    """
    ports: Ports = {name: service.ports for name, service in running.items()}
    before = {**last, **{name: service.ports for name, service in state.services.items()}}
    for name, numbers in before.items():
        complete = len(numbers) == _COUNTS[name]
        if name not in ports and complete and processes.all_free(numbers):
            ports[name] = tuple(numbers)
    without_ports = [name for name in _COUNTS if name not in ports]
    # All at once, since ports that are chosen one after another may be the same.
    free = iter(processes.free_ports(sum(_COUNTS[name] for name in without_ports)))
    for name in without_ports:
        ports[name] = tuple(next(free) for _ in range(_COUNTS[name]))
    return ports


def start_missing(
    folder: StateFolder, settings: Settings, state: StackState, echo: Echo, wait: Wait
) -> StackState:
    """Start every service of the state that does not run.

    Raises:
        StackError: One of them did not start.
    """
    elsewhere = given_elsewhere(settings)
    for name, service in state.services.items():
        if is_outdated(service):
            echo(f"{TITLES[name]}: restarted, since an older version started it without secrets")
        elif has_no_workers(service):
            echo(f"{TITLES[name]}: restarted, since it has no workers")
    for _ in range(_ATTEMPTS):
        running = {name: service for name, service in state.services.items() if is_usable(service)}
        # First stop the others, so that their ports can be used again.
        processes.stop(folder.marker(), keep=[service.pid for service in running.values()])
        ports = choose_ports(state, running, folder.last_ports())
        if any(_moved(name, state, ports) for name in ("s3", "prefect") if name not in elsewhere):
            # Its workers have the old addresses.
            running.pop("dask", None)
            processes.stop(folder.marker(), keep=[service.pid for service in running.values()])
        try:
            return _start(
                folder, settings, replace(state, services=running), ports, echo=echo, wait=wait
            )
        except _PortTaken as problem:
            last = problem
            state = folder.load() or state
    raise StackError(f"{last}; gave up after {_ATTEMPTS} attempts with other ports")


def await_workers(state: StackState, echo: Echo, wait: Wait) -> None:
    """Wait up to WORKERS_SECONDS until a running Dask cluster has a worker."""
    service = state.services.get("dask")
    if service is None or not has_no_workers(service):
        return
    echo(f"{TITLES['dask']}: it has no workers; waiting for one to come back")
    wait("a Dask worker")
    deadline = time.monotonic() + WORKERS_SECONDS
    while has_no_workers(service) and time.monotonic() < deadline:
        time.sleep(1)


def has_no_workers(service: Service) -> bool:
    """Whether a service is a running Dask cluster without workers."""
    is_dask = service.name == "dask" and processes.runs(service.pid, service.started)
    return is_dask and services.worker_count(service.ports[1]) == 0


def is_usable(service: Service) -> bool:
    """Whether a service runs, accepts connections, requires authentication, and has workers."""
    runs = service.secured and processes.runs(service.pid, service.started)
    return runs and processes.answers(service.ports[0]) and not has_no_workers(service)


def is_outdated(service: Service) -> bool:
    """Whether a service runs that an older version started without passwords."""
    return not service.secured and processes.runs(service.pid, service.started)


def _moved(name: ServiceName, state: StackState, ports: Ports) -> bool:
    return name not in state.services or state.services[name].ports != ports[name]


def _start(
    folder: StateFolder,
    settings: Settings,
    state: StackState,
    ports: Ports,
    *,
    echo: Echo,
    wait: Wait,
) -> StackState:
    elsewhere = given_elsewhere(settings)
    state = replace(
        state,
        s3=s3_settings(folder.root, ports["s3"][0]),
        prefect={} if "prefect" in elsewhere else {"auth_string": prefect_password(folder.root)},
        tls=tls_settings(folder.root, "client"),
    )
    pending = []
    for name in _COUNTS:
        if name in state.services:
            echo(f"{describe(state.services[name])}, runs already")
            continue
        if name in elsewhere:
            echo(f"{TITLES[name]}: {elsewhere[name]}, not started here")
            continue
        launch = _launch(name, folder, settings, ports)
        pending.append(_spawn(folder, launch))
        state = replace(state, services={**state.services, name: pending[-1].service})
        # Saved at once, so that the stack can be stopped even if this process is killed.
        folder.save(state)
    _await_ready(folder, pending, echo, wait)
    return replace(state, services=_ordered(state.services))


def _launch(name: ServiceName, folder: StateFolder, settings: Settings, ports: Ports) -> Launch:
    if name == "s3":
        return services.s3(folder.root, ports["s3"])
    if name == "prefect":
        return services.prefect(folder.root, ports["prefect"])
    return services.dask(folder.root, ports["dask"], settings.dask, ports["s3"][0])


def _ordered(found: Mapping[ServiceName, Service]) -> dict[ServiceName, Service]:
    return {name: found[name] for name in _COUNTS if name in found}


def _spawn(folder: StateFolder, launch: Launch) -> _Pending:
    pid, started = processes.spawn(
        launch.command,
        launch.environment,
        launch.folder,
        log_of(folder, launch.name),
        folder.marker(),
        umask=launch.umask,
    )
    service = Service(
        launch.name,
        pid,
        started,
        launch.address,
        launch.page,
        launch.ports,
        launch.password_file,
        secured=True,
    )
    return _Pending(launch, service, time.monotonic())


def _await_ready(folder: StateFolder, pending: Sequence[_Pending], echo: Echo, wait: Wait) -> None:
    waiting = list(pending)
    shown = 0
    while waiting:
        if len(waiting) != shown:
            shown = len(waiting)
            wait(", ".join(TITLES[starting.service.name] for starting in waiting) + " to start")
        for starting in list(waiting):
            # Checked first, because another program may answer at its port.
            if not processes.runs(starting.service.pid, starting.service.started):
                raise _end_error(folder, starting)
            if starting.launch.is_ready():
                waiting.remove(starting)
                seconds = time.monotonic() - starting.since
                echo(f"{describe(starting.service)}, started in {seconds:.1f} s")
            elif time.monotonic() - starting.since > _START_SECONDS:
                raise _error(folder, starting, f"did not answer within {_START_SECONDS:.0f} s")
        time.sleep(_POLL)


def _end_error(folder: StateFolder, starting: _Pending) -> Exception:
    if not processes.all_free(starting.launch.ports):
        ports = ", ".join(str(port) for port in starting.launch.ports)
        return _PortTaken(f"{TITLES[starting.service.name]}: a port of {ports} is taken")
    return _error(folder, starting, "ended while it started")


def _error(folder: StateFolder, starting: _Pending, what: str) -> StackError:
    log = log_of(folder, starting.service.name)
    text = log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- ")[2]
    tail = "\n".join(text.splitlines()[-_LOG_LINES:])
    return StackError(f"{TITLES[starting.service.name]} {what}:\n{tail}", f"see its log: {log}")


def log_of(folder: StateFolder, name: ServiceName) -> Path:
    """Return the path of a service's log."""
    return folder.logs / f"{name}.log"


def describe(service: Service) -> str:
    """Describe a service with its addresses, in one line."""
    page = f", page {service.page}" if service.page else ""
    if service.password_file:
        page += f" ({login(service.password_file)})"
    return f"{TITLES[service.name]}: {service.address}{page} (process {service.pid})"


def login(password_file: str) -> str:
    """Describe how to log in to a UI; the path is relative if it is below the working folder."""
    path = Path(password_file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"password in {shown}"
