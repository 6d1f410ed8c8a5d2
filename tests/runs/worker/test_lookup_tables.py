"""Tables that transforms read: one version for all chunks of a run, whatever becomes of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import polars as pl
import pytest

from pipeline.errors import ConflictError, InputError, JobError, OutputNotEmptyError
from pipeline.runs.driver.dry_run import try_transform
from pipeline.runs.driver.plan import plan_input
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.worker import chunk
from pipeline.storage import Tables, read_table, replaced_tables
from pipeline.storage.lookup_tables import TableChangedError, resolve_table
from tests.support.small import Small

TRANSFORMS = """
import os
from pathlib import Path
import polars as pl
from pipeline import read_table

def priced(frame, table):
    return frame.join(read_table(table).lazy(), on="k")

def hidden(frame, table):
    if frame.select(pl.len()).collect().item():
        return frame.join(read_table(table).lazy(), on="k")
    return frame.with_columns(price=pl.lit(0.0))

def inside(frame, table):
    def look_up(keys):
        return keys.to_frame().join(read_table(table), on="k")["price"]
    return frame.with_columns(pl.col("k").map_batches(look_up, return_dtype=pl.Float64))

def fails(frame, table, index):
    joined = frame.join(read_table(table).lazy(), on="k")
    def check(series):
        if not Path(os.environ["FIXED"]).exists() and (series == index).any():
            raise ValueError(f"cannot do {index}")
        return series
    return joined.with_columns(pl.col("k").map_batches(check, return_dtype=pl.Int64))

def summed(frame):
    return frame.select(pl.col("k").sum())

def combine(frames):
    return pl.concat(frames).sum()

def finish(frame):
    return frame.with_columns(price=read_table(os.environ["TABLE"])["price"][0])
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIXED", str(tmp_path / "fixed"))
    made = Small(tmp_path, TRANSFORMS)
    for key in range(3):
        made.write(f"{key}.parquet", pl.DataFrame({"k": [key]}))
    price(made, 1.0)
    return made


def price(small: Small, value: float, name: str = "prices.parquet") -> None:
    frame = pl.DataFrame({"k": range(3), "price": [value] * 3})
    small.write(name, frame, folder="tables")
    # A file that was replaced within the clock's grain has the same version mark.
    path = small.root / "tables" / name
    os.utime(path, ns=(int(value * 1e9), int(value * 1e9)))


def table(small: Small, name: str = "prices.parquet") -> str:
    return f"file://{small.root}/tables/{name}"


def prices(small: Small) -> list[float]:
    return small.rows()["price"].unique().sort().to_list()


def test_a_replaced_table_is_another_run_with_its_values(small: Small) -> None:
    """As in a worker that stays warm: one process runs both."""
    job = small.job("priced", "overwrite", params={"table": table(small)})
    first = small.run(job)
    assert prices(small) == [1.0]
    price(small, 2.0)
    trial = try_transform(job, small.settings, small.storage, 5)
    assert trial.head["price"].unique().to_list() == [2.0]
    second = small.run(job)
    assert prices(small) == [2.0]
    assert (second.run == first.run, second.mapped) == (False, 3)
    again = small.run(job)
    assert (again.run, again.mapped) == (second.run, 0)


def test_a_table_of_several_objects(small: Small) -> None:
    price(small, 1.0, "many/b.parquet")
    job = small.job("priced", "overwrite", params={"table": table(small, "many/")})
    first = small.run(job)
    price(small, 3.0, "many/a.parquet")
    assert small.run(job).run != first.run
    assert prices(small) == [1.0, 3.0]


def test_mode_error_takes_a_replaced_table_for_a_second_run(small: Small) -> None:
    job = small.job("priced", "error", params={"table": table(small)})
    small.run(job)
    price(small, 2.0)
    with pytest.raises(OutputNotEmptyError):
        small.run(job)


def test_what_was_appended_keeps_its_values_and_says_so(small: Small) -> None:
    job = small.job("priced", "append", params={"table": table(small)})
    small.run(job)
    price(small, 2.0)
    [_, note] = [
        note for note in small.run(job).notes if "output already has" in note or "since" in note
    ]
    assert "prices.parquet was replaced since" in note


def test_an_unfinished_run_does_not_go_on_with_another_version(small: Small) -> None:
    job = small.job("fails", params={"table": table(small), "index": 1})
    with pytest.raises(RunIncompleteError) as caught:
        small.run(job)
    price(small, 2.0)
    (small.root / "fixed").touch()
    with pytest.raises(ConflictError, match=r"prices\.parquet.* was replaced") as conflict:
        small.run(job)
    assert "--replan" in str(conflict.value.hint)
    price(small, 1.0)
    assert small.run(job).run == caught.value.summary.run
    assert prices(small) == [1.0]


def test_planning_again_takes_the_new_version(small: Small) -> None:
    job = small.job("fails", params={"table": table(small), "index": 1})
    with pytest.raises(RunIncompleteError):
        small.run(job)
    price(small, 2.0)
    (small.root / "fixed").touch()
    summary = small.run(job, replan=True)
    assert (summary.mapped, prices(small)) == (3, [2.0])


