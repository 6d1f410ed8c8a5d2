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
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
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
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock = Lock()
        self._workers: list[_Worker] = []
        self._waiting = 0
        """Calls that no worker has begun."""
        self._idle = 0
        """Workers that wait for a call, or are being started."""
        self._is_closed = False
        with self._lock:
            self._add_worker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a module function in a worker, which gets the worker's name after the arguments.

        Returns:
            The result; its error is what the function raised, or WorkerDiedError.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the workers have been closed")
            self._waiting += 1
            if self._waiting > self._idle and len(self._workers) < self.count:
                self._add_worker()
            self._queue.put(_Call(future, call, arguments))
        return future

    def close(self) -> None:
        """End all workers: after their current chunk, or by force after some seconds."""
        with self._lock:
            self._is_closed = True
            workers, self._workers = self._workers, []
        for _ in workers:
            self._queue.put(None)
        for worker in workers:
            worker.leave()
        for worker in workers:
            worker.stop()

    def _add_worker(self) -> None:
        worker = _Worker(f"local-{len(self._workers)}", self._settings, self._environment)
        self._workers.append(worker)
        self._idle += 1
        Thread(target=self._serve, args=(worker,), name=worker.name, daemon=True).start()

    def _serve(self, worker: _Worker) -> None:
        """Give calls to a worker until there are no more."""
        while (call := self._queue.get()) is not None:
            with self._lock:
                self._waiting -= 1
                self._idle -= 1
            if call.future.set_running_or_notify_cancel():
                try:
                    call.future.set_result(worker.call(call))
                except BaseException as error:
                    call.future.set_exception(error)
            with self._lock:
                self._idle += 1


class _Call:
    __slots__ = ("arguments", "call", "future")

    def __init__(
        self, future: Future[Any], call: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self.future, self.call, self.arguments = future, call, arguments


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
                connection.send((call.call, (*call.arguments, self.name)))
                connection.recv_bytes()
            except (EOFError, OSError) as broken:
                # It has not begun the call, so it died while it was idle, or when it started.
                died = WorkerDiedError(self._describe_end())
                died.__cause__ = broken
            else:
                return self._result(connection)
        raise died

    def _connected(self) -> Connection:
        """Return the connection to the process; start another one if it has died."""
        with self._lock:
            if self._connection is None and not self._is_leaving:
                self._start()
            if self._connection is None:
                raise WorkerDiedError(f"worker {self.name} was stopped")
            return self._connection

    def _result(self, connection: Connection) -> Any:
        try:
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
