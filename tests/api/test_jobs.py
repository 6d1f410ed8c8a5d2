"""The Python API in processes of this machine: the same jobs, runs and guarantees."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import chunkmap as cm
from pipeline.config.settings import load_settings
from tests.support.api_snippet import DAYS, facts, run_snippet

ROWS = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cm.places.Local]:
    with cm.local(workers=1, state_dir=str(tmp_path_factory.mktemp("state"))) as here:
        yield here


@pytest.fixture
def orders(place: cm.places.Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cm.Dataset:
    """Three days of orders."""
    monkeypatch.chdir(tmp_path)
    for day in (1, 2, 3):
        folder = tmp_path / "orders" / f"ds=2024-01-0{day}"
        folder.mkdir(parents=True)
        frame = pl.DataFrame({"id": range(day * ROWS, (day + 1) * ROWS)})
        frame.with_columns(usd=pl.col("id") / 2).write_parquet(folder / "part.parquet")
    return cm.read("orders/")


def euros(lf: pl.LazyFrame, *, rate: float = 1.0) -> pl.LazyFrame:
    return lf.with_columns(eur=pl.col("usd") * rate)


def test_all_errors_can_be_named() -> None:
    for name in cm.errors.__all__:
        assert issubclass(getattr(cm.errors, name), Exception)


def test_the_example_of_the_package(orders: cm.Dataset) -> None:
    lines = cm.read("orders/", filter=pl.col("ds") >= date(2024, 1, 2))
    mapped = lines.map(euros, params={"rate": 0.92}, retries=3, timeout="5m")
    job = mapped.write("orders-eur/", mode="overwrite-partitions")
    assert (job.definition.retries, job.definition.chunk_timeout) == (3, 300.0)
    plan = job.plan()
    assert (plan.rows, plan.planned.result.explain.objects_pruned) == (2 * ROWS, 1)
    preview = job.preview()
    assert preview.schema["eur"] == pl.Float64
    assert not Path("orders-eur").exists()
    run = job.run()
    assert (run.state, run.failed.height) == ("done", 0)
    found = cm.scan("orders-eur/").sort("id").collect()
    expected = pl.read_parquet("orders/**/*.parquet", hive_partitioning=True)
    expected = expected.filter(pl.col("ds") >= date(2024, 1, 2)).sort("id")
    assert found["eur"].to_list() == (expected["usd"] * 0.92).to_list()
    again = job.run().summary
    assert again is not None and again.mapped == 0


def test_the_program_of_the_introduction(place: cm.places.Local, tmp_path: Path) -> None:
    for number, day in enumerate(DAYS):
        folder = tmp_path / "orders" / f"ds={day}"
        folder.mkdir(parents=True)
        pl.DataFrame({"id": [number], "usd": [number * 10.0]}).write_parquet(folder / "a.parquet")
    cell = run_snippet(f"{tmp_path}/orders/", f"{tmp_path}/orders-eur/")
    found = facts(cell)
    assert found["total"] == pytest.approx((10 + 20 + 30) * 0.92)
    assert found["states"] == ["done"] * 4 and found["ids"]
    # The run has published all windows already.
    assert (found["rows"], found["windows"], found["report"]) == (3, [0, 3], True)
    with pytest.raises(cm.errors.UsageError, match="nothing to do"):
        cell["backfill"].report()
    assert found["done"] == [True, 0]
    names = ["chunk", "error", "message", "where", "traceback", "objects"]
    assert found["failed"] == [0, names]
    with pytest.raises(cm.errors.JobError, match="cannot be written to a file"):
        cell["job"].to_yaml(tmp_path / "orders.yaml")


def test_a_job_and_its_yaml_are_the_same_run(
    orders: cm.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pipeline.examples.revenue:revenue"
    job = orders.map(name).write("out/", name="revenue")
    text = job.to_yaml("revenue.yaml")
    assert Path("revenue.yaml").read_text() == text
    assert cm.Job.from_yaml("revenue.yaml").definition == job.definition
    from pipeline.examples.revenue import revenue

    assert orders.map(revenue).write("out/", name="revenue").definition == job.definition


def test_a_name_of_a_column_is_not_taken_for_its_letters() -> None:
    name = "pipeline.examples.revenue:revenue"
    some = cm.read("orders/", columns="id").add_columns(name, keep="id").write("out/").definition
    assert (some.input.columns, some.output.keep) == (("id",), ("id",))
    reduced = cm.read("orders/").map(name).reduce(name).then(name, by="id").write("out/").definition
    assert reduced.then is not None and reduced.then.by == ("id",)


def test_a_function_by_value_cannot_be_written(orders: cm.Dataset) -> None:
    with pytest.raises(cm.errors.JobError, match="cannot be written to a file") as refused:
        orders.map(lambda lf: lf).write("out/").to_yaml()
    assert refused.value.hint and "transforms.allow" in refused.value.hint


def test_tracebacks_show_the_next_step(orders: cm.Dataset) -> None:
    with pytest.raises(cm.errors.InputError) as missing:
        orders.map(lambda lf: lf.select("euros")).write("out/").plan()
    assert missing.value.__notes__ == [f"next: {missing.value.hint}"]


def test_by_value_is_refused_where_the_settings_say_so(orders: cm.Dataset, tmp_path: Path) -> None:
    transforms = {"allow_by_value": False}
    here = cm.places.Local(load_settings(overrides={"transforms": transforms}))
    token = cm.places._current.set(here)
    try:
        with pytest.raises(cm.errors.TransformNotAllowedError, match="allow_by_value"):
            orders.map(euros).write("out/")
    finally:
        cm.places._current.reset(token)


def test_what_is_left_of_a_filter_is_applied_to_rows(orders: cm.Dataset) -> None:
    condition = (pl.col("ds") == date(2024, 1, 1)) & ((pl.col("id") % 2) == 0)
    job = cm.read("orders/", filter=condition).map(euros).write("out/")
    assert job.definition.input.filter == ((("ds", "==", date(2024, 1, 1)),),)
    job.run(progress=False)
    assert cm.scan("out/").collect()["id"].to_list() == list(range(ROWS, 2 * ROWS, 2))


def test_a_class_is_made_once_per_process(orders: cm.Dataset, tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Counting:
        """Knows for how many chunks it was used."""

        def __init__(self) -> None:
            self.chunks = 0
            with made.open("a", encoding="utf-8") as processes:
                processes.write(f"{os.getpid()}\n")

        def __call__(self, lf: pl.LazyFrame, *, step: int) -> pl.LazyFrame:
            self.chunks += step
            return lf.with_columns(n=pl.lit(self.chunks))

    job = orders.map(Counting, params={"step": 2}, chunks={"per_file": True}).write("out/")
    job.run()
    processes = made.read_text().split()
    assert len(processes) == len(set(processes)) <= 2  # This process, which plans, and the worker.
    numbers = cm.scan("out/").collect()["n"].unique().to_list()
    assert len(numbers) == 3 and all(number % 2 == 0 for number in numbers)


def test_a_class_is_made_by_as_many_processes_as_it_allows(orders: cm.Dataset) -> None:
    class Model:
        def __call__(self, lf: pl.LazyFrame) -> pl.LazyFrame:
            return lf.with_columns(process=pl.lit(os.getpid()))

    mapped = orders.map(Model, chunks={"per_file": True}, concurrency=1, resources={"GPU": 1})
    job = mapped.write("out/")
    keys = yaml.safe_load(job.definition.to_yaml())
    assert (keys["concurrency"], keys["resources"]) == (1, {"GPU": 1.0})
    batches = {"max_chunks": 1, "seconds": 0.01}
    with cm.local(workers=3, batches=batches, state_dir=str(Path("state").absolute())) as here:
        job.run()
        assert len(here.workers()._workers) == 1
    assert cm.scan("out/").collect()["process"].n_unique() == 1


def _fails_above(limit: int) -> Any:
    def checked(frame: pl.DataFrame) -> pl.DataFrame:
        if frame["id"].max() >= limit:  # type: ignore[operator]
            raise ValueError(f"id above {limit}")
        return frame

    return lambda lf: lf.map_batches(checked)


def test_failures_are_a_frame_and_retry_goes_on(orders: cm.Dataset) -> None:
    def job(limit: int) -> cm.Job:
        function = _fails_above(limit)
        return orders.map(function, chunks={"per_file": True}, rounds=1).write("out/")

    with pytest.raises(cm.errors.RunIncompleteError) as incomplete:
        job(3 * ROWS).run()
    run = incomplete.value.run
    failed = run.failed
    assert failed["error"].to_list() == ["TransformError"]
    assert "id above 90" in failed["message"][0]
    assert failed["objects"][0].to_list()[0].endswith("ds=2024-01-03/part.parquet")
    assert "Your code" in failed["traceback"][0] and "in checked" not in failed["message"][0]
    assert "TransformError" in run._repr_html_()
    assert job(3 * ROWS).run(check=False).state == "failed"
    # A changed value in a closure is other code, and is named.
    with pytest.raises(cm.errors.ConflictError, match="checked") as changed:
        job(1000).run()
    assert "run(accept_code=True)" in changed.value.__notes__[0]
    done = job(1000).run(accept_code=True)
    assert (done.id, done.state) == (run.id, "done")
    assert done.summary is not None and done.summary.mapped == 1


def test_runs_in_an_event_loop_and_in_threads(orders: cm.Dataset) -> None:
    jobs = [orders.map(euros).write(f"out-{number}/") for number in range(4)]

    async def in_a_loop() -> list[str]:
        blocking = jobs[0].run()  # As a cell of a notebook does.
        two = await asyncio.gather(jobs[1].run_async(), jobs[2].run_async())
        return [run.state for run in (blocking, *two)]

    assert asyncio.run(in_a_loop()) == ["done"] * 3
    states: list[str] = []
    thread = threading.Thread(target=lambda: states.append(jobs[3].run().state))
    thread.start()
    thread.join()
    assert states == ["done"]


def test_a_cancelled_task_leaves_a_run_that_resumes(orders: cm.Dataset) -> None:
    started = Path("started").absolute()

    def slow(lf: pl.LazyFrame) -> pl.LazyFrame:
        def wait(frame: pl.DataFrame) -> pl.DataFrame:
            import time

            started.touch()
            time.sleep(0.5)
            return frame

        return lf.map_batches(wait)

    job = orders.map(slow, chunks={"per_file": True}).write("out/")

    async def cancel() -> None:
        task = asyncio.create_task(job.run_async())
        while not started.exists():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not Path("out").exists()
    run = job.run()
    assert run.state == "done"
    assert run.summary is not None and run.summary.chunks == 3


KILLED = """
import time
from pathlib import Path
import polars as pl
import chunkmap as cm

