"""What checks cost: the processor time of the same serial run with checks and without.

    python -m benchmarks.micro.check_costs --docs docs/guides/checks.md

All kinds of runs alternate, and the medians of their processor times are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from benchmarks.report.write import update_docs
from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.runs.driver.run import run_serially
from pipeline.storage import own_storage

PLACE = "cost of checks"
ROWS, CHUNKS, REPEATS = 500_000, 6, 7
MOST = 1.15
"""Maximum processor time with checks, as a multiple of that without."""
CODE = """
import dataframely as dy
import polars as pl

def revenue(lf):
    net = pl.col("price") * (1 - pl.col("discount"))
    return lf.with_columns(revenue=net, text=pl.col("comment").str.to_uppercase())

class Lines(dy.Schema):
    order = dy.Int64(nullable=False)
    price = dy.Float64(nullable=False, min=0)
    revenue = dy.Float64(min=0)
"""
MODULE = "measured_checks"
KEY: dict[str, Any] = {"check": "unique", "columns": ["order", "line"]}
UNORDERED: dict[str, Any] = {"check": "unique", "columns": ["number"]}
FOUR: list[dict[str, Any]] = [
    {"check": "row_count", "min": 1},
    {"check": "not_null", "columns": ["price", "revenue"]},
    {"check": "total", "column": "quantity", "expected": "last"},
    {"check": "freshness", "column": "shipped", "within": "100000d"},
]
ROWS_CHECKED = {"schema": f"{MODULE}:Lines", "severity": "quarantine"}
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "a schema, and four of the whole": {"rows": ROWS_CHECKED, "run": FOUR},
    "and a key of two columns, in the order of the files": {
        "rows": ROWS_CHECKED,
        "run": [KEY, *FOUR],
    },
    "and a key in no order": {"rows": ROWS_CHECKED, "run": [UNORDERED, *FOUR]},
}
"""Checks of each kind of run. The first is that without."""


def lines(number: int) -> pl.DataFrame:
    """Line items: eight columns, one of them text."""
    rng, ids = np.random.default_rng(number), np.arange(number * ROWS, (number + 1) * ROWS)
    return pl.DataFrame(
        {
            "order": ids // 4,
            "line": (ids % 4).astype(np.int32),
            "number": rng.permutation(ids),
            "price": rng.random(ROWS) * 1e5,
            "discount": rng.integers(0, 10, ROWS) / 100,
            "quantity": rng.integers(1, 50, ROWS),
            "shipped": pl.Series(rng.integers(8000, 10_500, ROWS)).cast(pl.Int32).cast(pl.Date),
            "comment": [f"comment {i % 9973} of {i % 31}" for i in range(ROWS)],
        }
    )


def measure(folder: Path) -> dict[str, float]:
    """Return the median processor time of each kind of run in seconds.

    Args:
        folder: An empty folder, from which this process imports modules; MODULE must be allowed.
    """
    (folder / f"{MODULE}.py").write_text(CODE)
    (folder / "in").mkdir()
    for number in range(CHUNKS):
        lines(number).write_parquet(folder / "in" / f"{number}.parquet")
    # The first runs of a process also import, and learn how long a batch takes.
    for checks in KINDS.values():
        _seconds(folder, checks)
    times = [
        {kind: _seconds(folder, checks) for kind, checks in KINDS.items()} for _ in range(REPEATS)
    ]
    return {kind: median(each[kind] for each in times) for kind in KINDS}


def _seconds(folder: Path, checks: dict[str, Any]) -> float:
    for name in ("out", "out.chunkmap"):
        shutil.rmtree(folder / name, ignore_errors=True)
    job = Job.model_validate(
        {
            "name": "checks",
            "input": {"uri": f"file://{folder}/in/"},
            "chunks": {"per_file": True},
            "transform": f"{MODULE}:revenue",
            "output": {"uri": f"file://{folder}/out/"},
            "checks": checks,
        }
    )
    settings = load_settings(overrides={"state_dir": str(folder / "state")})
    before = time.process_time()
    assert run_serially(job, settings, own_storage()).rows_out == ROWS * CHUNKS
    return time.process_time() - before


def table(seconds: Mapping[str, float]) -> str:
    """What was measured, in Markdown."""
    lines = ["| checks | processor time | more than without |", "|---|---:|---:|"]
    least = seconds["none"]
    for kind, each in seconds.items():
        more = "" if kind == "none" else f"{each / least - 1:.0%}"
        lines.append(f"| {kind} | {each:.2f} s | {more} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="put the table into this page")
    given = parser.parse_args()
    page = None if given.docs is None else given.docs.resolve()
    with TemporaryDirectory(prefix="chunkmap-bench-") as scratch:
        os.environ["CHUNKMAP_TRANSFORMS__ALLOW"] = MODULE
        os.chdir(scratch)
        sys.path.insert(0, scratch)
        text = table(measure(Path(scratch)))
        os.chdir("/")
    if page is not None:
        update_docs(page, PLACE, text)
    print(text, end="")


if __name__ == "__main__":
    main()
