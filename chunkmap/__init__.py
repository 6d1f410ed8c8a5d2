"""Map a Polars function over every chunk of a Parquet dataset, and publish the results once.

    import chunkmap as cm
    import polars as pl

    def euros(lf: pl.LazyFrame, *, rate: float) -> pl.LazyFrame:
        return lf.with_columns(eur=pl.col("usd") * rate)

    orders = cm.read("s3://shop/orders/", filter=pl.col("ds") >= date(2024, 1, 1))
    job = orders.map(euros, params={"rate": 0.92}).write("s3://shop/orders-eur/")
    job.plan()
    job.run()

A job from here and one from a file are the same: `Job.from_yaml`, `Job.to_yaml`. It runs on the
cluster that is connected (`connect`) or configured, or in processes of this machine (`local`).
Everything here is a thin face of the packages `pipeline` and `partitioning`.
"""

from chunkmap import errors
from chunkmap.backfills import Backfill
from chunkmap.datasets import Dataset, Mapped, read
from chunkmap.jobs import Job, Plan, Preview
from chunkmap.outputs import adopt, history, rollback, scan, vacuum, verify
from chunkmap.places import connect, local
from chunkmap.results import Report, Run

__all__ = [
    "Backfill",
    "Dataset",
    "Job",
    "Mapped",
    "Plan",
    "Preview",
    "Report",
    "Run",
    "adopt",
    "connect",
    "errors",
    "history",
    "local",
    "read",
    "rollback",
    "scan",
    "vacuum",
    "verify",
]
