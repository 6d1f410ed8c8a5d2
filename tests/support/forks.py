"""Run Python code in processes that are forked from one that has imported what they need.

`chunkmap` alone takes a second to import it. A forked process has, as one that is started, memory,
a working directory, variables, streams and an exit code of its own. It cannot be used to test
what an import does, nor for processes that something is done to while they run.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock

REPOSITORY = str(Path(__file__).parents[2])
MAIN = "from pipeline.cli import main; main()"
IMPORTED = (
    *("altair", "great_tables", "rich.live", "rich.table", "typer"),
    *("pipeline.runs.backfill.listing", "pipeline.runs.driver.run"),
)
"""Not the command line, whose consoles read their variables when it is imported."""
NOT_IMPORTED = {"dask", "distributed", "pipeline.cli", "prefect"}
"""They read their variables when they are imported, too."""


class Forks:
    """A process of this one that forks others, one at a time."""

    def __init__(self) -> None:
        self._busy = Lock()
        self._ours, theirs = socket.socketpair()
        code = f"from tests.support.forks import _serve; exec(_serve({theirs.fileno()}))"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        """End the process, which does so when nobody can ask it for anything any more."""
        self._ours.close()
        self._process.wait()

    def start(
        self, code: str, arguments: tuple[str, ...], folder: str, variables: Mapping[str, str],
        *streams: int,
    ) -> None:  # fmt: skip
        """Run code in a new process with these streams, as `python -c` would; then `wait`."""
        self._busy.acquire()
        try:
            job = json.dumps([code, arguments, folder, dict(variables)])
            socket.send_fds(self._ours, [b"\n"], streams)
            self._ours.sendall(job.encode() + b"\n")
        except BaseException:
            self._busy.release()
            raise

    def wait(self, seconds: float) -> int:
        """Return the exit code of the process that was started last.

        Raises:
            TimeoutError: it takes longer than this; it is killed.
        """
        self._ours.settimeout(seconds)
        try:
            said = self._ours.recv(20)
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            forks.cache_clear()
            raise
        finally:
            self._busy.release()
        assert said, "the process that forks others has ended"
        return int(said)


@cache
def forks() -> Forks:
    """Return the process that forks others for this one."""
    return Forks()


def give(
    *arguments: str,
    code: str = MAIN,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
    seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run `chunkmap` with these arguments, or other code, and return what it has printed.

    Args:
        arguments: Those of the command line.
        code: What to run.
        cwd: Its folder, default this process's.
        variables: Its environment, default this process's and a terminal of 80 columns.
        seconds: How long it may take.
    """
    if variables is None:
        variables = {**os.environ, "PYTHONPATH": REPOSITORY, "COLUMNS": "80"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with open(os.devnull) as nothing:
            streams = (nothing.fileno(), out.fileno(), err.fileno())
            process = forks()
            process.start(code, arguments, str(cwd or Path.cwd()), variables, *streams)
            ended = process.wait(seconds)
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(
            arguments, ended, out.read().decode(), err.read().decode()
        )


def _serve(descriptor: int) -> str:
    """Fork a process per request; return, in each of them, the code that it is to run."""
    for name in IMPORTED:
        import_module(name)
    assert not NOT_IMPORTED & sys.modules.keys()
    theirs = socket.socket(fileno=descriptor)
    while True:
        mark, streams, _, _ = socket.recv_fds(theirs, 1, 3)
        if not mark:
            os._exit(0)
        with theirs.makefile("rb") as reader:
            job = reader.readline()
        child = os.fork()
        if child == 0:
            theirs.close()
            code, arguments, folder, variables = json.loads(job)
            _become(arguments, folder, variables, streams)
            return str(code)
        for stream in streams:
            os.close(stream)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        theirs.sendall(str(ended).encode())


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
