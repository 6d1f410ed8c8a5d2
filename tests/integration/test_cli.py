"""The other commands on the real stack: plan, check, status, verify, config, up, down."""

import json
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from tests.ingest.conftest import orders
from tests.integration.world import COMMAND, ROWS, Answer, World, parquet, sales
from tests.servers.api import Api, serving

pytestmark = pytest.mark.integration


FOREIGN = {
    "AWS_PROFILE": "not-on-this-machine",
    "AWS_ACCESS_KEY_ID": "AKIAFOREIGN",
    "AWS_SECRET_ACCESS_KEY": "foreign",
    "AWS_SESSION_TOKEN": "foreign",
    "AWS_REGION": "eu-west-1",
}
"""What the shell of a data engineer holds."""


@pytest.fixture(scope="module")
def ran(world: World) -> Answer:
    """A run from the shell of a data engineer, whose transform prints."""
    job = world.job("looked-at", "shop.transforms:talks")
    answer = world.chunkmap("run", job, "--json", **FOREIGN)
    assert answer.code == 0, answer.err
    return answer


@pytest.fixture(scope="module")
def done(ran: Answer) -> str:
    """A run that is done; its id."""
    return str(ran.data["run"])


def test_plan_says_what_would_run_and_writes_nothing(world: World) -> None:
    job = world.job("planned", input={"filter": [["id", ">=", 2000]]})
    said = world.chunkmap("plan", job, "--json").data
    assert (said["objects_listed"], said["objects_planned"]) == (6, 4)
    assert (said["row_groups"], said["row_groups_pruned"]) == (24, 8)
    assert said["rows"] == 4000
    assert said["columns"] == ["id", "price", "shop"]
    shown = world.chunkmap("plan", job, "--explain")
    for part in ("4 of 6 listed", "16 of 24", "8 row groups", "nothing was written", "█"):
        assert part in shown.out
    assert not world.objects("s3://demo/out/planned")


def test_check_shows_the_transform_at_work(world: World) -> None:
    shown = world.chunkmap("check", world.job("checked"))
    assert shown.code == 0, shown.err
    assert "note" not in shown.err
    said = world.chunkmap("check", "checked.yaml", "--json", "--rows", "3").data
    assert said["schema_out"] == {**said["schema_in"], "total": "Float64"}
    assert len(said["head"]) == 3
    assert said["differs"] is None
    assert not world.objects("s3://demo/out/checked")


def test_check_warns_of_what_depends_on_the_cut(world: World) -> None:
    shown = world.chunkmap("check", world.job("grouped", "shop.transforms:groups"))
    assert shown.code == 0
    assert "note: the whole gives 5 rows, the halves 10" in shown.err


def test_status_is_readable_at_80_columns(world: World, done: str) -> None:
    shown = world.chunkmap("status", "-o", "s3://demo/out/looked-at/", COLUMNS="80")
    lines = [line.rstrip() for line in shown.out.splitlines()]
    assert lines[0] == "s3://demo/out/looked-at/"
    assert lines[2].split()[:3] == [done, "looked-at", "done"]
    assert max(map(len, lines)) <= 80


def test_status_of_one_run(world: World, done: str) -> None:
    shown = world.chunkmap("status", done[:8])
    assert f"looked-at · run {done}" in shown.out
    wrong = world.chunkmap("status", done[:-1] + ("0" if done[-1] != "0" else "1"), "--json")
    assert wrong.code == 2
    assert wrong.data["hint"] == f"did you mean {done}?"


def test_what_a_transform_prints_leaves_the_result_alone(world: World, ran: Answer) -> None:
    assert ran.data["state"] == "done"
    assert "a transform is called" in ran.err
    log = (world.root / ".chunkmap" / "logs" / "dask.log").read_text()
    assert "PRINTED pipeline.printed: a transform has" in log
    assert f"[run={ran.data['run']} batch=" in log


@pytest.mark.long
def test_a_run_in_the_background_ends_without_the_command(world: World) -> None:
    job = world.job("detached", "shop.transforms:slow")
    started = world.chunkmap("run", job, "--detach", "--json").data
    run = started["run"]
    assert Path(started["log"]).is_file()
    again = world.chunkmap("run", job, "--detach")
    assert "drives it already" in again.err or "is complete" in again.out
    deadline = time.monotonic() + 60
    while world.chunkmap("status", run, "--json").data["state"] != "done":
        assert time.monotonic() < deadline, Path(started["log"]).read_text()
        time.sleep(1)
    shown = world.chunkmap("logs", run)
    assert started["log"] in shown.out and " done " in shown.out
    assert world.chunkmap("verify", "s3://demo/out/detached/").code == 0
    refused = world.chunkmap("run", world.job("nowhere", input={"uri": "s3://demo/no/"}), "-d")
    assert refused.code == 2 and "no object at s3://demo/no/" in refused.err