def slow(lf):
    def wait(frame):
        while frame["id"].min() >= 90 and Path("block").exists():
            time.sleep(0.05)
        return frame
    return lf.map_batches(wait)

cm.connect("local", dask={"workers": 1}, batches={"flush_seconds": 0.01})
run = cm.read("orders/").map(slow, chunks={"per_file": True}).write("out/").run()
print(run.state, run.summary.chunks - run.summary.mapped)
"""


def test_a_killed_kernel_leaves_a_run_that_resumes(orders: cm.Dataset) -> None:
    block = Path("block")
    block.touch()
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command) as kernel:
        deadline = time.monotonic() + 100
        while not list(Path().glob("out.chunkmap/runs/*/completions/*")):
            assert kernel.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        kernel.kill()
    block.unlink()  # Its worker ends now, too.
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    state, kept = again.stdout.split()
    assert state == "done" and int(kept) >= 1
    assert cm.scan("out/").select(pl.len()).collect().item() == 3 * ROWS


def test_small_results_are_collected(orders: cm.Dataset) -> None:
    total = orders.map(lambda lf: lf.select(pl.col("usd").sum()))
    total = total.reduce(lambda frames: pl.concat(frames).select(pl.col("usd").sum()))
    assert total.collect().item() == sum(range(ROWS, 4 * ROWS)) / 2
    none = orders.map(lambda lf: lf.filter(False)).collect()
    assert none.columns[:2] == ["id", "usd"] and none.height == 0
    with pytest.raises(cm.errors.UsageError, match="larger than 100 B"):
        orders.map(euros).collect(limit=100)


def test_versions_of_an_output(orders: cm.Dataset) -> None:
    for rate in (1.0, 2.0):
        job = orders.map(euros, params={"rate": rate}).write("out/", mode="overwrite")
        job.run()
    history = cm.history("out/")
    assert history["version"].to_list() == [2, 1]
    assert history["rows"].to_list() == [3 * ROWS, 3 * ROWS]
    first = cm.scan("out/", version=1).select(pl.col("eur").sum()).collect().item()
    second = cm.scan("out/").select(pl.col("eur").sum()).collect().item()
    assert second == 2 * first
    assert cm.rollback("out/") == 3
    assert cm.scan("out/").select(pl.col("eur").sum()).collect().item() == first
    assert cm.history("out/")["action"][0] == "rollback to 1"
    assert cm.verify("out/").problems == ()
    assert cm.vacuum("out/", dry_run=True).uploads == 0


def test_files_get_a_column_where_they_are(orders: cm.Dataset) -> None:
    assert cm.adopt("orders/").files == 3
    job = orders.add_columns(lambda lf: lf.select(eur=pl.col("usd") * 2))
    in_place = job.write("orders/", mode="overwrite-partitions")
    first = in_place.run()
    assert in_place.run().id == first.id
    assert cm.history("orders/")["action"].to_list() == ["overwrite-partitions", "adopt"]
    assert cm.history("orders/")["runs"].to_list() == [[first.id], []]
    totals = cm.scan("orders/").select(pl.col("eur", "usd").sum()).collect()
    assert totals["eur"].item() == 2 * totals["usd"].item() > 0


def test_a_backfill_publishes_window_by_window(orders: cm.Dataset) -> None:
    job = orders.map(euros).write("out/", mode="overwrite-partitions")
    backfill = job.backfill("2024-01-01", "2024-01-03", column="ds", canary=1)
    assert backfill.windows == 2
    assert "2 of 2 to do" in backfill._repr_html_()
    backfill.run()
    assert backfill.status.state == "done"
    assert "2 windows; 0 failed" in backfill._repr_html_()
    again = job.backfill("2024-01-01", "2024-01-03", column="ds")
    assert "none of 2 to do: the output has them" in again._repr_html_()
    assert cm.scan("out/").select(pl.len()).collect().item() == 2 * ROWS
    assert cm.scan("out/", window="2024-01-02").collect().height == ROWS
    with pytest.raises(cm.errors.UsageError, match="no option 'canari'"):
        job.backfill(column="ds", canari=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"canary_hold": True}, "canary_hold and canary_limit need a canary"),
        ({"canary_limit": "5%"}, "canary_hold and canary_limit need a canary"),
        ({"max_failures": "5"}, "max_failures: '5' is neither a number of windows nor a share"),
        ({"max_failures": -1}, "max_failures: -1 is neither"),
        ({"canary": "few"}, "canary: 'few' is neither"),
        ({"bytes_per_run": "1 GX"}, "bytes_per_run: '1 GX' is not a size"),
        ({"max_active": "many"}, "`max_active`: expected a whole number, found 'many'"),
        ({"reprocess": "al"}, "`reprocess`: expected 'missing', 'failed'"),
    ],
)
def test_options_of_a_backfill_are_checked_as_those_of_the_command(
    orders: cm.Dataset, options: dict[str, Any], says: str
) -> None:
    """A pause that no canary precedes never came, and "5" was 5%."""
    job = orders.map(euros).write("out/", mode="overwrite-partitions")
    with pytest.raises(cm.errors.UsageError) as caught:
        job.backfill(column="ds", **options)
    assert says in str(caught.value)


def test_a_text_is_one_window_of_a_backfill(orders: cm.Dataset) -> None:
    job = orders.map(euros).write("out/", mode="overwrite-partitions")
    days = job.backfill("2024-01-01", "2024-01-03", column="ds", exclude="2024-01-02")
    assert days.windows == 1
    assert job.backfill(column="ds", grain="value", values="2024-01-02").windows == 1


def test_notebooks_show_tables(orders: cm.Dataset, drawn: None) -> None:
    job = orders.map(euros, params={"rate": 2.0}).write("out/", name="a-b")
    assert "job a-b" in job._repr_html_()
    plan = job.plan()
    assert "width:200px" in plan._repr_html_() and "chunks" in repr(plan)
    assert "eur (Float64)" in job.preview()._repr_html_()
    run = job.run()
    assert "3 of 3 done" in run._repr_html_() or "1 of 1 done" in run._repr_html_()
    page = run.report()._repr_html_()
    assert page.startswith("<iframe srcdoc='") and "<script" not in page


def test_what_is_wrong_with_a_job_is_said_when_it_is_made(orders: cm.Dataset) -> None:
    with pytest.raises(cm.errors.JobError, match="overwrit"):
        orders.map(euros).write("out/", mode="overwrites")
    with pytest.raises(cm.errors.JobError, match="is no function"):
        orders.map(3).write("out/")  # type: ignore[arg-type]
    with pytest.raises(cm.errors.JobError, match="a class without __call__"):
        orders.map(dict).write("out/")
    with pytest.raises(cm.errors.JobError, match="reduce"):
        orders.map(euros).then(euros).write("out/")
    with pytest.raises(cm.errors.UsageError, match="neither an address"):
        cm.connect(3)


def test_columns_are_added_beside_kept_ones(orders: cm.Dataset) -> None:
    added = orders.add_columns(lambda lf: lf.select(eur=pl.col("usd") * 2), max_garbage="50%")
    plan = added.write("added/").plan()
    assert "2 columns as they are" in plan.kept
    assert plan.kept in repr(plan) and plan.kept in plan._repr_html_()
    assert "kept" not in repr(orders.map(euros).write("mapped/").plan())
    run = added.write("added/").run()
    assert run.state == "done"
    out = cm.scan("added/").collect().sort("id")
    assert out.columns == ["id", "usd", "eur", "ds"]
    assert out["eur"].to_list() == (out["usd"] * 2).to_list()
    renamed = orders.add_columns(lambda lf: lf.select([]), keep=["id"], rename={"id": "order"})
    assert renamed.collect().columns == ["order", "ds"]
    with pytest.raises(cm.errors.JobError, match="FILTER"):
        orders.add_columns(lambda lf: lf.filter(pl.col("id") > 1)).write("never/").plan()
