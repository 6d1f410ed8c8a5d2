"""What checks cost: the processor time of the same serial run with checks and without.

pytest benchmarks/micro/test_checks.py -s
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.runs.driver.run import run_serially
from pipeline.storage import own_storage

ROWS, CHUNKS, REPEATS = 500_000, 6, 4
MOST = {"figures and rows": 1.15, "and a key": 1.15, "and an unordered key": 1.15}
"""Maximum processor time with checks, as a multiple of that without. The files are in the order of
the key, but not in that of `number`."""
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
KEY: dict[str, Any] = {"check": "unique", "columns": ["order", "line"]}
UNORDERED: dict[str, Any] = {"check": "unique", "columns": ["number"]}
RUN: list[dict[str, Any]] = [
    {"check": "row_count", "min": 1},
    {"check": "not_null", "columns": ["price", "revenue"]},
    {"check": "total", "column": "quantity", "expected": "last"},
    {"check": "freshness", "column": "shipped", "within": "100000d"},
]
ROWS_CHECKED = {"schema": "measured_checks:Lines", "severity": "quarantine"}
CHECKS: dict[str, Any] = {"rows": ROWS_CHECKED, "run": RUN}


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


def test_checks_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dataframely", reason="the extra `checks` is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measured_checks.py").write_text(CODE)
    monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "measured_checks")
    (tmp_path / "in").mkdir()
    for number in range(CHUNKS):
        lines(number).write_parquet(tmp_path / "in" / f"{number}.parquet")
    settings = load_settings(overrides={"state_dir": str(tmp_path / "state")})

    def seconds(checks: dict[str, Any]) -> float:
        for name in ("out", "out.chunkmap"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        job = Job.model_validate(
            {
                "name": "checks",
                "input": {"uri": f"file://{tmp_path}/in/"},
                "chunks": {"per_file": True},
                "transform": "measured_checks:revenue",
                "output": {"uri": f"file://{tmp_path}/out/"},
                "checks": checks,
            }
        )
        before = time.process_time()
        assert run_serially(job, settings, own_storage()).rows_out == ROWS * CHUNKS
        return time.process_time() - before

    kinds = {"none": {}, "figures and rows": CHECKS, "and a key": CHECKS | {"run": [KEY, *RUN]}}
    kinds["and an unordered key"] = CHECKS | {"run": [UNORDERED, *RUN]}
    times = [{kind: seconds(checks) for kind, checks in kinds.items()} for _ in range(REPEATS)]
    best = {kind: min(each[kind] for each in times[1:]) for kind in kinds}
    print(f"\nprocessor time with checks: { {kind: round(s, 2) for kind, s in best.items()} }")
    for kind, most in MOST.items():
        assert best[kind] <= most * best["none"], kind