SECRET_BLOCK = """
from pipeline.config.settings import load_settings
import os

os.environ.update(load_settings().prefect.environment())
from prefect.blocks.system import Secret

Secret(value="s3cr3t-of-the-shop").save("shop-token", overwrite=True)
"""


@pytest.mark.long
def test_an_ingest_is_a_flow_and_one_that_was_killed_goes_on(world: World) -> None:
    """With its secret in a Secret block; no page that was stored is asked for again."""
    asked, released = threading.Event(), threading.Event()

    def script(query: str, times: int) -> None:
        if query == "after=c20" and times == 1:
            asked.set()
            released.wait(60)

    command = [sys.executable, "-P", "-c", SECRET_BLOCK]
    subprocess.run(command, cwd=world.root, env=world.variables(), check=True)
    with serving(Api(orders(45), by="cursor", script=script)) as api:
        (world.root / "ingest.yaml").write_text(
            f"name: shop\nhttp:\n  url: {api.url}\n  auth: {{secret: shop-token}}\n"
            "  records: data\n  pages: {by: cursor, parameter: after, path: meta.next}\n"
            "output: {uri: s3://demo/out/ingested/}\n",
            "utf-8",
        )
        with world.start("ingest", "ingest.yaml") as process:
            assert asked.wait(100)
            process.kill()
        released.set()
        answer = world.chunkmap("ingest", "ingest.yaml", "--json")
        assert answer.code == 0, answer.err
        assert (answer.data["rows"], answer.data["asked"]) == (45, 3)
        assert api.twice() == ["after=c20"], "it was not stored"
        assert api.headers[0]["Authorization"] == "Bearer s3cr3t-of-the-shop"
    assert world.frame("s3://demo/out/ingested/")["id"].sort().to_list() == list(range(45))
    named = {"name": {"any_": ["shop"]}}
    last, _killed = world.in_prefect("flow_runs", flow_runs=named, sort="START_TIME_DESC")
    assert last["state"]["type"] == "COMPLETED"
    steps = {run["name"].partition(" ")[0] for run in world.tasks_of(last)}
    assert steps <= {"fetch", "plan", "publish"}
    shown = json.dumps([last, world.in_prefect("artifacts", flow_runs=named)])
    assert "s3cr3t" not in shown


def test_ranges_of_a_large_file_are_read_and_written_by_dask(world: World) -> None:
    """Each is a task run with the name of what it does."""
    text = b"id,note\n" + b"".join(b'%d,"line\nof ""%d"""\n' % (i, i) for i in range(3000))
    world.storage.put("s3://demo/csv/notes.csv", text)
    (world.root / "notes.yaml").write_text(
        "name: notes\nfiles: {uri: s3://demo/csv/notes.csv, range_bytes: 10000}\n"
        "output: {uri: s3://demo/out/notes/, file_bytes: 8000}\n",
        "utf-8",
    )
    answer = world.chunkmap("ingest", "notes.yaml", "--json")
    assert answer.code == 0, answer.err
    frame = world.frame("s3://demo/out/notes/").sort("id")
    assert frame.equals(pl.read_csv(text))
    assert answer.data["files"] > 1
    count = len(text) // 10_000 + answer.data["files"]
    runs = [run["name"] for run in world.tasks_of(world.flow_run_of("notes"), count)]
    ranges = [name for name in runs if name.startswith("range ")]
    assert len(ranges) >= len(text) // 10_000
    assert "range 1 of s3://demo/csv/notes.csv" in ranges
    assert "write file 1" in runs


