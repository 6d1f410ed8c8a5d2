"""Start background processes that outlive this one, and stop exactly those."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil

from pipeline.processes import is_alive, start_time
from pipeline.report.humanize import instant

MARKER = "_CHUNKMAP_STACK"
"""Environment variable that marks every process of a stack."""
HOST = "127.0.0.1"
_SERVER_PORTS = range(20_000, 32_768)
_POLL = 0.05  # seconds
_LOG_LIMIT = 10 * 2**20  # bytes

# Children of this process, which only it can reap.
_children: dict[int, tuple[subprocess.Popen[bytes], str]] = {}


def free_ports(count: int) -> tuple[int, ...]:
    """Find different ports that are free at this moment.

    They are below the ports that systems give to outgoing connections (32768 and up on Linux, 49152
    elsewhere): any program's connection could hold one of those when a server starts again.
    """
    candidates = random.SystemRandom().sample(_SERVER_PORTS, k=len(_SERVER_PORTS))
    free = tuple(islice(filter(_is_free, candidates), count))
    if len(free) < count:
        raise OSError(f"fewer than {count} ports of {HOST} are free in {_SERVER_PORTS}")
    return free


def all_free(ports: Sequence[int]) -> bool:
    """Whether all these ports are free at this moment."""
    return all(_is_free(port) for port in ports)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As servers do; otherwise lingering connections after a crash would count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Whether something accepts connections at a port of this machine."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    marker: str,
    *,
    umask: int = -1,
) -> tuple[int, float]:
    """Start a command in a separate session, which no terminal's Ctrl-C or hang-up reaches.

    Args:
        command: Program and arguments.
        environment: All of its variables.
        folder: Its working folder.
        log: The file to which its output is appended.
        marker: The value of MARKER, by which it is found after a crash.
        umask: Its umask; -1 for that of this process.

    Returns:
        Its process id and start time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".old.log"))
    with log.open("ab") as output:
        output.write(f"--- {instant(time.time())} {command[0]}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**environment, MARKER: marker},
            start_new_session=True,
            umask=umask,
        )
    _children[process.pid] = process, marker
    # 0 is safe: the id of a process that has ended is not used again until it is reaped.
    return process.pid, start_time(process.pid) or 0.0


def runs(pid: int, started: float) -> bool:
    """Whether a recorded process still runs."""
    _reap(pid)
    return is_alive(pid, started)


def marked(marker: str) -> list[psutil.Process]:
    """List all processes of this machine whose environment holds the marker, without zombies."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _mark_of(process) == marker and _runs(process):
                processes.append(process)
    return processes


def _mark_of(process: psutil.Process) -> str | None:
    _reap(process.pid)
    child = _children.get(process.pid)
    # For a moment after its start, the environment of a process reads as empty.
    return child[1] if child else process.environ().get(MARKER)


def stop(marker: str, keep: Collection[int] = (), seconds: float = 10) -> int:
    """Stop the processes of a stack, except those of the sessions to keep.

    Leaders of sessions are terminated first, because each ends its own children; processes that are
    left after `seconds` are killed, and children without a leader are killed at once.

    Returns:
        The number of processes that were stopped.
    """
    targets = [process for process in marked(marker) if _session(process) not in keep]
    leaders = {process.pid for process in targets if _session(process) == process.pid}
    for process in targets:
        if process.pid in leaders:
            _signal(process, signal.SIGTERM)
        elif _session(process) not in leaders:
            _signal(process, signal.SIGKILL)
    _await_end(targets, seconds)
    # Children that outlived their leader, or were started meanwhile.
    rest = [process for process in marked(marker) if _session(process) not in keep]
    for process in rest:
        _signal(process, signal.SIGKILL)
    _await_end(rest, seconds)
    return len(targets)


def _await_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _runs(process: psutil.Process) -> bool:
    _reap(process.pid)
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return 0


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    # psutil checks the start time first, so a process with a reused id is not signalled.
    with suppress(psutil.Error, OSError):
        process.send_signal(number)


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child[0].poll() is not None:
        del _children[pid]
