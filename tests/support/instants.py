"""Which instants of a protocol a test lets something happen at."""

from __future__ import annotations

import os
from zlib import crc32

STEP = 5


def instants(count: int, *case: object) -> range:
    """Every fifth of a protocol's requests, from a start that differs by case; all with CHAOS set.

    Args:
        count: Number of the requests.
        case: Parameters of the test.
    """
    if "CHAOS" in os.environ:
        return range(count)
    return range(crc32(repr(case).encode()) % STEP, count, STEP)
