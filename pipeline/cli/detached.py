"""Start the driver of a run or a backfill as a background process that outlives the terminal."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.output import notes, say, show_pairs, warn
from pipeline.config.settings import Settings
from pipeline.errors import RunFailedError
from pipeline.own_packages import COMMAND
from pipeline.private import state_folder
from pipeline.runs.driver.heartbeat import DriverRecord
from pipeline.runs.driver.session import is_driven_elsewhere

START_SECONDS = 90.0
"""Seconds to wait for the driver's first heartbeat: importing Prefect alone takes seconds."""
LOG_LINES = 12
"""Lines of the log to show if the driver did not start."""


def log_of(settings: Settings, kind: str, name: str) -> Path:
    """Return the log of the background driver of a run or a backfill, which may not exist.

    Args:
        settings: The settings, which name the folder for logs.
        kind: The word `run` or `backfill`.
        name: The id.
    """
    return settings.state_dir / f"{kind}s" / f"{name}.log"


def start_detached(
    kind: str,
    name: str,
    arguments: Sequence[str],
    settings: Settings,
    driver: Callable[[], DriverRecord | None],
    *,
    take_over: bool,
) -> dict[str, Any]:
    """Start a background driver and wait for its first heartbeat, unless another one drives.

    Args:
        kind: The word `run` or `backfill`.
        name: The id.
        arguments: The command that drives it, without `chunkmap`.
        settings: The settings, which name the folder for logs.
        driver: Reads the record of the driver.
        take_over: Start it even if another driver seems alive.

    Returns:
        The process id, the log, and whether the driver has begun.

    Raises:
        RunFailedError: The driver ended before its first heartbeat.
    """
    current = driver()
    if current is not None and is_driven_elsewhere(current, "") and not take_over:
        where = f"process {current.pid} on {current.host}"
        say(f"{kind} {name}: {where} drives it already", console=notes)
        return {"pid": current.pid, "log": "where it was started", "begun": True}
    state_folder(settings.state_dir, f"{kind}s")
    log = log_of(settings, kind, name)
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    say(f"starting a driver: process {process.pid} …", console=notes)
    begun = _await(process, f"{kind} {name}", driver, log, begin)
    return {"pid": process.pid, "log": str(log), "begun": begun}


def show_detached(title: str, started: Mapping[str, Any], commands: Mapping[str, str]) -> None:
    """Print the process, and the commands to follow and control it."""
    rows = {**commands, "log": started["log"]}
    verb = "runs" if started["begun"] else "starts"
    show_pairs(f"{title} {verb} in the background (process {started['pid']})", rows)


def _await(
    process: subprocess.Popen[bytes],
    what: str,
    driver: Callable[[], DriverRecord | None],
    log: Path,
    begin: int,
) -> bool:
    """Wait for the driver's first heartbeat, or for its end; return whether it has begun."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        heartbeat = driver()
        if heartbeat is not None and heartbeat.pid == process.pid:
            return True
        try:
            code = process.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
        if not code:
            return True
        text = log.read_bytes()[begin:].decode(errors="replace")
        tail = "\n".join(text.splitlines()[-LOG_LINES:])
        raise RunFailedError(
            f"the driver of {what} ended with exit code {code}:\n{tail}", hint=f"its log: {log}"
        )
    warn(
        f"process {process.pid} has not begun with {what} for {START_SECONDS:g} s; it may be slow "
        f"or wait for a service: see {log}"
    )
    return False
