"""The side of a worker process: do what the driver sends, and end with it.

The driver and its workers are connected by pairs of sockets that no other process has, so that what
comes in is the driver's.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.config.settings import Settings, adopt_settings
from pipeline.errors import RunFailedError
from pipeline.logs import PrintedLines, set_up
from pipeline.processes import freeze_imports
from pipeline.runs.transforms.user_code import describe
from pipeline.runs.worker.batch import Batch, BatchResult
from pipeline.runs.worker.reduce import Step, reduce_step
from pipeline.runs.worker.run_batch import run_batch
from pipeline.runs.worker.run_settings import keep_functions, lacking_functions

_driver: list[Connection] = []
"""The connection to the driver, once the process serves it."""


def main(descriptor: int) -> None:
    """Serve the driver at the other end of a socket until it closes it.

    Args:
        descriptor: The file descriptor of this end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The driver decides what a Ctrl-C means.
    connection = Connection(descriptor)
    _driver.append(connection)
    try:
        _begin(connection.recv())
        while True:
            call, arguments, digests = connection.recv()
            lacking = lacking_functions(digests)
            connection.send(lacking)  # The call has begun.
            if lacking:
                keep_functions(connection.recv())
            connection.send_bytes(_answer(call, arguments))
    except (EOFError, OSError):
        pass  # The driver has ended, or needs no more workers.
    # Not a normal end, which would wait for threads of a transform.
    sys.stderr.flush()
    os._exit(0)


def _begin(settings: Settings) -> None:
    adopt_settings(settings)
    set_up(settings.logs.format, "warning")
    sys.stdout = PrintedLines()
    freeze_imports()


def _answer(call: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """Call a function; return its result or its error, pickled."""
    try:
        return pickle.dumps((call(*arguments), None))
    except BaseException as error:
        return pickle.dumps((None, _sendable(error)))


def _sendable(error: BaseException) -> BaseException:
    """Return an error that the driver can unpickle."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        again = None
    return error if type(again) is type(error) else RunFailedError(describe(error))


def _is_leaving() -> bool:
    """Whether the driver has ended or closes this worker: it sends nothing while a call runs."""
    return _driver[0].poll()


def map_here(  # noqa: PLR0917 - arguments travel by position
    run_uri: str, fingerprint: str, batch: Batch, sent: str, memory_limit: int, worker: str
) -> BatchResult:
    """Map a batch of chunks, or merge one of files, in this worker."""
    return run_batch(
        run_uri, fingerprint, batch, worker, _is_leaving, sent=sent, memory_limit=memory_limit
    )


def reduce_here(run_uri: str, fingerprint: str, step: Step, sent: str, worker: str) -> None:
    """Do one step of a reduce in this worker."""
    reduce_step(run_uri, fingerprint, step, worker, sent=sent)
