"""Give jobs to child processes that may die or hang, and say what became of each."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
MEMORY: Final = 4 << 30
"""Bytes of address space that a child may take."""
_START_SECONDS: Final = 60.0
_OURS: Final = ("planning", "reading")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job."""

    outcome: str
    """`equal`, `refused in planning`, `refused in reading`, `differs`, and others."""
    detail: str
    broke: tuple[str, ...] = ()
    """Other readers that died or hung."""


class Child:
    """A child process, started again whenever it ends."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- until `close`
        self._rest = b""

    def do(self, job: Mapping[str, Any]) -> Result:
        """Do a job; one that ends the process while another reader reads is done without it."""
        broke: list[str] = []
        hung = False
        while True:
            found = self._try({**job, "skip": [*job.get("skip", ()), *broke]})
            if isinstance(found, Result):
                return Result(found.outcome, found.detail, tuple(broke))
            stage, how = found
            if how.startswith("hang") and not hung:
                hung = True  # Once more: the machine may be busy.
                continue
            if stage in _OURS or stage in broke:
                return Result(f"{how.split(':')[0]} in {stage}", how, tuple(broke))
            broke.append(stage)

    def _try(self, job: Mapping[str, Any]) -> Result | tuple[str, str]:
        """Return the result; or the stage in which it ended, and how."""
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        stage, limit = "planning", _START_SECONDS
        while True:
            line = self._line(process, limit)
            if line is None:
                return stage, self._end(process)
            answer = json.loads(line)
            if "result" in answer:
                return Result(answer["result"]["outcome"], answer["result"]["detail"])
            stage, limit = answer["stage"], self._seconds

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._rest = b""
            self._errors.seek(0)
            self._errors.truncate()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.child", str(MEMORY)],
                cwd=ROOT,
                env={**os.environ, "POLARS_MAX_THREADS": "1", "RUST_BACKTRACE": "0"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """Return the next line, or None if it takes too long or none comes."""
        assert process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self, process: subprocess.Popen[bytes]) -> str:
        """End the process; return how it had ended, or that it hung."""
        try:
            code = process.wait(0.5)
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            how = "hang"
            process.send_signal(signal.SIGABRT)  # Its last words are where it is.
            time.sleep(0.5)
        self._stop()
        self._errors.seek(0)
        last = self._errors.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {' | '.join(last[-8:])[:900]}"

    def close(self) -> None:
        """End the process, for good."""
        self._stop()
        self._errors.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        continue
            self._process = None


def done(
    jobs: Iterable[tuple[Any, Mapping[str, Any]]], seconds: float = 10.0
) -> Iterator[tuple[Any, Result]]:
    """Yield each job's name and result, one after the other."""
    child = Child(seconds)
    try:
        for name, job in jobs:
            yield name, child.do(job)
    finally:
        child.close()
