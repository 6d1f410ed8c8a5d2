"""The result of one check of a cluster or a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    what: str
    """Subject of the check."""
    said: str
    """Result of the check."""
    fix: str = ""
    """What to do about it."""
