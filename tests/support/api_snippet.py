"""The program with which the Python API introduces itself, for tests that run it somewhere."""

from __future__ import annotations

from typing import Any

SNIPPET = """
from datetime import date

import chunkmap as cm
import polars as pl

def euros(lf: pl.LazyFrame, *, rate: float) -> pl.LazyFrame:
    return lf.with_columns(eur=pl.col("usd") * rate)

lines = cm.read("s3://shop/orders/", filter=pl.col("ds") >= date(2024, 1, 1))
job = lines.map(euros, params={"rate": 0.92}, retries=3, timeout="5m").write(
    "s3://shop/orders-eur/", mode="overwrite-partitions"
)

plan = job.plan()
preview = job.preview()
run = job.run()
status = run.status; failed = run.failed
again = run.retry(); report = run.report()
scanned = cm.scan("s3://shop/orders-eur/")
backfill = job.backfill("2024-01", "2025-01", column="ds", grain="day", canary="1%").run()
"""
DAYS = ("2023-12-31", "2024-01-01", "2024-02-29", "2024-12-31")
"""Days of the orders; the first is left out by the filter."""


def run_snippet(orders: str, output: str) -> dict[str, Any]:
    """Run it as a cell of a notebook with these prefixes; return its names."""
    text = SNIPPET.replace("s3://shop/orders/", orders).replace("s3://shop/orders-eur/", output)
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "<cell>", "exec"), cell)
    return cell


def facts(cell: dict[str, Any]) -> dict[str, Any]:
    """What the snippet has found, without what differs between two places."""
    total = cell["scanned"].collect()["eur"].sum()  # Before its files are replaced.
    days = {"column": "ds", "grain": "day", "canary": "1%", "reprocess": "all"}
    again = cell["job"].backfill("2024-01", "2025-01", **days).run()
    return {
        "rows": cell["plan"].rows,
        "preview": {name: str(kind) for name, kind in cell["preview"].schema.items()},
        "states": [cell[name].state for name in ("run", "again", "backfill")] + [again.state],
        "ids": cell["run"].id == cell["again"].id,
        "done": [cell["status"].done == cell["status"].chunks, cell["status"].failed],
        "failed": [cell["failed"].height, cell["failed"].columns],
        "report": cell["report"].path.is_file(),
        "windows": [cell["backfill"].windows, again.windows],
        "versions": cell["cm"].history(cell["run"].output)["version"].to_list()[0],
        "total": total,
    }
