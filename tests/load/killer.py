"""Loads in processes that die at a chosen step.

`python -m tests.load.killer MODULE:SESSION` imports once, and forks a process per line of input.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Self

import pyarrow as pa

DIED = 9


class Killer:
    """Starts loads that die; each takes as long as the load alone."""

    def __init__(self, session: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.killer", session],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def load_and_die(self, output: str, into: str, mode: str, step: str) -> None:
        """Load into table t, and die at a step such as `insert-during`; fails if it lives."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([output, into, mode, step]), file=self._process.stdin, flush=True)
        ended = self._process.stdout.readline()
        assert ended == f"{DIED}\n", f"{step}: the load ended with {ended}"


def _die(step: str, session: Any) -> None:
    """Let a method of sessions end the process before, while or after it does its work."""
    name, _, when = step.partition("-")
    original = getattr(session, name)

    def dies(self: Any, *arguments: Any, **options: Any) -> None:
        if when == "during":
            table, reader = arguments
            schema = reader.schema
            original(self, table, pa.RecordBatchReader.from_batches(schema, _some(reader)))
        elif when == "after":
            original(self, *arguments, **options)
        os._exit(DIED)

    setattr(session, name, dies)


def _some(reader: Any) -> Iterator[Any]:
    yield next(iter(reader))
    os._exit(DIED)


def _load(session: str, output: str, into: str, mode: str, step: str) -> None:
    from pipeline.config.load_file import load_file_of
    from pipeline.config.settings import load_settings
    from pipeline.load.connect import open_load
    from pipeline.storage import open_storage

    module, _, name = session.partition(":")
    _die(step, getattr(importlib.import_module(module), name))
    file = load_file_of(
        {
            "name": "t",
            "input.uri": output,
            "into.uri": into,
            "into.table": None if into.startswith("delta:") else "t",
            "into.mode": mode,
        }
    )
    settings = load_settings()
    open_load(file, settings, open_storage(settings)).run()


def _main(session: str) -> None:
    importlib.import_module("pipeline.load.loader")  # Once, for all forks.
    importlib.import_module(session.partition(":")[0])

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _load(session, *json.loads(line))
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
