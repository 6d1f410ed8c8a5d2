"""One server for all processes of tests: the first to need it starts it, the last one ends it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.servers.launching import Server, start


def common_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder of this name that all processes of one `pytest -n` have in common."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Server]:
    """Yield the server of this name; start it if nobody uses one.

    Each user holds a lock, which the system releases also if its process is killed.
    """
    folder = common_folder(factory, f"shared-{name}")
    note = folder / "server.json"
    with (folder / "users").open("w") as users:
        with _locked(folder):
            if _is_alone(users.fileno()):
                note.write_text(json.dumps(asdict(start(folder / uuid.uuid4().hex, name))))
            fcntl.flock(users, fcntl.LOCK_SH)
            server = Server(**json.loads(note.read_text()))
        try:
            yield server
        finally:
            with _locked(folder):
                if _is_alone(users.fileno()):
                    os.kill(server.pid, signal.SIGKILL)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_alone(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
