"""Memory and CPU of process trees, from outside: nobody measures themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

SECONDS = 0.1
"""Between samples: a peak shorter than this may be missed."""


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
        total = 0
        for process in _trees((self.root, *self.services)):
            # It began after sampling did, so all that it used counts.
            self._note(process, 0.0)
            total += memory_of(process)
        self.use.peak_bytes = max(self.use.peak_bytes, total)

    def _note(self, process: psutil.Process, first: float | None) -> None:
        with suppress(psutil.Error):
            times = process.cpu_times()
            spent = times.user + times.system
            key = (process.pid, process.create_time())
            seen = self._seen.setdefault(key, _Seen(spent if first is None else first, spent))
            seen.last = max(seen.last, spent)


def _trees(roots: Iterable[int]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            found[pid] = root
            found |= {child.pid: child for child in root.children(recursive=True)}
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
