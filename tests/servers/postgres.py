"""A PostgreSQL server of the tests' own: a fresh data folder, a free loopback port, no fsync."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pipeline.cluster.local.processes import free_ports

USER, PASSWORD = "loader", "p:w/d @?é"
START_SECONDS = 60.0
_NOBODY = 65534
_MISSING = "PostgreSQL's programs are missing (Debian: apt-get install postgresql)"


def program(name: str) -> str:
    """Path of a program of PostgreSQL; skips the test if there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name) or next(
        (str(folder / name) for folder in folders if (folder / name).exists()), None
    )
    if found is None:
        pytest.skip(_MISSING)
    return found


def _as_user() -> dict[str, Any]:
    """Arguments that start a process as somebody else than root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


@dataclass
class Postgres:
    """A server that runs, and can be stopped and started again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    disk_bytes: int = 0
    """Size of a disk of its own at `folder/disk`, which only the server sees; 0 is none."""

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._on_disk(),
                    *(program("postgres"), "-D", str(self.folder / "data")),
                    *("-k", str(self.folder), "-p", str(self.port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                    *("-c", "full_page_writes=off", "-c", "shared_buffers=16MB"),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                **({} if self.disk_bytes else _as_user()),
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.run("SELECT 1")
                return
            except Exception as error:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()[-2000:]) from error
            time.sleep(0.05)

    def _on_disk(self) -> list[str]:
        """Words before the server's command that mount its disk, in a namespace of its own."""
        if not self.disk_bytes:
            return []
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        script = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
        options = f"size={self.disk_bytes},mode=0700,uid={_NOBODY},gid={_NOBODY}"
        as_nobody = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
        return ["unshare", "--mount", "sh", "-c", script, "sh", options, str(disk), *as_nobody]

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends connections, SIGQUIT ends it as a crash does."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)

    @property
    def socket_uri(self) -> str:
        """Address of the superuser, who needs no password."""
        return f"postgresql:///postgres?host={self.folder}&port={self.port}&user={USER}"

    def uri(self, user: str = USER, port: int | None = None, options: str = "") -> str:
        """Address by TCP, which needs the password."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/postgres{options}"

    def connect(self) -> Any:
        """Open a connection of the superuser."""
        from adbc_driver_postgresql import dbapi

        return dbapi.connect(self.socket_uri)

    def run_alone(self, statement: str) -> None:
        """Execute a statement that no transaction may have, such as VACUUM."""
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(self.socket_uri, autocommit=True) as own, own.cursor() as cursor:
            cursor.execute(statement)

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Execute statements in one transaction; return the rows of the last."""
        with self.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            found = list(cursor.fetchall()) if cursor.description else []
            connection.commit()
        return found


def can_mount() -> bool:
    """Whether this process may mount a disk in a namespace of its own."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return False
    script = 'mount -t tmpfs tmpfs "$0"'
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, folder], check=False, capture_output=True
        )
    return done.returncode == 0


@contextmanager
def postgres(disk_bytes: int = 0) -> Iterator[Postgres]:
    """Start a server, and remove it and its folder at the end.

    Args:
        disk_bytes: Size of a disk of its own (see `Postgres`).
    """
    initdb = program("initdb")
    pytest.importorskip("adbc_driver_postgresql")
    # Not below pytest's folder, which other users may not enter; and sockets have short paths.
    folder = Path(tempfile.mkdtemp(prefix="chunkmap-pg-"))
    server = Postgres(folder, free_ports(1)[0], disk_bytes=disk_bytes)
    try:
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")
        subprocess.run(
            [
                *(initdb, "-D", str(folder / "data"), "-U", USER, "--pwfile"),
                *(str(folder / "password"), "--auth-local=trust", "--auth-host=scram-sha-256"),
                *("--no-sync", "-E", "UTF8", "--no-locale"),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            **_as_user(),
        )
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class CuttingProxy:
    """A proxy to a server that cuts a connection when the client sends COMMIT.

    The server gets the COMMIT, and its reply never arrives; or, with `before`, the server never
    gets it.
    """

    def __init__(self, port: int, cuts: int = 1, *, before: bool = False) -> None:
        self._behind, self.cuts, self._before = port, cuts, before
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def close(self) -> None:
        """Stop taking connections, and end those that are open."""
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._behind))
                self._sockets += [client, server]
                cut = threading.Event()
                self._start(self._forward, client, server, cut)
                self._start(self._forward, server, client, cut)

    def _forward(self, source: socket.socket, target: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                is_commit = data[:1] == b"Q" and data[5:11].upper() == b"COMMIT" and self.cuts > 0
                if is_commit:
                    self.cuts -= 1
                    cut.set()
                    if not self._before:
                        target.sendall(data)
                        # The server closes its end when it has replied and sees ours closed.
                        target.shutdown(socket.SHUT_WR)
                        while source_reply := target.recv(1 << 16):
                            del source_reply
                    break
                if cut.is_set():
                    return  # A reply that is lost.
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def with_search_path(uri: str, schema: str, *settings: str) -> str:
    """Return an address whose default schema is another one, and other settings of a session."""
    options = " ".join(f"-c{setting}" for setting in (f"search_path={schema}", *settings))
    return uri + ("&" if "?" in uri else "?") + "options=" + quote(options)