def test_verify_sees_what_was_changed_lost_and_added(world: World, done: str) -> None:
    output = "s3://demo/out/looked-at/"
    assert world.chunkmap("verify", output).code == 0
    changed, lost, *_ = sorted(uri for uri, _ in world.objects(output))
    kept = {uri: world.storage.get(uri).data for uri in (changed, lost)}
    flipped = bytes([*kept[changed][:99], kept[changed][99] ^ 1, *kept[changed][100:]])
    world.storage.put(changed, flipped)
    world.storage.delete(lost)
    world.storage.put(output + "extra.parquet", parquet(sales(0, 1)))
    said = world.chunkmap("verify", output, "--json")
    assert said.code == 1
    problems = "\n".join(said.data["problems"])
    assert f"{changed} has another checksum" in problems
    assert f"{lost} is missing" in problems
    assert f"{output}extra.parquet is in the output, but no manifest names it" in problems
    assert len(said.data["problems"]) == 3
    assert "does NOT match its manifest" in world.chunkmap("verify", output).out

    world.storage.delete(output + "extra.parquet")
    for uri, data in kept.items():
        world.storage.put(uri, data)
    again = world.chunkmap("verify", output, "--json")
    assert (again.code, again.data["problems"]) == (0, [])
    assert again.data["rows"] < ROWS


def test_verify_of_what_was_never_published(world: World) -> None:
    refused = world.chunkmap("verify", "s3://demo/sales/", "--json")
    assert (refused.code, refused.data["error"]) == (2, "UsageError")
    assert "s3://demo/sales/ has no manifest" in refused.data["message"]


def test_config_masks_secrets_and_names_sources(world: World) -> None:
    said = world.chunkmap("config", "--json", CHUNKMAP_DASK__WORKERS="3").data
    assert said["dask.workers"] == {"value": "3", "source": "CHUNKMAP_DASK__WORKERS"}
    assert said["transforms.allow"] == {"value": "shop", "source": "conf/base.yaml:1"}
    assert said["s3.endpoint_url"]["source"] == "the embedded stack"
    shown = world.chunkmap("config")
    secret = world.settings.s3.secret_access_key
    assert secret is not None
    assert secret.get_secret_value() not in shown.out
    assert "********" in shown.out


def test_up_is_one_object_too(world: World) -> None:
    said = world.chunkmap("up", "--json").data
    assert [service["state"] for service in said["services"]] == ["running"] * 3


def test_head_shows_the_first_rows(world: World, done: str) -> None:
    output = "s3://demo/out/looked-at/"
    shown = world.chunkmap("head", output, "--rows", "3")
    assert shown.code == 0, shown.err
    assert "total" in shown.out
    said = world.chunkmap("head", output, "--rows", "3", "--json", **FOREIGN)
    assert said.code == 0, said.err
    assert list(said.data["columns"]) == ["id", "price", "shop", "total"]
    rows = said.data["rows"]
    assert len(rows) == 3
    assert all(row["total"] == row["price"] > 10 for row in rows)
    assert world.chunkmap("head", "s3://demo/sales/").code == 2


def test_credentials_of_another_s3_change_nothing_and_up_says_so(world: World, ran: Answer) -> None:
    assert ran.data["state"] == "done"
    assert world.objects("s3://demo/out/looked-at/")
    lost = world.chunkmap("plan", world.job("foreign", source="s3://mine/x/"), "--json", **FOREIGN)
    assert (lost.code, lost.data["error"]) == (2, "BucketMissingError")
    assert "not used: AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN" in lost.data["hint"]
    up = world.chunkmap("up", **FOREIGN)
    assert "not used: AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN" in up.err
    assert "not used" not in world.chunkmap("up").err


def test_env_lets_other_programs_use_the_stacks_s3(world: World, done: str) -> None:
    program = (
        "import botocore.session; from polars import scan_parquet as scan; "
        "s3 = botocore.session.get_session().create_client('s3'); "
        "print(s3.list_objects_v2(Bucket='demo', Prefix='sales/')['KeyCount'], "
        "len(scan('s3://demo/sales/*.parquet').collect()))"
    )
    shell = f'set -eu; eval "$({shlex.join([*COMMAND, "env"])})"; {sys.executable} -c "{program}"'
    said = subprocess.run(
        ["bash", "-c", shell],
        cwd=world.root,
        env=world.variables(**FOREIGN),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout.split() == ["6", str(ROWS)], said.stderr
    as_json = world.chunkmap("env", "--json").data
    assert as_json["AWS_ENDPOINT_URL"] == world.settings.s3.endpoint_url


def test_env_without_a_stack_says_how_to_start_it(tmp_path: Path) -> None:
    refused = World(tmp_path).chunkmap("env", "--json")
    assert (refused.code, refused.data["hint"]) == (1, "start it: chunkmap up")
