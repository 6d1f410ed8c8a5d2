"""Start the driver of a backfill as a background process that outlives the terminal."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from pipeline.cli.output import notes, say, show_pairs
from pipeline.config.settings import Settings
from pipeline.errors import RunFailedError
from pipeline.own_packages import COMMAND
from pipeline.private import state_folder
from pipeline.runs.backfill.store import BackfillStore

START_SECONDS = 90.0
"""Seconds to wait for the driver's first heartbeat: importing Prefect alone takes seconds."""
LOG_LINES = 12
"""Lines of the log to show if the driver did not start."""


def start_detached(
    store: BackfillStore, settings: Settings, environment: str | None, flags: dict[str, Any]
) -> dict[str, Any]:
    """Start a background driver, and wait for its first heartbeat.

    Args:
        store: The backfill.
        settings: The settings, which name the folder for logs.
        environment: The environment of the settings, for the driver.
        flags: The fields of `ResumeFlags`, for `chunkmap backfill drive`.

    Returns:
        What `--json` prints.

    Raises:
        RunFailedError: The driver ended before its first heartbeat.
    """
    log = state_folder(settings.state_dir, "backfills") / f"{store.backfill}.log"
    command = [*COMMAND, "backfill", "drive", store.backfill]
    command += ["--output", store.output, "--again", json.dumps(flags)]
    command += ["--environment", environment] if environment else []
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as sink:
        driver = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    say(f"starting a driver: process {driver.pid} …", console=notes)
    _await(driver, store, log, begin)
    return {
        "backfill": store.backfill,
        "output": store.output,
        "pid": driver.pid,
        "log": str(log),
    }


def show_detached(started: dict[str, Any]) -> None:
    """Print the process, and the commands to follow and control it."""
    backfill = started["backfill"]
    commands = {
        "watch": f"chunkmap backfill status {backfill} --watch",
        "pause": f"chunkmap backfill pause {backfill}",
        "resume": f"chunkmap backfill resume {backfill}",
        "cancel": f"chunkmap backfill cancel {backfill}",
        "log": started["log"],
    }
    show_pairs(f"backfill {backfill} runs in the background (process {started['pid']})", commands)


def _await(driver: subprocess.Popen[bytes], store: BackfillStore, log: Path, begin: int) -> None:
    """Wait for the driver's first heartbeat, or for its end."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        heartbeat = store.driver()
        if heartbeat is not None and heartbeat.pid == driver.pid:
            return
        try:
            code = driver.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
        if not code:
            return
        text = log.read_bytes()[begin:].decode(errors="replace")
        tail = "\n".join(text.splitlines()[-LOG_LINES:])
        raise RunFailedError(
            f"the driver of backfill {store.backfill} ended with exit code {code}:\n{tail}",
            hint=f"its log: {log}",
        )
