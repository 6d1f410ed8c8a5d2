"""Memory and CPU of process trees, from outside: nobody measures themselves."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

SECONDS = 0.1
"""Between samples: a peak shorter than this may be missed."""
LISTED_SECONDS = 0.5
"""Between two looks for new processes, each of which reads the table of all processes."""
GROWTH = 1.01
"""Growth of resident memory at which proportional memory is measured again. To measure it, the
kernel walks all pages of a process and holds up its page faults meanwhile: ten times per second,
that took a tenth of two cores, most of it from whoever has the most processes."""


@dataclass(slots=True)
class TreeUse:
    """What a tree of processes used."""

    peak_bytes: int = 0
    """Proportional set size (shared pages are divided among their users) where the system tells
    it, else resident memory, summed over the tree at its highest."""
    cpu_seconds: float = 0.0
    """User and system, of the processes that were seen, from when they were first seen."""


@dataclass(slots=True)
class _Seen:
    first: float
    """CPU seconds that the process had used when sampling began."""
    last: float


@dataclass(slots=True)
class Sampler:
    """Samples a tree, and the trees of services that work for it, in a thread.

    Args:
        root: The process whose whole life is measured.
        services: Processes that ran before, such as a cluster's; only what they use meanwhile
            counts as CPU, but all of their memory does.
    """

    root: int
    services: tuple[int, ...] = ()
    use: TreeUse = field(default_factory=TreeUse)
    _seen: dict[tuple[int, float], _Seen] = field(default_factory=dict)
    _tree: list[psutil.Process] = field(default_factory=list)
    _listed: float = -math.inf
    _resident: float = 0.0
    """Resident bytes of the tree above which its proportional memory is measured again."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        for process in _trees(self.services):
            self._note(process, None)
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()
        self.use.cpu_seconds = sum(entry.last - entry.first for entry in self._seen.values())

    def _run(self) -> None:
        while not self._stop.wait(SECONDS):
            self._sample()

    def _sample(self) -> None:
        now = time.monotonic()
        if now - self._listed >= LISTED_SECONDS:
            self._tree, self._listed = _trees((self.root, *self.services)), now
        resident = 0
        for process in self._tree:
            # It began after sampling did, so all that it used counts.
            self._note(process, 0.0)
            with suppress(psutil.Error):
                resident += process.memory_info().rss
        if resident > self._resident:
            self._resident = resident * GROWTH
            self.use.peak_bytes = max(self.use.peak_bytes, sum(map(memory_of, self._tree)))

    def _note(self, process: psutil.Process, first: float | None) -> None:
        with suppress(psutil.Error):
            times = process.cpu_times()
            spent = times.user + times.system
            key = (process.pid, process.create_time())
            seen = self._seen.setdefault(key, _Seen(spent if first is None else first, spent))
            seen.last = max(seen.last, spent)


def _trees(roots: Iterable[int]) -> list[psutil.Process]:
    """List processes and all that they have started, in one pass over the table of processes."""
    children: dict[int, list[psutil.Process]] = {}
    known: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["ppid"]):
        known[process.pid] = process
        children.setdefault(process.info["ppid"], []).append(process)
    found: dict[int, psutil.Process] = {}
    waiting = [known[pid] for pid in roots if pid in known]
    while waiting:
        process = waiting.pop()
        if process.pid not in found:
            found[process.pid] = process
            waiting += children.get(process.pid, ())
    return list(found.values())


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process's memory; 0 when it is gone."""
    try:
        # Summing resident memory would count Ray's shared store and forked pages many times.
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
