"""Keep worker processes of this machine: started when there is work, replaced when they die.

Processes are started by command line and not by `multiprocessing`, which would run the program of
the user again in each of them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Condition, Lock, Thread
from types import MappingProxyType
from typing import Any, Self

from pipeline.cluster.resources import for_machine
from pipeline.config.settings import Settings
from pipeline.errors import ChunkmapError
from pipeline.local import machine
from pipeline.own_packages import FOLDER

STOP_SECONDS = 4.0
"""Seconds that a worker may take to end; short, because a user waits for it."""
START_ATTEMPTS = 3
"""Processes that are started for a call before it fails."""
START = (
    "import json, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from pipeline.local.process import main\n"
    "main(int(sys.argv[2]))"
)
"""The program of a worker; its arguments are the driver's import path and the socket."""


class WorkerDiedError(ChunkmapError):
    """A worker process ended while it worked, e.g. because it ran out of memory."""


class LocalWorkers:
    """A pool of worker processes; use it as a context manager.

    Each process has a thread here that waits for it. A process is started when a call finds none
    idle, up to `count`.
    """

    def __init__(self, settings: Settings) -> None:
        """Start the first worker, whose imports take a second.

        Args:
            settings: Settings of the workers; `dask.workers`, `dask.threads_per_worker` and
                `dask.memory_per_worker` say how many there are and what memory each has.
        """
        dask = settings.dask
        self.count, profile = for_machine(
            machine.cores(),
            dask.workers,
            dask.threads_per_worker,
            dask.memory_per_worker,
            machine.memory(),
        )
        self.count *= profile.threads
        self.memory = profile.memory // profile.threads
        """Bytes of memory of each worker."""
        self._settings = settings
        self._environment = {**os.environ, **profile.environment(), **settings.s3.environment()}
        self._changed = Condition()
        self._workers: list[_Worker] = []
        self._waiting: deque[_Call] = deque()
        """Calls that no worker has begun."""
        self._idle: set[int] = set()
        """Numbers of the workers that wait for a call, or are being started."""
        self._is_closed = False
        with self._changed:
            self._add_worker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        call: Callable[..., Any],
        *arguments: Any,
        functions: Mapping[str, bytes] = MappingProxyType({}),
        among: int | None = None,
    ) -> Future[Any]:
        """Call a module function in a worker, which gets the worker's name after the arguments.

        Args:
            call: The function.
            arguments: Its arguments.
            functions: Pickled functions that it needs, by digest; those that a worker lacks are
                sent to it.
            among: Number of workers, the first ones, one of which is to do it; default all.

        Returns:
            The result; its error is what the function raised, or WorkerDiedError.
        """
        future: Future[Any] = Future()
        among = self.count if among is None else min(among, self.count)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the workers have been closed")
            idle = sum(number < among for number in self._idle)
            if len(self._waiting) >= idle and len(self._workers) < among:
                self._add_worker()
            self._waiting.append(_Call(future, call, arguments, functions, among))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """End all workers: after their current chunk, or by force after some seconds."""
        with self._changed:
            self._is_closed = True
            workers, self._workers = self._workers, []
            self._changed.notify_all()
        for worker in workers:
            worker.leave()
        for worker in workers:
            worker.stop()

    def _add_worker(self) -> None:
        number = len(self._workers)
        worker = _Worker(f"local-{number}", self._settings, self._environment)
        self._workers.append(worker)
        self._idle.add(number)
        Thread(target=self._serve, args=(number, worker), name=worker.name, daemon=True).start()

    def _serve(self, number: int, worker: _Worker) -> None:
        """Give calls to a worker until there are no more."""
        while (call := self._next(number)) is not None:
            if call.future.set_running_or_notify_cancel():
                try:
                    call.future.set_result(worker.call(call))
                except BaseException as error:
                    call.future.set_exception(error)

    def _next(self, number: int) -> _Call | None:
        """Wait for a call that a worker is to do; None once the workers are closed."""
        with self._changed:
            self._idle.add(number)
            while True:
                for call in self._waiting:
                    if number < call.among:
                        self._waiting.remove(call)
                        self._idle.discard(number)
                        return call
                if self._is_closed:
                    return None
                self._changed.wait()


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A call that waits for a worker."""

    future: Future[Any]
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    functions: Mapping[str, bytes]
    among: int


class _Worker:
    """One worker process, replaced by another one when it dies."""

    def __init__(self, name: str, settings: Settings, environment: dict[str, str]) -> None:
        self.name = name
        self._settings, self._environment = settings, environment
        self._lock = Lock()
        self._is_leaving = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._start()

    def _start(self) -> None:
        # The packages of this process, wherever it has them from.
        path = json.dumps([*sys.path, str(FOLDER)])
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", START, path, str(theirs.fileno())]
            try:
                # In a process group of its own, so that a Ctrl-C in a terminal reaches only us.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=self._environment,
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise
        self._process, self._connection = process, Connection(ours.detach())
        with suppress(OSError):  # It has died; the first call says so.
            self._connection.send(self._settings)

    def call(self, call: _Call) -> Any:
        """Do a call in the process; raises what the call raises, or WorkerDiedError."""
        for _ in range(START_ATTEMPTS):
            connection = self._connected()
            try:
                connection.send((call.call, (*call.arguments, self.name), tuple(call.functions)))
                lacking = connection.recv()
            except (EOFError, OSError) as broken:
                # It has not begun the call, so it died while it was idle, or when it started.
                died = WorkerDiedError(self._describe_end())
                died.__cause__ = broken
            else:
                return self._result(connection, [call.functions[digest] for digest in lacking])
        raise died

    def _connected(self) -> Connection:
        """Return the connection to the process; start another one if it has died."""
        with self._lock:
            if self._connection is None and not self._is_leaving:
                self._start()
            if self._connection is None:
                raise WorkerDiedError(f"worker {self.name} was stopped")
            return self._connection

    def _result(self, connection: Connection, functions: list[bytes]) -> Any:
        """Send functions that the worker lacks for the call, and wait for its end."""
        try:
            if functions:
                connection.send(functions)
            result, error = connection.recv()
        except (EOFError, OSError) as broken:
            raise WorkerDiedError(self._describe_end()) from broken
        if error is not None:
            raise error
        return result

    def _describe_end(self) -> str:
        """Forget the dead process; say how it ended."""
        with self._lock:
            process, connection = self._process, self._connection
            self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return f"worker {self.name} was stopped"
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"worker {self.name} (process {process.pid}) ended {how}"

    def leave(self) -> None:
        """Tell the process to end after its current chunk."""
        with self._lock:
            self._is_leaving = True
            connection = self._connection
        if connection is not None:
            with suppress(OSError):
                # Not closed, since a thread may wait for an answer.
                shut = socket.socket(fileno=os.dup(connection.fileno()))
                with shut:
                    shut.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """Wait until the process ends; kill it after some seconds."""
        with self._lock:
            process = self._process
        if process is None:
            return
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with self._lock:
            connection, self._connection, self._process = self._connection, None, None
        if connection is not None:
            connection.close()
