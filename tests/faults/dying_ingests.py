"""`python -m tests.faults.dying_ingests`: drivers of ingests that are killed at a request.

Each line of standard input is a definition, the number of the request of storage at which the
driver is killed (none if negative), and `before` or `after` it. Each driver is a process, forked
from this one, which has imported everything; its id and its exit code are printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import NoReturn

from pipeline.config.ingest import Ingest
from pipeline.http_answers import Waits
from pipeline.ingest import IngestOptions, ingest
from pipeline.storage import Storage
from pipeline.storage.local_backend import LocalBackend
from tests.support.faulty_storage import Fault, Faulty, at
from tests.support.memory_storage import AT_ONCE


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it is dead")


def _drive(definition: dict[str, object], number: int, fault: Fault) -> None:
    backend = Faulty(LocalBackend(), at(number, fault), _end)
    storage = Storage({"file": backend}, AT_ONCE)
    options = IngestOptions(waits=Waits(0.001, 0.002))
    ingest(Ingest.model_validate(definition), options=options, storage=storage)


def main() -> None:
    """Start a driver for each line."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                _drive(*json.loads(line))
                code = 0
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
