"""Which instants of a protocol a test lets something happen at."""

from __future__ import annotations

import os
from zlib import crc32

STEP = 5 if "LONG" in os.environ else 12


def instants(count: int, *case: object) -> range:
    """Every twelfth of a protocol's requests, from a start that differs by case.

    With LONG set every fifth, and with CHAOS set all of them.

    Args:
        count: Number of the requests.
        case: Parameters of the test.
    """
    if "CHAOS" in os.environ:
        return range(count)
    return range(crc32(repr(case).encode()) % STEP, count, STEP)
