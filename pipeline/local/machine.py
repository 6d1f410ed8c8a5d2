"""Read the cores and the memory of this machine, or of the container that this process is in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the cores that this process may use, at least one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([count or 1, *map(math.ceil, _cpu_limits())]))


def memory() -> int:
    """Return the bytes of memory that this process may use."""
    return min([int(psutil.virtual_memory().total), *_memory_limits()])


def _cpu_limits() -> Iterator[float]:
    words = _words("cpu.max")  # Version 2: quota and period, or `max` and period.
    quota, period = _words("cpu/cpu.cfs_quota_us"), _words("cpu/cpu.cfs_period_us")
    for pair in (words, [*quota, *period]):
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() and int(pair[1]):
            yield int(pair[0]) / int(pair[1])


def _memory_limits() -> Iterator[int]:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(name)
        if words and words[0].isdigit():
            yield int(words[0])


def _words(name: str) -> list[str]:
    with suppress(OSError):
        return (_CGROUPS / name).read_text("ascii", errors="replace").split()
    return []
