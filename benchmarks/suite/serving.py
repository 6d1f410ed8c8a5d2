"""A subject that stays up and does its work on demand: for timers that are not ours."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.peers.protocol import Spec
from benchmarks.suite.environments import Environment
from benchmarks.suite.subjects import end_group


@dataclass(slots=True)
class Serving:
    """A subject's process, started when its block begins and ended with it.

    Args:
        environment: How its script is started.
        spec: What it does, each time.
        variables: Environment of the process.
        folder: Its working folder.
    """

    environment: Environment
    spec: Spec
    variables: Mapping[str, str]
    folder: Path | None = None
    _process: subprocess.Popen[bytes] | None = None
    _scratch: tempfile.TemporaryDirectory[str] | None = field(default=None)

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="chunkmap-bench-")
        file = Path(self._scratch.name, "spec.json")
        file.write_text(json.dumps(asdict(replace(self.spec, serve=True))), encoding="utf-8")
        self._process = subprocess.Popen(
            [*self.environment.command, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder or self._scratch.name,
            env={**os.environ, **self.variables, **self.environment.variables},
            start_new_session=True,
        )
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._scratch is not None
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            end_group(self._process)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._scratch.cleanup()

    @property
    def pid(self) -> int:
        """Id of the subject's process."""
        assert self._process is not None
        return self._process.pid

    def work(self) -> dict[str, Any]:
        """Do the work once; returns what the subject tells of it.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._process is not None
        stdin: IO[bytes] | None = self._process.stdin
        assert stdin is not None
        stdin.write(b"go\n")
        stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        report: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in report:
            raise RuntimeError(f"{self.environment.command[-1]}: {report['error']}")
        return report
