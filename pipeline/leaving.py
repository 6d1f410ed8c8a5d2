"""How this process ends when a library would keep it waiting."""

from __future__ import annotations

import os
import sys

_at_once = False


def leave_at_once() -> None:
    """End without waiting for background threads, once the exit code is known."""
    global _at_once  # noqa: PLW0603 - one process has one end
    _at_once = True


def is_leaving_at_once() -> bool:
    """Whether somebody has asked for it."""
    return _at_once


def leave(code: int) -> None:
    """Exit with a code: orderly, or at once if somebody asked for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _at_once:
        os._exit(code)
    sys.exit(code)
