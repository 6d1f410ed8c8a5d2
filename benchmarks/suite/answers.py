"""Answers that others have published, for workloads that have any.

TPC-H specification, revision 3.0.1, sections 2.4.1.5 and 2.4.6.5: the answers at scale factor 1,
given to two digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

FACTOR_1 = "s"
"""The scale whose lineitem is that of scale factor 1."""

PRICING = (
    ("A", "F", 37734107.00, 56586554400.73, 53758257134.87, 55909065222.83, 25.52, 38273.13, 0.05),
    ("N", "F", 991417.00, 1487504710.38, 1413082168.05, 1469649223.19, 25.52, 38284.47, 0.05),
    (
        *("N", "O", 74476040.00, 111701729697.74, 106118230307.61, 110367043872.50),
        *(25.50, 38249.12, 0.05),
    ),
    ("R", "F", 37719753.00, 56568041380.90, 53741292684.60, 55889619119.83, 25.51, 38250.85, 0.05),
)
COUNTS = (1478493, 38854, 2920374, 1478870)
FORECAST = 123141078.23

PUBLISHED: Mapping[str, Sequence[tuple[Any, ...]]] = {
    "tpch-q1": [(*row, count) for row, count in zip(PRICING, COUNTS, strict=True)],
    "tpch-q6": [(FORECAST,)],
}


def difference(workload: str, scale: str, frame: pl.DataFrame) -> str:
    """How a result differs from the published answer; empty if it does not or there is none."""
    wanted = PUBLISHED.get(workload)
    if wanted is None or scale != FACTOR_1:
        return ""
    found = frame.rows()
    if len(found) != len(wanted):
        return f"{len(found)} rows, published are {len(wanted)}"
    for row, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        for name, mine, published in zip(frame.columns, ours, theirs, strict=True):
            said = round(mine, 2) if isinstance(mine, float) else mine
            if said != published:
                return f"row {row}, column {name}: {said!r}, published is {published!r}"
    return ""