def test_a_table_that_is_replaced_while_a_run_maps(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that have not read it yet fail and name it; those that have go on with theirs."""
    opened = chunk.open_run.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr("pipeline.runs.worker.batch.open_run", _replacing(small, opened))
    read_table.__globals__["_read"].cache_clear()
    job = small.job("priced", params={"table": table(small)})
    with pytest.raises(RunIncompleteError) as caught:
        small.run(job)
    [line] = caught.value.summary.errors
    assert "TableChangedError" in line and "prices.parquet was replaced after the run" in line
    assert not list(small.root.glob("out/**/*.parquet"))


def _replacing(small: Small, opened: Callable[..., chunk.RunContext]) -> Callable[..., object]:
    def open_run(*arguments: str) -> chunk.RunContext:
        context = opened(*arguments)
        price(small, 2.0)
        read_table.__globals__["_read"].cache_clear()
        return context

    return open_run


@pytest.mark.usefixtures("drawn")
def test_the_report_and_the_check_name_the_version(small: Small) -> None:
    job = small.job("priced", params={"table": table(small)})
    summary = small.run(job)
    report = orjson.loads(small.storage.get(summary.report.replace(".html", ".json")).data)
    version = resolve_table(table(small))
    assert report["run"]["tables"] == {table(small): version.label}
    assert table(small) in Path(summary.local_report).read_text()
    trial = try_transform(job, small.settings, small.storage, 5)
    assert trial.tables == {table(small): version.label}


def test_tables_that_no_trial_shows_are_declared(small: Small) -> None:
    job = small.job("hidden", params={"table": table(small)})
    with pytest.raises(RunIncompleteError) as caught:
        small.run(job)
    assert f"`tables: [{table(small)}]`" in caught.value.summary.errors[0]
    declared = small.job("hidden", params={"table": table(small)}, tables=[table(small)])
    first = small.run(declared)
    assert prices(small) == [1.0]
    assert small.ledger(first).record().tables == (resolve_table(table(small)),)


def test_functions_that_polars_calls_read_the_same_version(small: Small) -> None:
    job = small.job("inside", "overwrite", params={"table": table(small)})
    small.run(job)
    price(small, 2.0)
    small.run(job)
    assert small.rows()["k"].unique().to_list() == [2.0]


def test_a_reduce_reads_declared_tables(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABLE", table(small))
    reduce = {"combine": f"{small.module}:combine", "finalize": f"{small.module}:finish"}
    job = small.job("summed", "overwrite", reduce=reduce, tables=[table(small)])
    small.run(job)
    price(small, 2.0)
    small.run(job)
    assert prices(small) == [2.0]


def test_a_table_that_is_not_there(small: Small) -> None:
    job = small.job("priced", params={"table": table(small, "none.parquet")})
    with pytest.raises(InputError, match=r"reads a table that cannot be read: .*none\.parquet"):
        plan_input(job, small.settings, small.storage)
    declared = small.job("summed", tables=[table(small, "none/")])
    with pytest.raises(InputError, match="there is no table"):
        plan_input(declared, small.settings, small.storage)


def test_a_run_of_before_reads_what_is_there(small: Small) -> None:
    job = small.job("fails", params={"table": table(small), "index": 1})
    with pytest.raises(RunIncompleteError) as caught:
        small.run(job)
    ledger = small.ledger(caught.value.summary)
    before = ledger.record().model_dump_json(exclude={"tables"})
    small.storage.put(ledger.prefix + "run.json", before.encode())
    chunk.open_run.cache_clear()
    price(small, 2.0)
    (small.root / "fixed").touch()
    summary = small.run(job)
    assert (summary.run, summary.mapped) == (ledger.run, 1)
    assert prices(small) == [1.0, 2.0]


def test_outside_of_a_run_the_newest_version_is_read(small: Small) -> None:
    assert read_table(table(small))["price"][0] == 1.0
    assert read_table(table(small)) is read_table(table(small))
    price(small, 2.0)
    assert read_table(table(small))["price"][0] == 2.0


def test_only_known_tables_are_read_in_their_version(small: Small) -> None:
    known = resolve_table(table(small))
    price(small, 2.0)
    with Tables([known]).used(), pytest.raises(TableChangedError, match="had ETag") as caught:
        read_table(table(small))
    assert caught.value.table == table(small)
    with Tables([]).used(), pytest.raises(JobError, match="tables: "):
        read_table(table(small))
    assert replaced_tables([known]) == table(small)
    (small.root / "tables" / "prices.parquet").unlink()
    assert replaced_tables([known]) == table(small)


def test_threads_without_a_context_read_what_the_run_at_work_reads(small: Small) -> None:
    known = resolve_table(table(small))
    read_table(table(small))
    price(small, 2.0)
    found: list[float] = []
    with Tables([known]).used():
        thread = threading.Thread(target=lambda: found.append(read_table(table(small))["price"][0]))
        thread.start()
        thread.join()
    assert found == [1.0]
