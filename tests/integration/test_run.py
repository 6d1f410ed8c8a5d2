"""`chunkmap run` on the real stack: to the end, interrupted, killed, failing, fixed."""

import ast
import json
import re
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.runs.admin.status import list_runs
from tests.integration.world import ROWS, Answer, World, parquet, sales

pytestmark = pytest.mark.integration


def oracle(rate: float = 1.0, above: int = -1) -> pl.DataFrame:
    """What `total` makes of everything, by Polars alone."""
    rows = sales(0, ROWS).filter(pl.col("id") > above, pl.col("price") > 10)
    return rows.with_columns(total=pl.col("price") * rate)


@pytest.fixture(scope="module")
def first(world: World) -> Answer:
    checks = {"run": [{"check": "row_count", "min": 1}]}
    source = {"filter": [["id", ">", 1499]]}
    job = world.job("sales", input=source, params={"rate": 2.0}, checks=checks)
    return world.chunkmap("run", job, "--json")


def test_the_output_is_what_polars_alone_computes(world: World, first: Answer) -> None:
    assert first.code == 0, first.err
    assert_frame_equal(world.frame("s3://demo/out/sales/"), oracle(2.0, above=1499))


def test_the_figures_are_honest(world: World, first: Answer) -> None:
    said = first.data
    assert said["state"] == "done"
    assert (said["rows_in"], said["rows_out"]) == (ROWS - 1500, oracle(above=1499).height)
    assert said["chunks"] == said["mapped"] > 8
    assert said["failed"] == 0
    assert said["bytes_out"] == sum(i.size for i in world.storage.objects("s3://demo/out/sales/"))


def test_the_report_is_in_s3_and_here(world: World, first: Answer) -> None:
    stored = world.storage.get(first.data["report"]).data
    assert Path(first.data["local_report"]).read_bytes() == stored
    assert b"<html" in stored
    report = json.loads(world.storage.get(first.data["report"].replace(".html", ".json")).data)
    assert report["run"]["id"] == first.data["run"]


@pytest.mark.long
def test_nulls_take_the_type_of_other_chunks(world: World) -> None:
    said = world.chunkmap("run", world.job("remarks", "shop.transforms:remarks"), "--json").data
    assert said["chunks"] == said["mapped"] > 4
    found = world.frame("s3://demo/out/remarks/")
    expected = [[str(i)] if i > 5900 else None for i in range(ROWS)]
    assert found.sort("id")["remark"].to_list() == expected
    files = [info.uri for info in world.storage.objects("s3://demo/out/remarks/")]
    types = {
        pl.read_parquet_schema(BytesIO(world.storage.get(uri).data))["remark"] for uri in files
    }
    assert types == {pl.List(pl.String)}
    assert world.storage.objects("s3://demo/out/remarks.chunkmap/staged/") == []


@pytest.mark.long
def test_several_outputs_survive_a_driver_that_is_killed(world: World) -> None:
    """Killed while it maps, then run again: the rows of each output, once, and nothing else."""
    job = world.job("several", "shop.transforms:split", params={"seconds": 0.2})
    file = world.root / job
    values = json.loads(file.read_text())
    del values["output"]
    uris = {name: f"s3://demo/out/{name}/" for name in ("dear", "cheap")}
    file.write_text(json.dumps(values | {"outputs": {n: {"uri": u} for n, u in uris.items()}}))
    with world.start("run", job) as process:
        while not any(run.done for run in list_runs(world.storage, uris["dear"])):
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    assert not any(world.objects(uri) for uri in uris.values())
    said = world.chunkmap("run", job, "--json").data
    assert (said["state"], [o["manifest"] for o in said["outputs"]]) == ("done", [1, 1])
    assert said["mapped"] < said["chunks"]
    rows = sales(0, ROWS)
    assert_frame_equal(world.frame(uris["dear"]).sort("id"), rows.filter(pl.col("price") > 50))
    cheap = rows.filter(pl.col("price") <= 50).select("id")
    assert_frame_equal(world.frame(uris["cheap"]).sort("id"), cheap)
    for uri in uris.values():
        verified = world.chunkmap("verify", uri, "--json").data
        assert (verified["problems"], verified["notes"]) == ([], [])


