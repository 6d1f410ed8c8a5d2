"""Runs one subject (chunkmap or a peer) once, in a process of its own, and measures it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Protocol

import psutil

from benchmarks.peers.protocol import LAUNCHED, Spec
from benchmarks.suite.environments import Environment
from benchmarks.suite.sampling import Sampler

TIMEOUT = 900.0
"""Seconds per iteration after which a subject is ended and counts as failed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one process of a subject came to."""

    startup_seconds: float | None = None
    iterations: tuple[Mapping[str, Any], ...] = ()
    """`work_seconds`, `output`, and other figures that the subject reports."""
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    """Empty if it did its work."""
    peak_bytes: int = 0
    cpu_seconds: float = 0.0


class Subject(Protocol):
    """What measure.py measures. Tests make up their own."""

    @property
    def name(self) -> str:
        """Of the peer."""
        ...

    def run(self, spec: Spec, variables: Mapping[str, str]) -> Answer:
        """Do the work in a fresh process; never raises for what the subject does wrong."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessSubject:
    """A script in an environment.

    Attributes:
        name: Of the peer.
        environment: How its script is started.
        services: Processes that work for it.
        folder: Working folder of the process.
        timeout: Seconds, for each time that the work is done.
    """

    name: str
    environment: Environment
    services: Sequence[int] = ()
    folder: Path | None = None
    timeout: float = TIMEOUT

    def run(self, spec: Spec, variables: Mapping[str, str]) -> Answer:
        """See `Subject.run`."""
        with tempfile.TemporaryDirectory(prefix="chunkmap-bench-") as scratch:
            file = Path(scratch, "spec.json")
            file.write_text(json.dumps(asdict(spec)), encoding="utf-8")
            errors = Path(scratch, "stderr.txt")
            with errors.open("wb") as stderr:
                process = subprocess.Popen(
                    [*self.environment.command, str(file)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=self.folder or scratch,
                    env={
                        **os.environ,
                        **variables,
                        **self.environment.variables,
                        LAUNCHED: repr(time.time()),
                    },
                    start_new_session=True,
                )
                try:
                    with Sampler(process.pid, tuple(self.services)) as sampler:
                        out, problem = self._wait(process, self.timeout * spec.iterations)
                except BaseException:
                    end_group(process)
                    raise
            said = errors.read_text("utf-8", errors="replace")
        answer = parse(out, process.returncode, problem, said)
        return replace_use(answer, sampler.use.peak_bytes, sampler.use.cpu_seconds)

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> tuple[str, str]:
        problem = ""
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            problem = f"it was not done after {seconds:g} s"
            end_group(process)
            out, _ = process.communicate()
        return out.decode("utf-8", errors="replace"), problem


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: what it started is stopped on the way out.

    Subjects lead sessions of their own, so nobody else would stop them.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if current_thread() is not main_thread():
        yield  # Python gives signals to the main thread alone.
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started (it leads a session of its own)."""
    children = []
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError):
        pass
    for child in children:
        try:
            child.kill()
        except psutil.Error:
            continue


def parse(out: str, code: int | None, problem: str, said: str) -> Answer:
    """What a process printed, as an answer; what went wrong is in its error."""
    lines = [line for line in out.splitlines() if line.startswith("{")]
    try:
        report: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        report = {}
    error = problem or str(report.get("error", ""))
    if not error and (code or not report):
        tail = " | ".join(said.strip().splitlines()[-5:])
        error = f"it ended with code {code} and no result: {tail}"[:4000]
    return Answer(
        startup_seconds=report.get("startup_seconds"),
        iterations=tuple(report.get("iterations", ())),
        versions=report.get("versions", {}),
        error=error,
    )


def replace_use(answer: Answer, peak_bytes: int, cpu_seconds: float) -> Answer:
    """The answer with what its processes used."""
    return Answer(
        answer.startup_seconds,
        answer.iterations,
        answer.versions,
        answer.error,
        peak_bytes,
        cpu_seconds,
    )
