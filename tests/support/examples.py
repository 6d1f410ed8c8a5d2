"""How many examples Hypothesis generates: some in `make test`, all in `make test-long`."""

from __future__ import annotations

import os

from hypothesis import settings

_LEAST = 5


def fewer(count: int) -> int:
    """Return a quarter of a number of examples, and at least 5; all with LONG or CHAOS set."""
    if "LONG" in os.environ or "CHAOS" in os.environ:
        return count
    return min(count, max(_LEAST, count // 4))


def load_profile() -> None:
    """Let tests that do not say how many examples they want have fewer of them, too."""
    usual = settings()
    settings.register_profile("chunkmap", usual, max_examples=fewer(usual.max_examples))
    settings.load_profile("chunkmap")