@pytest.mark.long
def test_objects_in_quarantine_are_listed_beside_the_output(world: World) -> None:
    source = "s3://demo/quarantined/"
    good = parquet(sales(0, 1000))
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    world.storage.put(f"{source}good.parquet", good)
    world.storage.put(f"{source}bad.parquet", good[:4] + b"\xa5" * (footer - 4) + good[footer:])
    world.storage.put(f"{source}worse.parquet", b"PAR1 is what it is not")
    rules = {"on_bad_object": "quarantine", "max_quarantined": "50%"}
    job = world.job("quarantined", source=source, input=rules)
    refused = world.chunkmap("run", job, "--json")
    assert refused.code == 1
    assert "2 of 3 objects cannot be read" in refused.err + refused.out
    assert world.objects("s3://demo/out/quarantined/") == set()
    job = world.job("quarantined", source=source, input={**rules, "max_quarantined": 2})
    said = world.chunkmap("run", job, "--json").data
    [uri] = said["quarantine"]
    assert said["left_out"] == 2
    lines = world.storage.get(uri).data.splitlines()
    assert {json.loads(line)["uri"] for line in lines} == {
        f"{source}bad.parquet",
        f"{source}worse.parquet",
    }
    verified = world.chunkmap("verify", "s3://demo/out/quarantined/", "--json").data
    assert (verified["problems"], verified["quarantine"]) == ([], [uri])


def test_prefect_shows_the_run(world: World, first: Answer) -> None:
    shown = world.flow_run_of(first)
    assert (shown["name"], shown["state_type"]) == ("sales", "COMPLETED")
    tasks = world.tasks_of(shown, first.data["batches"] + 3)
    # Never one task run a chunk: batches, the plan, the checks and the publishing.
    assert len(tasks) == first.data["batches"] + 3 < first.data["chunks"] + 3
    names, run = {task["name"] for task in tasks}, first.data["run"]
    assert {"plan sales", f"quality_checks {run}", f"publish {run}"} <= names
    assert sum(bool(re.fullmatch(r"r1-[0-9a-f]+-\d{5}", name)) for name in names) == len(names) - 3
    artifacts = world.in_prefect("artifacts", flow_runs={"id": {"any_": [shown["id"]]}})
    by_type = {artifact["type"]: artifact for artifact in artifacts}
    assert by_type["progress"]["data"] == 100
    assert first.data["report"] in by_type["markdown"]["data"]
    [checked] = json.loads(by_type["table"]["data"])
    assert (checked["check"], checked["outcome"]) == ("row_count", "passed")


def test_again_maps_nothing_and_says_so(world: World, first: Answer) -> None:
    before = world.objects("s3://demo/out/sales/")
    again = world.chunkmap("run", "sales.yaml")
    assert again.code == 0, again.err
    line = again.out.splitlines()[0]
    assert line.startswith(f"Run {first.data['run']} is complete: 0 of {first.data['chunks']} ")
    assert world.objects("s3://demo/out/sales/") == before


def test_the_summary_for_people(world: World) -> None:
    """Of a run under a limit that nobody has made, which limits nothing."""
    limit = {"CHUNKMAP_BATCHES__CONCURRENCY_LIMIT": "nobody-made"}
    done = world.chunkmap("run", world.job("people"), **limit)
    assert done.code == 0, done.err
    for part in (
        f"{ROWS:,} in, {oracle().height:,} out", "B/s", "s3://demo/out/people/", "report.html",
        "Prefect UI  http://", " mapped now, 0 failed)", " in 1 round",
    ):  # fmt: skip
        assert part in done.out
    # Without a terminal: a line for each phase and for the progress, and nobody else's logs.
    lines = [line.split(" ")[0] for line in done.err.splitlines()]
    assert set(lines) == {"plan", "planned", "start", "map", "publish", "report"}
    assert f"6 objects, {ROWS:,} rows in " in done.err


