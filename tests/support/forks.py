"""Run Python code in processes that are forked from one that has imported what they need.

`chunkmap` alone takes a second to import it. A forked process has, as one that is started, memory,
a working directory, variables, streams and an exit code of its own. It cannot be used to test
what an import does.
"""

from __future__ import annotations

import atexit
import errno
import gc
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import IO

REPOSITORY = str(Path(__file__).parents[2])
MAIN = "from pipeline.cli import main; main()"
IMPORTED = (
    *("altair", "great_tables", "rich.live", "rich.table", "typer"),
    *("pipeline.runs.backfill.listing", "pipeline.runs.driver.run"),
)
"""Not the command line, whose consoles read their variables when it is imported."""
NOT_IMPORTED = {"dask", "distributed", "pipeline.cli", "prefect"}
"""They read their variables when they are imported, too."""
FLOWS = (
    *IMPORTED,
    *("pipeline.cluster.task_runner", "pipeline.flows.backfill", "pipeline.flows.ingest"),
    "pipeline.flows.map_dataset",
)
"""For commands that are flows: they tell Prefect its server also if it was imported before."""
START_SECONDS = 120.0
"""Seconds that the first one may take, whose imports come before."""
_SIZE = "!I"
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
"""What all processes of `pytest -n` have in common."""


class Forked:
    """A process that was forked; it can be waited for, looked at and killed."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._text = b""
        self._code: int | None = None
        self.pid = int(self._line(START_SECONDS))

    @property
    def has_ended(self) -> bool:
        with suppress(TimeoutError):
            self.wait(0)
        return self._code is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, by default -9, unless it has ended: another may have its id by now."""
        if not self.has_ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Return its exit code.

        Raises:
            TimeoutError: it takes longer than this.
        """
        if self._code is None:
            self._code = int(self._line(seconds))
            os.close(self._status)
        return self._code

    def _line(self, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        while b"\n" not in self._text:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._status], [], [], left)[0]:
                raise TimeoutError
            data = os.read(self._status, 100)
            assert data, "the process that forks others has ended"
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return line


class Forks:
    """A connection to a process that forks others."""

    def __init__(self, kind: str, names: tuple[str, ...]) -> None:
        self._sending = Lock()
        address = Path(tempfile.gettempdir(), f"chunkmap-forks-{_RUN}-{kind}")
        self._process = _server(address, names)
        self._ours = _connected(address)
        self.descriptor = self._ours.fileno()
        atexit.register(self._ours.close)

    def start(
        self, code: str, arguments: tuple[str, ...], folder: str, variables: Mapping[str, str],
        *streams: int,
    ) -> Forked:  # fmt: skip
        """Run code in a new process with these streams, as `python -c` would."""
        job = json.dumps([code, arguments, folder, dict(variables)]).encode()
        ours, theirs = os.pipe()
        try:
            with self._sending:
                socket.send_fds(self._ours, [struct.pack(_SIZE, len(job))], (*streams, theirs))
                self._ours.sendall(job)
        finally:
            os.close(theirs)
        return Forked(ours)


def _server(address: Path, names: tuple[str, ...]) -> subprocess.Popen[bytes] | None:
    """Start the process, unless another process of the tests has: to import takes it seconds.

    It ends when nobody can ask it for anything any more.
    """
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(str(address))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        listening.listen()
        home = f"{address}-prefect"
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVER.format(listening.fileno(), names)],
            env={**os.environ, "PYTHONPATH": REPOSITORY, "PREFECT_HOME": home},
            stdin=subprocess.DEVNULL,
            pass_fds=(listening.fileno(),),
            start_new_session=True,
        )


def _connected(address: Path) -> socket.socket:
    deadline = time.monotonic() + START_SECONDS
    while True:
        ours = socket.socket(socket.AF_UNIX)
        try:
            ours.connect(str(address))
            return ours
        except (ConnectionRefusedError, FileNotFoundError):
            ours.close()
            assert time.monotonic() < deadline, f"nobody listens at {address}"
            time.sleep(0.01)  # Another process is between binding it and listening.


@cache
def forks(*, flows: bool = False) -> Forks:
    """Return the process that forks others for the tests; it may have imported Prefect and Dask."""
    return Forks("flows", FLOWS) if flows else Forks("plain", IMPORTED)


class Running:
    """A command that runs, with what tests use of `subprocess.Popen`."""

    def __init__(self, process: Forked, arguments: tuple[str, ...], *printed: IO[bytes]) -> None:
        self._process, self._arguments, self._printed = process, arguments, printed
        self._texts: list[str] = []
        self.pid = process.pid
        self.returncode: int | None = None

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.communicate()

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = START_SECONDS) -> int:
        """Return its exit code. Raises TimeoutExpired."""
        try:
            self.returncode = self._process.wait(timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(self._arguments, timeout) from None
        return self.returncode

    def communicate(self, timeout: float = START_SECONDS) -> tuple[str, str]:
        """Wait for its end; return what it has printed."""
        self.wait(timeout)
        for file in self._printed[len(self._texts) :]:
            file.seek(0)
            self._texts.append(file.read().decode())
            file.close()
        out, err = self._texts
        return out, err

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        self._process.kill(number)

    def kill(self) -> None:
        """Send -9, unless it has ended."""
        self._process.kill()


def start(
    *arguments: str,
    code: str = MAIN,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
    flows: bool = False,
) -> Running:
    """Start `chunkmap` with these arguments, or other code. For the arguments, see `give`."""
    if variables is None:
        variables = {**os.environ, "PYTHONPATH": REPOSITORY, "COLUMNS": "80"}
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    with open(os.devnull) as nothing:
        streams = (nothing.fileno(), out.fileno(), err.fileno())
        folder = str(cwd or Path.cwd())
        process = forks(flows=flows).start(code, arguments, folder, variables, *streams)
    return Running(process, arguments, out, err)


def give(
    *arguments: str,
    code: str = MAIN,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
    seconds: float = 60.0,
    flows: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `chunkmap` with these arguments, or other code, and return what it has printed.

    Args:
        arguments: Those of the command line.
        code: What to run.
        cwd: Its folder, default this process's.
        variables: Its environment, default this process's and a terminal of 80 columns.
        seconds: How long it may take.
        flows: Whether Prefect and Dask are imported already, which takes seconds.

    Raises:
        TimeoutError: it takes longer; it is killed.
    """
    with start(*arguments, code=code, cwd=cwd, variables=variables, flows=flows) as running:
        try:
            out, err = running.communicate(seconds)
        except subprocess.TimeoutExpired:
            running.kill()
            raise TimeoutError from None
        assert running.returncode is not None
        return subprocess.CompletedProcess(arguments, running.returncode, out, err)


