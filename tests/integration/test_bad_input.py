"""Bad input: a clear error that names the thing and the next step, exit 2, nothing written."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.config.settings import Settings
from pipeline.printable import continued
from tests.integration.world import BLIND, READER, UNTOUCHED, World

pytestmark = pytest.mark.integration

Setup = Callable[[World], str]


def job(**more: Any) -> Setup:
    return lambda world: world.job("bad", **more)


def text(line: str) -> Setup:
    """A good job, and one more line."""

    def write(world: World) -> str:
        name = world.job("bad")
        path = world.root / name
        good = path.read_text()
        path.write_text(good[: good.rindex("}")].rstrip() + f",\n {line}\n}}\n")
        return name

    return write


BAD = "s3://demo/bad"
CASES: dict[str, tuple[Setup, str, tuple[str, ...]]] = {
    "no bucket": (job(source="s3://nowhere/x/"), "BucketMissingError", ("s3://nowhere/",)),
    "no output bucket": (
        job(output={"uri": "s3://nowhere/x/"}), "BucketMissingError", ("s3://nowhere/",),
    ),
    "no prefix": (job(source="s3://demo/nothing/"), "NoParquetError", ("s3://demo/nothing/",)),
    "a prefix without Parquet": (
        job(source=f"{BAD}/csv/"), "NoParquetError", (f"{BAD}/csv/", "1 not named *.parquet"),
    ),
    "no Parquet": (
        job(source=f"{BAD}/no-parquet/"), "BadObjectsError",
        (f"{BAD}/no-parquet/other.parquet", "PAR1"),
    ),
    "empty": (
        job(source=f"{BAD}/empty/"), "BadObjectsError", (f"{BAD}/empty/other.parquet", "0 bytes"),
    ),
    "cut off": (
        job(source=f"{BAD}/cut-off/"), "BadObjectsError",
        (f"{BAD}/cut-off/other.parquet", "truncated"),
    ),
    "schemas differ": (
        job(source=f"{BAD}/differ/"), "SchemaMismatchError",
        ("price: Float64", "String", "extra: absent", "differ/good.parquet", "differ/other.parq"),
    ),
    "no such module": (
        job(transform="shop.none:total"), "JobError", ("'shop.none' does not exist",),
    ),
    "no such function": (
        job(transform="shop.transforms:totl"), "JobError", ("no function 'totl'", "total"),
    ),
    "not allowed": (
        job(transform="secret:total"), "TransformNotAllowedError", ("'secret'", "['shop']"),
    ),
    "no LazyFrame": (
        job(transform="shop.transforms:eager"), "JobError", ("eager", "DataFrame", "LazyFrame"),
    ),
    "unknown parameter": (
        job(params={"rte": 2}), "JobError", ("total", "'rte'", "rate"),
    ),
    "no such column": (
        job(input={"columns": ["id", "prize"]}), "ColumnError", ("'prize'", "'price'"),
    ),
    "no such column to filter": (
        job(input={"filter": [["prize", ">", 1]]}), "FilterError", ("'prize'", "'price'"),
    ),
    "no such column for the transform": (
        job(transform="shop.transforms:lacks"), "InputError", ("lacks", "prize", "id, price, shop"),
    ),
    "a filter of another type": (
        job(input={"filter": [["price", ">", "much"]]}), "FilterError", ("price", "much", "double"),
    ),
    "unknown key": (text('"retrys": 3'), "JobError", ("bad.yaml:", "`retrys`", "`retries`")),
    "mistyped key": (text('"retries": "many"'), "JobError", ("bad.yaml:", "`retries`", "'many'")),
    "no YAML": (text('"a": ['), "JobError", ("bad.yaml:", "not YAML")),
    "no file": (lambda world: "none.yaml", "JobError", ("none.yaml",)),
    "an output in use": (
        job(output={"uri": "s3://demo/out/held/"}), "OutputNotEmptyError",
        ("s3://demo/out/held/", "other.txt"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    code: int
    out: str
    err: str
    changed: list[str]


@pytest.fixture(scope="module")
def refusals(world: World) -> dict[str, Refusal]:
    """What `run` says to each."""
    commands = []
    for number, (name, (setup, _, _)) in enumerate(CASES.items()):
        file = setup(world)
        if (world.root / file).exists():
            # Each file is to live until its command is given.
            file = str((world.root / file).rename(world.root / f"{number}-{file}").name)
        commands.append((name, ["run", file, "--json"]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.several"],
        input=json.dumps([command for _, command in commands]),
        cwd=world.root,
        env=world.variables(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(commands), done.stderr
    return {name: Refusal(**a) for (name, _), a in zip(commands, answers, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_run_refuses(refusals: dict[str, Refusal], name: str) -> None:
    _, error, parts = CASES[name]
    refusal = refusals[name]
    assert refusal.code == 2, refusal.err
    said = json.loads(refusal.out)
    assert list(said) == ["error", "message", "hint", "exit_code"]
    assert (said["error"], said["exit_code"]) == (error, 2)
    for part in parts:
        assert part in f"{said['message']} {said['hint']}"
    assert refusal.changed == []
    assert "error: " + continued(said["message"], " " * 7) in refusal.err
    assert "Traceback" not in refusal.err
    assert said["hint"] or name in WITHOUT_NEXT_STEP


def test_what_is_refused_leaves_no_failed_flow_run(
    refusals: dict[str, Refusal], world: World
) -> None:
    assert len(refusals) == len(CASES)
    named = {"flow_runs": {"name": {"any_": ["bad"]}}}
    assert world.ask_prefect("flow_runs/count", named) == 0


WITHOUT_NEXT_STEP = ("no file", "unknown key", "mistyped key", "no YAML", "no such column")
"""Where the message itself says what to do."""


def test_what_is_not_allowed_is_not_imported(refusals: dict[str, Refusal], world: World) -> None:
    assert refusals["not allowed"].code == 2
    assert not (world.root / "imported").exists()


def test_plan_and_check_refuse_alike(world: World) -> None:
    for command in ("plan", "check"):
        refused = world.chunkmap(command, world.job("bad", source=f"{BAD}/differ/"))
        assert (refused.code, refused.out) == (2, "")
        lines = refused.err.splitlines()
        assert lines[0].startswith("error: ")
        assert lines[-1].startswith("next:  set input.schema")


def access(world: World, who: tuple[str, str]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": str(world.settings.s3.endpoint_url),
        "AWS_ACCESS_KEY_ID": who[0],
        "AWS_SECRET_ACCESS_KEY": who[1],
        "AWS_REGION": "us-east-1",
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("who", "right", "thing"),
    [
        (READER, "s3:PutObject", "s3://demo/out/denied.chunkmap/"),
        (BLIND, "s3:GetObject", "s3://demo/out/denied.chunkmap/"),
        (("NOBODY", "nothing"), "s3:GetObject", "s3://demo/out/denied.chunkmap/"),
    ],
    ids=["reader", "writer", "nobody"],
)
def test_no_permission(world: World, who: tuple[str, str], right: str, thing: str) -> None:
    before = world.objects(*UNTOUCHED)
    refused = world.chunkmap("run", world.job("denied"), "--json", **access(world, who))
    assert refused.code == 2, refused.err
    assert refused.data["error"] == "AccessDeniedError"
    assert f"no permission for {right} on {thing}" in refused.data["message"]
    assert "permissions" in refused.data["hint"]
    assert world.objects(*UNTOUCHED) == before


def test_nobody_at_the_address(world: World) -> None:
    """Nothing listens there, or what listens says nothing: known when the time is up."""
    short = {"CHUNKMAP_PREFECT__CONNECT_TIMEOUT": "2", "CHUNKMAP_DASK__CONNECT_TIMEOUT": "2"}
    with socket.socket() as closed, socket.socket() as mute:
        for listener in (closed, mute):
            listener.bind(("127.0.0.1", 0))
        mute.listen()
        nobody, silent = (f"127.0.0.1:{listener.getsockname()[1]}" for listener in (closed, mute))
        cases = (
            ({"PREFECT_API_URL": f"http://{nobody}/api"}, "Prefect server", nobody),
            ({"CHUNKMAP_DASK__SCHEDULER": f"tcp://{silent}"}, "Dask scheduler", silent),
            (
                {**access(world, READER), "AWS_ENDPOINT_URL_S3": f"http://{nobody}"},
                "S3 does not answer",
                nobody,
            ),
        )
        name = world.job("unreached")
        before = world.objects(*UNTOUCHED)
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(world.chunkmap, "run", name, "--json", **short, **variables)
                for variables, _, _ in cases
            ]
            answers = [answer.result() for answer in asked]
    for (_, thing, address), refused in zip(cases, answers, strict=True):
        assert refused.code == 2, refused.err
        assert refused.data["error"] == "EngineUnavailableError"
        assert thing in refused.data["message"]
        assert address in refused.data["message"]
        assert refused.data["hint"]
        # Two seconds, and the imports beside whatever else this machine does.
        assert refused.seconds < 60
    assert world.objects(*UNTOUCHED) == before
    # What nobody has set leaves time for the imports within 15 s.
    assert Settings().prefect.connect_timeout == Settings().dask.connect_timeout == 10


def test_a_cluster_class_that_is_not_there(world: World) -> None:
    variables = {"CHUNKMAP_DASK__CLUSTER_CLASS": "no.such:Cluster"}
    refused = world.chunkmap("run", world.job("unclustered"), "--json", **variables)
    assert refused.code == 2, refused.err
    assert "no.such:Cluster" in refused.data["message"]
