"""Write the commands that hints name, ready to be copied."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def command(*words: str, environment: str | None) -> str:
    """Return a command of chunkmap for a hint.

    Args:
        words: The words after `chunkmap`.
        environment: Environment of the command that shows the hint. Without it, the other one
            would look at another S3.
    """
    named = ["--environment", environment] if environment else []
    return shlex.join(["chunkmap", *words, *named])


def with_values(option: str, values: Iterable[str]) -> list[str]:
    """Return an option for each of its values."""
    return [word for value in values for word in (option, value)]
