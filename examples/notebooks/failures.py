"""Failures: a chunk fails, the others are kept, the fix maps only what is left.

python examples/notebooks/failures.py
"""

# %% Ten files, one of which has a value that nobody expected.
import shutil
from pathlib import Path

import polars as pl

import chunkmap as cm

FOLDER = Path("failures")
shutil.rmtree(FOLDER, ignore_errors=True)
(FOLDER / "logs").mkdir(parents=True)
for number in range(10):
    size = "12 kB" if number == 7 else "12"
    frame = pl.DataFrame({"line": range(100), "size": [size] * 100})
    frame.write_parquet(FOLDER / "logs" / f"{number}.parquet")


# %% The first try.
def sizes(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Parse the sizes."""
    return lf.with_columns(pl.col("size").cast(pl.Int64))


def job_of(function: object) -> cm.Job:
    """Make the job, with a chunk for each file."""
    logs = cm.read(f"{FOLDER}/logs/").map(function, chunks={"per_file": True})  # type: ignore[arg-type]
    return logs.write(f"{FOLDER}/sizes/")


cm.connect("local")
run = job_of(sizes).run(check=False)
print(run.state, run.failed.select("chunk", "error", "message", "objects"))
assert run.failed.height == 1


# %% The fix. It is other code, and says so, unless that is accepted.
def sizes(lf: pl.LazyFrame) -> pl.LazyFrame:  # type: ignore[no-redef]
    """Parse the sizes, with their units."""
    kilo = pl.when(pl.col("size").str.ends_with(" kB")).then(1000).otherwise(1)
    number = pl.col("size").str.strip_suffix(" kB").cast(pl.Int64)
    return lf.with_columns(size=number * kilo)


try:
    job_of(sizes).run()
except cm.errors.ConflictError as error:
    print(error, "\n", error.hint)
done = job_of(sizes).run(accept_code=True)
assert done.summary is not None
print(done.state, "chunks mapped now:", done.summary.mapped)
assert cm.scan(f"{FOLDER}/sizes/").select(pl.len()).collect().item() == 1000
