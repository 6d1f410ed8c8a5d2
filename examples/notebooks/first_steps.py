"""First steps in Python: read, map, look, write, scan. Needs no services.

    python examples/notebooks/first_steps.py

Each `# %%` begins a cell, in editors that know notebooks in scripts.
"""

# %% A small dataset: a year of orders, in a folder per month.
import shutil
from datetime import date, timedelta
from pathlib import Path

import polars as pl

import chunkmap as cm

FOLDER = Path("first-steps")
shutil.rmtree(FOLDER, ignore_errors=True)
days = pl.date_range(date(2024, 1, 1), date(2024, 12, 31), "1d", eager=True)
orders = pl.DataFrame({"day": days, "id": range(len(days))}).with_columns(
    usd=pl.col("id") * 7 % 100 + 0.5, ds=pl.col("day").dt.month_start()
)
for (month,), rows in orders.partition_by("ds", as_dict=True, include_key=False).items():
    folder = FOLDER / "orders" / f"ds={month}"
    folder.mkdir(parents=True)
    rows.write_parquet(folder / "part.parquet")


# %% A function from LazyFrame to LazyFrame. Values that it uses travel with it.
CENTS = 100


def euros(lf: pl.LazyFrame, *, rate: float) -> pl.LazyFrame:
    """Convert dollars to cents of euros."""
    return lf.with_columns(cents=(pl.col("usd") * rate * CENTS).round().cast(pl.Int64))


# %% The job. Nothing is read before it is planned, and nothing is written before it runs.
cm.connect("local")
spring = cm.read(f"{FOLDER}/orders/", filter=pl.col("ds") >= date(2024, 3, 1))
job = spring.map(euros, params={"rate": 0.92}).write(f"{FOLDER}/euros/", mode="overwrite")
print(job.plan())

# %% Try the function on one chunk, in this process.
print(job.preview(rows=3))

# %% Run it. The same call resumes a stopped run, and does nothing for one that is complete.
run = job.run()
print(run.id, run.state, run.report().path)

# %% The output is a table with versions.
by_month = cm.scan(f"{FOLDER}/euros/").group_by("ds").agg(pl.col("cents").sum()).sort("ds")
print(by_month.collect())
print(cm.history(f"{FOLDER}/euros/"))

# %% What the loop that you would write instead makes of it.
expected = orders.filter(pl.col("day") >= date(2024, 3, 1))
cents = (expected["usd"] * 0.92 * CENTS).round().cast(pl.Int64).sum()
assert by_month.select(pl.col("cents").sum()).collect().item() == cents
last = date(2024, 12, 31) + timedelta(days=1)
print(f"{len(expected)} days until {last}, {cents / 100:,.2f} EUR")
