"""Remember on this machine the outputs of the runs that were started here."""

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
    """Return the outputs of the runs started from this folder; none if the file is damaged."""
    file = state_dir / "outputs.json"
    try:
        stored = json.loads(file.read_text("utf-8")) if file.exists() else []
        return [uri for uri in stored if isinstance(uri, str) and parse(uri).uri]
    except (ValueError, TypeError, UsageError) as error:  # Not OSError: it names the file.
        log.warning("%s cannot be read (%s): name outputs with --output", file, error)
        return []


def named_outputs(state_dir: Path, output: str | None) -> list[str]:
    """Return the output that a command names, or else all known outputs.

    Raises:
        UsageError: None is named, and none is known.
    """
    outputs = [output] if output else known_outputs(state_dir)
    if not outputs:
        raise UsageError(
            "no output is known on this machine", hint="name it with --output s3://bucket/prefix/"
        )
    return outputs


def remember_output(state_dir: Path, output: str) -> None:
    """Remember an output, so that `status` finds it without `--output`."""
    try:
        _remember(state_dir, parse(output).uri.rstrip("/") + "/")
    except OSError as error:
        log.warning("%s is not remembered (%s): name it with --output", output, error)


def _remember(state_dir: Path, uri: str) -> None:
    outputs = [*(known for known in known_outputs(state_dir) if known != uri), uri]
    target = state_folder(state_dir) / "outputs.json"
    draft = target.with_name(f".outputs-{os.getpid()}.json")
    draft.write_text(json.dumps(outputs), "utf-8")
    draft.replace(target)
