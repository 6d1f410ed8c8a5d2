"""A backfill's driver as a process of its own, which survives the terminal that began it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.cli.output import notes, say, show_pairs
from pipeline.config.settings import Settings
from pipeline.errors import RunFailedError
from pipeline.private import state_folder
from pipeline.runs.backfill.store import BackfillStore

_MAIN = "from pipeline.cli import main; main()"
START_SECONDS = 90.0
"""How long we wait for the driver's first sign of life: Prefect alone takes seconds to import."""
TAIL = 12
"""Lines of the log that are shown when the driver did not come up."""


def start_detached(
    store: BackfillStore, settings: Settings, environment: str | None, going: dict[str, Any]
) -> dict[str, Any]:
    """Start a driver that outlives us, and wait until it drives.

    Args:
        store: The backfill.
        settings: Where logs go.
        environment: Of the settings, for the driver.
        going: What it goes on with, for `chunkmap backfill drive`.

    Returns:
        What `--json` prints.

    Raises:
        RunFailedError: it ended before it began to drive.
    """
    log = state_folder(settings.state_dir, "backfills") / f"{store.backfill}.log"
    command = [sys.executable, "-P", "-c", _MAIN, "backfill", "drive", store.backfill]
    command += ["--output", store.output, "--again", json.dumps(going)]
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
    """Say what runs, and the commands to follow it."""
    backfill = started["backfill"]
    commands = {
        "watch": f"chunkmap backfill status {backfill} --watch",
        "stop for now": f"chunkmap backfill pause {backfill}",
        "go on": f"chunkmap backfill resume {backfill}",
        "give up": f"chunkmap backfill cancel {backfill}",
        "log": started["log"],
    }
    show_pairs(f"backfill {backfill} runs on its own (process {started['pid']})", commands)


def _await(driver: subprocess.Popen[bytes], store: BackfillStore, log: Path, begin: int) -> None:
    """Until it says that it drives, or has ended."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        known = store.driver()
        if known is not None and known.pid == driver.pid:
            return
        try:
            code = driver.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
        if not code:
            return
        text = log.read_bytes()[begin:].decode(errors="replace")
        tail = "\n".join(text.splitlines()[-TAIL:])
        raise RunFailedError(
            f"the driver of backfill {store.backfill} ended with exit code {code}:\n{tail}",
            hint=f"its log: {log}",
        )
