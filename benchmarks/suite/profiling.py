"""Flame graphs of a warm run: py-spy samples the driver and the local services from outside.

py-spy is a program and no dependency: workers run as they always do, and Dask's own profiler, which
can deadlock them, stays off.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from benchmarks.peers.protocol import Spec
from benchmarks.suite.serving import Serving
from benchmarks.suite.subjects import ProcessSubject
from pipeline.errors import UsageError

PROGRAM = "py-spy"
MIN_SECONDS = 5.0
"""Work is repeated until it has taken this long: a hundred samples a second tell little of less."""
STOP_SECONDS = 120.0
"""Seconds that py-spy may take to write its file."""


def find_program() -> str:
    """Find py-spy next to this Python, or on the path.

    Raises:
        UsageError: It is not installed.
    """
    path = shutil.which(PROGRAM, path=str(Path(sys.executable).parent)) or shutil.which(PROGRAM)
    if path is None:
        raise UsageError(
            "profiles are made by py-spy, which is not installed",
            hint="pip install py-spy, or measure without --profile",
        )
    return path


class Recording:
    """A process and its children, sampled during a block into a flame graph."""

    def __init__(self, pid: int, path: Path, *, children: bool, program: str | None = None) -> None:
        """Prepare a recording of process `pid` into the SVG file `path`."""
        words = [program or find_program(), "record", "--pid", str(pid), "--output", str(path)]
        # Stopping the process for each sample would wake its waiting threads, which then count as
        # busy; read while it runs, a stack is torn now and then, and left out.
        words += ["--format", "flamegraph", "--nonblocking"]
        self._command = words + ["--subprocesses"] * children
        self._path = path
        self.problem = ""
        """Why there is no file; empty if there is one, or not yet."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        self._lines: list[str] = []
        for line in self._process.stdout:  # Ends with the process, if it cannot attach.
            self._lines.append(line.strip())
            if "Sampling process" in line:
                break
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            rest, _ = self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            rest, _ = self._process.communicate()
        if not self._path.exists():
            said = [line for line in (*self._lines, *rest.splitlines()) if line.strip()]
            self.problem = said[-1] if said else f"it ended with code {self._process.returncode}"


def profile(
    subject: ProcessSubject,
    spec: Spec,
    variables: Mapping[str, str],
    *,
    services: Mapping[str, int],
    folder: Path,
    echo: Callable[[str], None] = lambda line: None,
) -> Sequence[Path]:
    """Do a subject's work warm and untimed, and write a flame graph of each process.

    Args:
        subject: Who works.
        spec: What is done.
        variables: Environment of its process.
        services: Name to id of further processes, which are sampled with their children.
        folder: Where the files go: `<workload>-driver.svg`, `<workload>-<service>.svg`.
        echo: Told why a file is missing.

    Raises:
        RuntimeError: The work failed.
    """
    with Serving(subject.environment, spec, variables, subject.folder) as serving:
        serving.work()  # Cold: imports would hide the rest.
        processes = {"driver": (serving.pid, False)}
        processes |= {name: (pid, True) for name, pid in services.items()}
        paths = {name: folder / f"{spec.workload}-{name}.svg" for name in processes}
        with ExitStack() as stack:
            recordings = {
                name: stack.enter_context(Recording(pid, paths[name], children=children))
                for name, (pid, children) in processes.items()
            }
            end = time.monotonic() + MIN_SECONDS
            serving.work()
            while time.monotonic() < end:
                serving.work()
    for name, recording in recordings.items():
        if recording.problem:
            echo(f"{spec.workload}: no profile of {name}: {recording.problem}")
    return [path for path in paths.values() if path.exists()]
