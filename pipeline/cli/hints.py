"""Write the commands that hints name, ready to be copied."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

_COMMAND = re.compile(
    r"\bchunkmap (adopt|backfill|bench|cancel|check|cluster|config|demo|deploy|down|env|head"
    r"|history|ingest|init|load|logs|pipeline|plan|publish|receive|repair|report|retry|rollback"
    r"|run|status|up|vacuum|verify)\b"
)
"""A command that reads the settings."""


def command(*words: str, environment: str | None, output: str | None = None) -> str:
    """Return a command of chunkmap for a hint.

    Args:
        words: The words after `chunkmap`.
        output: Value of `--output`, if the command that shows the hint was given one: that output
            may be known to nobody else.
        environment: Environment of the command that shows the hint. Without it, the other one
            would look at another S3.
    """
    named = ["--output", output] if output else []
    named += ["--environment", environment] if environment else []
    line = shlex.join(["chunkmap", *words, *named])
    # `-` is standard input: what was read from it is gone.
    return f"{line} < FILE.yaml" if "-" in words else line


def with_environment(hint: str | None, environment: str | None) -> str | None:
    """Say that the commands of a hint need the environment that was given.

    Hints of errors cannot name it: it is not known where they are made.
    """
    if hint is None or environment is None or not _COMMAND.search(hint):
        return hint
    if "--environment" in hint:
        return hint
    return f"{hint}\n(with --environment {shlex.quote(environment)})"


def given_environment(arguments: Sequence[str]) -> str | None:
    """Return the value of `--environment` in the arguments of a command; None without it."""
    found = None
    for argument, value in zip(arguments, (*arguments[1:], None), strict=True):
        if argument in ("-e", "--environment"):
            found = value
        elif argument.startswith("--environment="):
            found = argument.partition("=")[2]
    return found


def with_values(option: str, values: Iterable[str]) -> list[str]:
    """Return an option for each of its values."""
    return [word for value in values for word in (option, value)]
