"""Store the state of the local stack between commands: one file, one lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.private import state_folder, write_file
from pipeline.processes import is_alive

ServiceName = Literal["s3", "prefect", "dask"]
NAMES: tuple[ServiceName, ...] = ("s3", "prefect", "dask")


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the stack, with all its children.

    Attributes:
        name: `s3`, `prefect` or `dask`.
        pid: The process, which leads its own session.
        started: Its start time, as returned by `pipeline.processes.start_time`.
        address: The address for clients.
        page: The address of its UI, empty if it has none.
        ports: Its ports, used again after a crash.
        password_file: The file with the password of its UI, empty if there is none.
        secured: Whether it requires authentication. Services started by older versions do not.
    """

    name: ServiceName
    pid: int
    started: float
    address: str
    page: str = ""
    ports: tuple[int, ...] = ()
    password_file: str = ""
    secured: bool = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return is_alive(self.pid, self.started)


@dataclass(frozen=True, slots=True)
class StackState:
    """The last known state of the stack.

    Attributes:
        environment: The environment of the settings with which it was started.
        services: Its processes by name. Dead ones are listed until the next `up` or `down`.
        s3: The settings that reach its S3, with credentials.
        prefect: The settings that reach its Prefect server, except the address: the password.
        tls: The settings `dask.tls` of a client of its Dask cluster.
    """

    environment: str
    services: dict[ServiceName, Service] = field(default_factory=dict)
    s3: dict[str, str] = field(default_factory=dict, repr=False)
    prefect: dict[str, str] = field(default_factory=dict, repr=False)
    tls: dict[str, str] = field(default_factory=dict)

    def alive(self, name: ServiceName) -> bool:
        """Whether a service's process runs."""
        service = self.services.get(name)
        return service is not None and service.alive


class StateFolder:
    """The stack's folder: data, logs, the state file and the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.file = self.root / "stack.json"
        self._ports = self.root / "ports.json"
        self.logs = self.root / "logs"

    def create(self) -> None:
        """Make the folder, readable by this user only, and keep it out of version control."""
        state_folder(self.root, self.logs.name)

    def marker(self) -> str:
        """Return the value of MARKER that identifies the processes of this stack."""
        return f"{self.root}:{self.root.stat().st_ino}"

    def load(self) -> StackState | None:
        """Load the stored state; None if there is none, or it is damaged."""
        try:
            data: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
            services = {
                name: Service(**{**service, "ports": tuple(service["ports"])})
                for name, service in data["services"].items()
            }
            # Files of older versions lack these keys.
            more = (data.get("prefect", {}), data.get("tls", {}))
            return StackState(data["environment"], services, data["s3"], *more)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, state: StackState) -> None:
        """Replace the state file in one step; only this user may read it."""
        write_file(self.file, json.dumps(asdict(state), indent=2))

    def forget(self) -> None:
        """Remove the state file, but remember the ports: addresses stay the same at the next start.

        Links to the Prefect UI and variables of other programs (`chunkmap env`) hold them.
        """
        state = self.load()
        if state is not None and state.services:
            ports = {name: service.ports for name, service in state.services.items()}
            write_file(self._ports, json.dumps(self.last_ports() | ports))
        self.file.unlink(missing_ok=True)

    def last_ports(self) -> dict[ServiceName, tuple[int, ...]]:
        """Return the ports of the services when the stack was stopped; empty if unknown."""
        try:
            ports = json.loads(self._ports.read_text(encoding="utf-8"))
            return {name: tuple(map(int, ports[name])) for name in NAMES if name in ports}
        except (OSError, ValueError, TypeError):
            return {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the stack; it is released when its holder dies."""
        descriptor = os.open(self.root / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
