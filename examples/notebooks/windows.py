"""Windows: a year of days, month by month, with a canary; then a small sum without an output.

python examples/notebooks/windows.py
"""

# %% A folder per day.
import shutil
from datetime import date
from pathlib import Path

import polars as pl

import chunkmap as cm

FOLDER = Path("windows")
shutil.rmtree(FOLDER, ignore_errors=True)
days = pl.date_range(date(2024, 1, 1), date(2024, 3, 31), "1d", eager=True)
for day in days:
    folder = FOLDER / "rides" / f"ds={day}"
    folder.mkdir(parents=True)
    pl.DataFrame({"meters": [day.toordinal() % 1000] * 10}).write_parquet(folder / "part.parquet")

# %% Three months of the job, each published by itself; the first one goes ahead.
cm.connect("local")
rides = cm.read(f"{FOLDER}/rides/")
job = rides.map(lambda lf: lf.with_columns(km=pl.col("meters") / 1000)).write(
    f"{FOLDER}/km/", mode="overwrite-partitions"
)
backfill = job.backfill("2024-01", "2024-04", column="ds", grain="month", canary=1)
print(backfill.windows, "windows")
backfill.run()
print(backfill.status.state)
february = cm.scan(f"{FOLDER}/km/", window="2024-02").select(pl.len()).collect().item()
assert february == 29 * 10

# %% A sum needs no output: it is mapped here, and comes back as a frame.
total = (
    rides.map(lambda lf: lf.select(pl.col("meters").sum()))
    .reduce(lambda frames: pl.concat(frames).select(pl.col("meters").sum()))
    .collect(limit="1MB")
)
print(total)
assert total.item() == sum(day.toordinal() % 1000 * 10 for day in days)
