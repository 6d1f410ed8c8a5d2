"""Remember, on this machine, the outputs that runs were started for."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from pipeline.errors import (
    UsageError,
)
from pipeline.private import state_folder
from pipeline.storage import parse

log = logging.getLogger(__name__)


def known_outputs(state_dir: Path) -> list[str]:
    """The outputs that runs were started for from this folder; none if the file is damaged."""
    file = state_dir / "outputs.json"
    try:
        found = json.loads(file.read_text("utf-8")) if file.exists() else []
        outputs = [one for one in found if isinstance(one, str)]
        return [one for one in outputs if parse(one).uri]
    except (ValueError, TypeError, UsageError) as error:
        log.warning("%s cannot be read (%s): name outputs with --output", file, error)
        return []


def remember_output(state_dir: Path, output: str) -> None:
    """Note an output, so that `status` finds it without being told."""
    uri = parse(output).uri.rstrip("/") + "/"
    outputs = [*(one for one in known_outputs(state_dir) if one != uri), uri]
    target = state_folder(state_dir) / "outputs.json"
    draft = target.with_name(f".outputs-{os.getpid()}.json")
    draft.write_text(json.dumps(outputs), "utf-8")
    draft.replace(target)
