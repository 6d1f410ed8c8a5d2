"""Which instants of a protocol a test lets something happen at."""

from __future__ import annotations

import os
from zlib import crc32

STEP = 5 if "LONG" in os.environ else 24


def instants(count: int, *case: object, step: int = STEP) -> range:
    """Every 24th of a protocol's requests, from a start that differs by case.

    With LONG set every fifth, and with CHAOS set all of them.

    Args:
        count: Number of the requests.
        case: Parameters of the test.
        step: A smaller step, for a test that needs several instants of one protocol.
    """
    if "CHAOS" in os.environ:
        return range(count)
    step = min(step, STEP)
    start = crc32(repr(case).encode()) % max(1, min(step, count))  # At least one.
    return range(start, count, step)