CLIENT = """#!{python} -IS
import fcntl, json, os, socket, struct, sys

variables = dict(os.environ)
forks = socket.socket(fileno=int(variables.pop("{variable}")))
job = json.dumps([{code!r}, sys.argv[1:], os.getcwd(), variables]).encode()
status, theirs = os.pipe()
with open({lock!r}, "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    socket.send_fds(forks, [struct.pack("{size}", len(job))], [0, 1, 2, theirs])
    forks.sendall(job)
os.close(theirs)
with os.fdopen(status) as lines:
    pid, code = map(int, lines.read().split())
os._exit(code if code >= 0 else 128 - code)
"""
VARIABLE = "TESTS_FORKS"


def program(path: Path, code: str, *, flows: bool = True) -> tuple[dict[str, str], int]:
    """Write a program that runs code in a fork, with its own arguments, folder and streams.

    Returns:
        Variables for the processes that start it, and the descriptor that they must inherit.
    """
    descriptor = forks(flows=flows).descriptor
    values = {"python": sys.executable, "lock": str(path.with_suffix(".lock")), "size": _SIZE}
    path.write_text(CLIENT.format(code=code, variable=VARIABLE, **values))
    path.chmod(0o755)
    return {VARIABLE: str(descriptor)}, descriptor


_SERVER = """
from tests.support.forks import _end, _serve
code = _serve({}, {})
try:
    exec(code)
except SystemExit as end:
    _end(end)
else:
    _end(SystemExit())
"""


def _end(end: SystemExit) -> None:
    """End a forked process as the interpreter does, but without taking its modules apart.

    That would take longer than most commands: each object of the modules is touched, and its page
    of memory copied, which was shared with other forks until then.
    """
    if not isinstance(end.code, int | None):
        raise end
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((end.code or 0) & 0xFF)


def _serve(descriptor: int, names: tuple[str, ...]) -> str:
    """Fork a process per request; return, in each of them, the code that it is to run."""
    for name in names:
        import_module(name)
    unwanted = {"pipeline.cli"} if names == FLOWS else NOT_IMPORTED
    assert not unwanted & sys.modules.keys()
    gc.freeze()  # Collections in the forks leave what was imported alone.
    listening = socket.socket(fileno=descriptor)
    address = listening.getsockname()
    clients: list[socket.socket] = []
    while True:
        for ready in select.select([listening, *clients], [], [])[0]:
            if ready is listening:
                clients.append(listening.accept()[0])
                continue
            mark, descriptors, _, _ = socket.recv_fds(ready, struct.calcsize(_SIZE), 4)
            with suppress(ChildProcessError):  # Their processor time counts as this process's.
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not mark:
                ready.close()
                clients.remove(ready)
                continue
            job = _received(ready, struct.unpack(_SIZE, mark)[0])
            if os.fork() == 0:
                for end in (listening, *clients):
                    end.close()
                return _child(job, *descriptors)
            for each in descriptors:
                os.close(each)
        if not clients:
            # A later client starts another server; one that has connected already is served.
            with suppress(FileNotFoundError):
                os.unlink(address)
            if not select.select([listening], [], [], 0)[0]:
                shutil.rmtree(f"{address}-prefect", ignore_errors=True)
                os._exit(0)


def _received(theirs: socket.socket, size: int) -> bytes:
    """Return what was sent, or less of it if the sender has ended."""
    data = b""
    while len(data) < size and (more := theirs.recv(size - len(data))):
        data += more
    return data


def _child(job: bytes, *descriptors: int) -> str:
    """Fork once more: one process runs the code that this returns, and the other waits for it."""
    *streams, status = descriptors
    child = os.fork()
    if child == 0:
        os.close(status)
        code, arguments, folder, variables = json.loads(job)
        _become(arguments, folder, variables, streams)
        return str(code)
    for stream in streams:
        os.close(stream)
    os.write(status, b"%d\n" % child)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def _become(
    arguments: list[str], folder: str, variables: dict[str, str], streams: list[int]
) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["-c", *arguments]
    # Tests in the background of a script inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "dask" in sys.modules:
        sys.modules["dask"].config.refresh()  # It has read other variables.