def test_interrupted_then_killed_then_finished(world: World) -> None:
    job = world.job("stopped", "shop.transforms:slow")
    completions = "s3://demo/out/stopped.chunkmap/runs/"

    with world.start("run", job) as process:
        world.await_some(completions, process)
        while not any("/completions/" in uri for uri, _ in world.objects(completions)):
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "next:  resume with: chunkmap run stopped.yaml" in said
    assert "Traceback" not in said
    (run,) = list_runs(world.storage, "s3://demo/out/stopped/")
    assert run.state == "interrupted"
    assert not world.objects("s3://demo/out/stopped/")

    with world.start("run", job) as process:
        while _done(world, "stopped") <= run.done + 2:
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    killed = _done(world, "stopped")
    assert not world.objects("s3://demo/out/stopped/")

    last = world.chunkmap("run", job, "--json")
    assert last.code == 0, last.err
    assert last.data["run"] == run.run
    assert last.data["mapped"] <= last.data["chunks"] - killed
    assert_frame_equal(world.frame("s3://demo/out/stopped/"), sales(0, ROWS))


def _done(world: World, name: str) -> int:
    (run,) = list_runs(world.storage, f"s3://demo/out/{name}/")
    return run.done


BROKEN = """import polars as pl


def picky(frame: pl.LazyFrame) -> pl.LazyFrame:
    def check(rows: pl.DataFrame) -> pl.DataFrame:
        if (rows["id"] == 4321).any():
            raise ValueError("row 4321 is [odd]")
        return rows

    return frame.map_batches(check)
"""


@pytest.mark.long
def test_a_failed_chunk_is_fixed_alone(world: World) -> None:
    module = world.root / "shop" / "picky.py"
    module.write_text(BROKEN)
    job = world.job("picky", "shop.picky:picky")

    failed = world.chunkmap("run", job, "--json")
    assert failed.code == 1
    said = failed.data
    assert (said["state"], said["failed"], said["error"]) == ("failed", 1, "RunIncompleteError")
    assert said["mapped"] == said["chunks"] - 1
    assert "ValueError: row 4321 is [odd]" in said["errors"][0]
    assert not world.objects("s3://demo/out/picky/")
    (run,) = list_runs(world.storage, "s3://demo/out/picky/")
    assert (run.state, run.failed, run.done) == ("failed", 1, said["mapped"])
    shown = world.chunkmap("status", run.run)
    assert "row 4321 is [odd]" in shown.out

    module.write_text(BROKEN.replace("4321).any()", "-1).any()"))
    other_code = world.chunkmap("run", job, "--json")
    assert (other_code.code, other_code.data["error"]) == (3, "ConflictError")
    assert "--accept-code" in other_code.data["hint"]

    fixed = world.chunkmap("run", job, "--accept-code", "--json")
    assert fixed.code == 0, fixed.err
    assert (fixed.data["run"], fixed.data["mapped"]) == (said["run"], 1)
    assert_frame_equal(world.frame("s3://demo/out/picky/"), sales(0, ROWS))


COUNTING = """
import sys
from collections import Counter
import pipeline.cli.app
from pipeline.config import job
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage.storage import S3Services

counts = Counter()

def count(holder, name):
    call = getattr(holder, name)
    def counted(*arguments, **named):
        if name != "read" or not arguments[1:]:  # Counts of batches depend on time.
            counts[name] += 1
        return call(*arguments, **named)
    setattr(holder, name, counted)

count(job, "validate")
count(S3Services, "_create")
count(Ledger, "read")

def leave(code):
    print(dict(counts), file=sys.stderr)
    sys.exit(code)

module = sys.modules["pipeline.cli.app"]
module.exit_process = leave
module.main()
"""


@pytest.mark.long
def test_a_driver_parses_its_job_once_and_has_one_client(world: World) -> None:
    job = world.job("parsed-once")
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, "run", job],
        cwd=world.root,
        env=world.variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    counts = ast.literal_eval(done.stderr.splitlines()[-1])
    assert (counts["validate"], counts["_create"]) == (1, 1)
    assert counts["read"] <= 4, "after the first round, to publish, to report, and to sum up"
