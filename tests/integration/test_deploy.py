"""Deploy environments to a real Prefect server, and let a real worker run what is scheduled."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.settings import (
    PREFECT_DEFAULT_RESULT_STORAGE_BLOCK,
    PREFECT_RESULTS_DEFAULT_SERIALIZER,
    temporary_settings,
)
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from pipeline.config.deploy_file import read_deployed
from pipeline.flows.deadline import check_later
from pipeline.flows.deploy.deploy import DeployOptions, deploy
from pipeline.flows.deployments import later_run
from pipeline.flows.launch import DEPLOY_RETRIES
from pipeline.flows.server import talking_to
from pipeline.runs.backfill.dead_drivers import DEAD_SECONDS
from pipeline.runs.driver.heartbeat import DriverRecord, read_driver
from pipeline.runs.ledger.find import find_runs
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage.documents import seal_json
from tests.contracts.source import ROOT
from tests.integration.test_backfill import awaited, published
from tests.integration.world import COMMAND, Answer, AnyProcess, World, parquet, sales
from tests.support import forks

pytestmark = pytest.mark.integration

POOL = "deploy-tests"
RESULTS = "s3://demo/results/staging/"
TOLD = """
import polars as pl


def fails(frame: pl.LazyFrame, *, broken: bool) -> pl.LazyFrame:
    def check(rows: pl.DataFrame) -> pl.DataFrame:
        if broken and rows.height:
            raise ValueError("as the test wants")
        return rows

    return frame.map_batches(check)
"""


TWO = {
    name: {"enabled": False}
    for name in ("backfill", "windows", "ingest", "pipeline", "sweep", "benchmarks")
}
"""Of the deployments, run and load are left."""


@dataclass(frozen=True)
class Project:
    """A folder with the repository's prefect.yaml and environments of the test."""

    world: World
    root: Path

    def write(self, name: str, **environment: Any) -> None:
        folder = self.root / "conf" / "deploy"
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "suffix": f"-{name}",
            "work_pool": {"name": f"{POOL}-{name}"},
            "deployments": {"benchmarks": {"enabled": False}},
            **environment,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))

    def deploy(self, *arguments: str, **variables: str) -> Answer:
        clock = time.perf_counter()
        access = self.world.settings.prefect.environment()
        done = forks.give(
            "deploy",
            *arguments,
            cwd=self.root,
            variables=self.world.variables(**access, **variables),
            seconds=250,
            flows=True,
        )
        return Answer(done.returncode, done.stdout, done.stderr, time.perf_counter() - clock)

    def changes(
        self, name: str, remove: bool = False, **variables: str
    ) -> list[tuple[str, str, str]]:
        """Deploy in this process; return the changes."""
        deployed = read_deployed(self.root, name, {**variables, "PWD": str(self.root)})
        with self.prefect():
            result = deploy(deployed, DeployOptions(remove=remove))
        return [(change.action, change.kind, change.name) for change in result.changes]

    @contextmanager
    def prefect(self) -> Iterator[None]:
        """Let Prefect's client in this process use the server."""
        access = self.world.settings.prefect.environment()
        with pytest.MonkeyPatch.context() as patch:
            for key, value in access.items():
                patch.setenv(key, value)
            with talking_to(access["PREFECT_API_URL"], DEPLOY_RETRIES):
                yield

    def deployment(self, name: str) -> dict[str, Any]:
        body = {"deployments": {"name": {"any_": [name]}}}
        [found] = self.world.ask_prefect("deployments/filter", body)
        return dict(found)


def start_worker(world: World, pool: str, folder: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
        cwd=folder or world.root,
        env=world.variables(**world.settings.prefect.environment()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def stop_worker(worker: subprocess.Popen[str]) -> None:
    os.killpg(worker.pid, signal.SIGTERM)
    worker.wait(60)


@pytest.fixture
def project(world: World, tmp_path: Path) -> Project:
    (tmp_path / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    return Project(world, tmp_path)


def test_deployment_creation(project: Project, world: World) -> None:
    """The repository's environments, from nothing, then again; one of them with all that is."""
    shutil.copytree(ROOT / "conf", project.root / "conf")
    path = project.root / "conf" / "deploy" / "staging.yaml"
    rule = {"rrule": "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=3", "timezone": "Europe/Berlin"}
    more: dict[str, Any] = {
        "variables": {"deploy_test": {"rows": 3}},
        "limits": {"deploy-test": {"limit": 2}},
        "results": RESULTS,
        "secrets": {"deploy-test": {"env": "SHOP_TOKEN"}},
        "deployments": {
            "benchmarks": {"enabled": False},
            "run": {"schedule": rule},
            "load": {"schedule": {"interval": 3600}},
        },
    }
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **more}))
    clocks = {}
    for name in ("dev", "staging", "prod"):
        clock = time.perf_counter()
        made = project.changes(name, SHOP_TOKEN="hush-1234")
        clocks[name] = time.perf_counter() - clock
        kinds = [kind for _, kind, _ in made]
        assert kinds.count("deployment") == (8 if name == "dev" else 7)
        assert {action for action, _, _ in made} == {"create"}
        assert project.changes(name, SHOP_TOKEN="hush-1234") == []
    print("seconds from nothing:", clocks)
    assert clocks["prod"] < 60
    found = project.deployment("run-staging")
    assert found["work_pool_name"] == "chunkmap-staging"
    assert found["tags"] == ["chunkmap", "staging"]
    answer = project.deploy("staging", "--dry-run", SHOP_TOKEN="hush-5678")
    assert "secret/deploy-test" in answer.out
    assert "hush" not in answer.out + answer.err
    assert "nothing was changed" in answer.out
    # Promotion: what differs is the overlay.
    promoted = project.deployment("run")
    for field in ("entrypoint", "version", "parameters", "pull_steps"):
        assert promoted[field] == found[field]
    assert promoted["work_pool_name"] == "chunkmap-prod"
    keep_results(project, found["job_variables"]["env"])
    stored = [world.storage.get(info.uri).data for info in world.storage.objects(RESULTS)]
    assert all(data.startswith((b"{", b"null")) for data in stored), stored
    assert any(b"rows" in data for data in stored), stored
    for name in ("dev", "staging", "prod"):
        assert {action for action, _, _ in project.changes(name, remove=True)} == {"remove"}


def keep_results(project: Project, variables: dict[str, str]) -> None:
    """Call a task whose result Prefect stores, as a run of the deployment would."""

    @task(persist_result=True)
    def count() -> dict[str, int]:
        return {"rows": 3}

    @flow
    def counts() -> None:
        count()

    storage = {
        PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: variables["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"],
        PREFECT_RESULTS_DEFAULT_SERIALIZER: variables["PREFECT_RESULTS_DEFAULT_SERIALIZER"],
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        project.prefect(),
        temporary_settings(storage),
    ):
        for name, value in project.world.settings.s3.environment().items():
            patch.setenv(name, value)
        counts()


def test_a_schedule_makes_runs(project: Project) -> None:
    """The server makes them: no worker has to be there."""
    timing = {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}
    project.write("nine", deployments={"run": {"schedule": timing}})
    project.changes("nine")
    deployment = project.deployment("run-nine")["id"]
    wanted = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    runs = awaited(lambda: project.world.ask_prefect("flow_runs/filter", wanted))
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    # In a few days, if no worker comes until then, the last of them leaves the others nothing.
    first, *_, last = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
    with pytest.MonkeyPatch.context() as patch, project.prefect():
        patch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", deployment)
        assert later_run(first, last) == last
        assert later_run(last, last) is None
    project.changes("nine", remove=True)


def test_credentials_of_a_block_reach_the_process_of_a_run(project: Project) -> None:
    """Prefect's worker fills them in; deployments and their runs name the block only."""
    place = "{{ prefect.blocks.aws-credentials.deploy-tests.aws_secret_access_key }}"
    project.write("blocks", job_variables={"env": {"AWS_SECRET_ACCESS_KEY": place}})
    project.changes("blocks")
    deployment = project.deployment("run-blocks")
    assert deployment["job_variables"]["env"]["AWS_SECRET_ACCESS_KEY"] == place
    template = ProcessWorker.get_default_base_job_template()

    async def fill() -> Any:
        async with get_client() as client:
            kind = await client.read_block_type_by_slug("aws-credentials")
            schema = await client.get_most_recent_block_schema_for_block_type(kind.id)
            assert schema is not None
            document = BlockDocumentCreate(
                name="deploy-tests",
                data={"aws_access_key_id": "AKIA1", "aws_secret_access_key": "hush-9"},
                block_schema_id=schema.id,
                block_type_id=kind.id,
            )
            made = await client.create_block_document(document)
            try:
                values = deployment["job_variables"]
                return await ProcessJobConfiguration.from_template_and_values(
                    template, values, client=client
                )
            finally:
                await client.delete_block_document(made.id)

    with project.prefect():
        filled = asyncio.run(fill())
    assert filled.env["AWS_SECRET_ACCESS_KEY"] == "hush-9"
    project.changes("blocks", remove=True)


def test_only_what_was_made_is_changed_and_removed(project: Project) -> None:
    timing = {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}
    project.write("four", deployments={**TWO, "run": {"schedule": timing}})
    project.changes("four")
    run = project.deployment("run-four")
    by_hand = {"active": False, "schedule": {"cron": "0 5 * * *", "timezone": "UTC"}}
    project.world.ask_prefect(f"deployments/{run['id']}/schedules", [by_hand])

    def schedules() -> set[tuple[str, bool]]:
        found = project.deployment("run-four")["schedules"]
        return {(each["schedule"]["cron"], each["active"]) for each in found}

    timing["cron"] = "0 3 * * *"
    project.write("four", deployments={**TWO, "run": {"schedule": timing}})
    assert project.changes("four") == [("update", "schedule", "chunkmap/run-four")]
    assert schedules() == {("0 3 * * *", True), ("0 5 * * *", False)}
    project.write("four", deployments={**TWO, "load": {"enabled": False}})
    assert project.changes("four") == [
        ("remove", "schedule", "chunkmap/run-four"),
        ("remove", "deployment", "load/load-four"),
    ]
    assert schedules() == {("0 5 * * *", False)}
    # A pool that something else has made is used, and neither changed nor removed.
    pool = {"name": f"{POOL}-shared", "type": "process", "base_job_template": {}}
    project.world.ask_prefect("work_pools/", pool)
    shared = {"name": f"{POOL}-shared", "concurrency_limit": 3}
    project.write("shared", work_pool=shared, deployments=TWO)
    assert all(kind != "work pool" for _, kind, _ in project.changes("shared"))
    assert all(kind != "work pool" for _, kind, _ in project.changes("shared", remove=True))
    [found] = project.world.ask_prefect(
        "work_pools/filter", {"work_pools": {"name": {"any_": [f"{POOL}-shared"]}}}
    )
    assert found["concurrency_limit"] is None
    # Another environment may not take what it has not made.
    project.write("five", suffix="-four", deployments=TWO)
    answer = project.deploy("five")
    assert answer.code == 3
    assert "chunkmap/run-four" in answer.err
    assert "--adopt" in answer.err
    gone = project.changes("four", remove=True)
    assert ("remove", "work pool", f"{POOL}-four") in gone
    assert project.changes("four", remove=True) == []


@pytest.mark.long
def test_a_stopped_deploy_is_completed(project: Project) -> None:
    project.write("six", variables={f"deploy_test_six_{n}": n for n in range(5)})
    code = (
        "import os, pipeline.flows.deploy.deploy as d\n"
        "real, seen = d._apply, []\n"
        "async def apply(client, change, wanted):\n"
        "    await real(client, change, wanted)\n"
        "    seen.append(change)\n"
        "    if len(seen) == 4: os._exit(9)\n"
        "d._apply = apply\n"
        "from pipeline.cli import main; main()\n"
    )
    variables = project.world.variables(**project.world.settings.prefect.environment())
    command = [sys.executable, "-P", "-c", code, "deploy", "six"]
    done = subprocess.run(
        command, cwd=project.root, env=variables, capture_output=True, check=False
    )
    assert done.returncode == 9
    assert b"deploy_test_six_4" in done.stdout, "the changes are shown before they are made"
    # What it had made is known: without it in the file, it goes.
    project.write("six")
    removed = [name for action, _, name in project.changes("six") if action == "remove"]
    assert removed == ["deploy_test_six_2", "deploy_test_six_1", "deploy_test_six_0"][::-1]
    project.changes("six", remove=True)


@pytest.mark.long
def test_a_job_runs_by_schedule(project: Project, world: World) -> None:
    """One process worker runs the job that a schedule of the server starts."""
    project.write("seven", job_variables={"working_dir": str(world.root)})
    job = world.job("deployed-job")
    path = str(world.root / job)
    answer = project.deploy(path, "--to", "seven", "--cron", "* * * * *")
    assert answer.code == 0, answer.err
    assert "chunkmap/deployed-job-seven" in answer.out
    worker = start_worker(world, f"{POOL}-seven")
    try:
        awaited(lambda: world.storage.objects("s3://demo/out/deployed-job/"), worker)
    finally:
        project.changes("seven", remove=True)
        stop_worker(worker)
    assert world.frame("s3://demo/out/deployed-job/").height > 0


@pytest.mark.long
def test_code_and_settings_come_from_git(project: Project, world: World, tmp_path: Path) -> None:
    """A worker in an empty folder clones what the deployment names, and runs the job there."""
    source, empty = tmp_path / "source", tmp_path / "empty"
    empty.mkdir()
    for folder in ("conf", "shop"):
        shutil.copytree(world.root / folder, source / folder)
    job = world.job("from-git")
    (project.root / job).write_text((world.root / job).read_text())
    own = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for command in (("init", "-q", "-b", "main"), ("add", "."), (*own, "commit", "-q", "-m", "1")):
        subprocess.run(["git", *command], cwd=source, check=True)
    clone = {"repository": source.as_uri(), "branch": "main"}
    project.write(
        "git",
        pull=[{"prefect.deployments.steps.git_clone": clone}],
        job_variables={"env": {"CHUNKMAP_STATE_DIR": str(world.root / ".chunkmap")}},
        deployments={"benchmarks": {"enabled": False}, "from-git": {"like": "run", "job": job}},
    )
    project.changes("git")
    assert project.changes("git") == []
    worker = start_worker(world, f"{POOL}-git", empty)
    try:
        start_run(project, "from-git-git")
        world.await_some("s3://demo/out/from-git/", worker)
    finally:
        project.changes("git", remove=True)
        stop_worker(worker)
    assert world.frame("s3://demo/out/from-git/").height > 0


@pytest.mark.long
def test_a_late_run_of_a_pipeline_has_the_date_of_its_schedule(
    project: Project, world: World
) -> None:
    """A worker, which has none of the pipeline's files, runs it a week after its time."""
    project.write("twelve", job_variables={"working_dir": str(world.root)})
    job = json.loads((world.root / world.job("by-date")).read_text())
    job["output"]["uri"] = "s3://demo/out/by-date/{{ date }}/"
    (project.root / "by-date.yaml").write_text(json.dumps(job))
    pipeline = {
        "name": "dated",
        "state": "s3://demo/out/dated-state/",
        "parameters": {"date": {"type": "date", "default": "yesterday"}, "rate": "number"},
        "pipeline": [{"map": "by-date.yaml", "set": {"params.rate": "{{ rate }}"}}],
    }
    path = project.root / "dated.yaml"
    path.write_text(json.dumps(pipeline))
    command = (str(path), "--to", "twelve", "--cron", "0 5 1 1 *")
    refused = project.deploy(*command, "--dry-run")
    assert refused.code == 2
    assert "parameter rate has no value" in refused.err
    answer = project.deploy(*command, "--param", "rate=2")
    assert answer.code == 0, answer.err
    assert "pipeline/dated-twelve" in answer.out
    scheduled = (datetime.now(UTC) - timedelta(days=7)).replace(hour=5)
    state = {
        "type": "SCHEDULED",
        "state_details": {"scheduled_time": scheduled.isoformat()},
    }
    deployment = project.deployment("dated-twelve")["id"]
    run = world.ask_prefect(f"deployments/{deployment}/create_flow_run", {"state": state})
    worker = start_worker(world, f"{POOL}-twelve")
    day = (scheduled - timedelta(days=1)).date()
    body = {"flow_runs": {"id": {"any_": [run["id"]]}}}

    def ended() -> dict[str, Any] | None:
        [found] = world.ask_prefect("flow_runs/filter", body)
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    try:
        found = awaited(ended, worker)
    finally:
        project.changes("twelve", remove=True)
        stop_worker(worker)
    assert (found["state_type"], found["name"]) == ("COMPLETED", f"dated date {day}, rate 2.0")
    frame = world.frame(f"s3://demo/out/by-date/{day}/")
    assert frame.height > 0
    assert (frame["total"] == frame["price"] * 2).all()


@pytest.mark.long
def test_one_job_follows_another_by_event(project: Project, world: World) -> None:
    """The event of the first job's output starts the second, which a worker runs."""
    first = world.job("event-first")
    second = world.job("event-second", source="s3://demo/out/event-first/")
    (project.root / second).write_text((world.root / second).read_text())
    after = [{"output": "s3://demo/out/event-first/"}]
    project.write(
        "nine",
        job_variables={"working_dir": str(world.root)},
        deployments={
            "benchmarks": {"enabled": False},
            "second": {"like": "run", "job": second, "after": after},
        },
    )
    assert ("create", "automation") in {each[:2] for each in project.changes("nine")}
    assert project.changes("nine") == []
    worker = start_worker(world, f"{POOL}-nine")
    try:
        answer = world.chunkmap("run", first)
        assert answer.code == 0, answer.err
        world.await_some("s3://demo/out/event-second/", worker)
    finally:
        project.changes("nine", remove=True)
        stop_worker(worker)
    body = {"filter": {"event": {"prefix": ["chunkmap.run."]}, "order": "ASC"}}
    events = world.ask_prefect("events/filter", body)["events"]
    of_first = [
        (each["event"], each["payload"].get("rows"))
        for each in events
        if each["resource"]["prefect.resource.id"] == "s3://demo/out/event-first/"
    ]
    assert of_first == [
        ("chunkmap.run.started", None),
        ("chunkmap.run.completed", world.frame("s3://demo/out/event-first/").height),
    ]


@pytest.mark.long
def test_people_are_told_of_failures_quarantine_crashes_lateness_and_recovery(
    project: Project, world: World
) -> None:
    with Webhook() as webhook:
        late = world.job("told-late")
        (project.root / late).write_text((world.root / late).read_text())
        timing = {"cron": "0 2 * * *"}
        project.write(
            "ten",
            job_variables={"working_dir": str(world.root)},
            notify={"ops": {"kind": "webhook", "env": "OPS_URL"}},
            deployments={"benchmarks": {"enabled": False}},
        )
        project.changes("ten", OPS_URL=webhook.url)
        assert project.changes("ten", OPS_URL=webhook.url) == []
        (world.root / "shop" / "told.py").write_text(TOLD)
        broken = world.job("told-failed", "shop.told:fails", params={"broken": True}, retries=0)
        assert world.chunkmap("run", broken).code == 1
        message = webhook.await_message("told-failed failed")
        assert "nothing was published" in message["body"]
        assert "chunkmap status" in message["body"]
        fixed = world.job("told-failed", "shop.told:fails", params={"broken": False})
        assert world.chunkmap("run", fixed).code == 0
        webhook.await_message("told-failed is done again")
        source = "s3://demo/told-kept/"
        world.storage.put(f"{source}good.parquet", parquet(sales(0, 10)))
        world.storage.put(f"{source}bad.parquet", b"PAR1 is what it is not")
        rules = {"on_bad_object": "quarantine", "max_quarantined": 1}
        kept = world.chunkmap("run", world.job("told-kept", source=source, input=rules), "--json")
        message = webhook.await_message("told-kept: rows or objects in quarantine")
        assert kept.data["quarantine"][0] in message["body"]
        # A flow run whose process is gone, as Prefect tells it.
        killed = world.start("run", world.job("told-crashed", "shop.transforms:slow"))
        _, driver = driver_of(world, "told-crashed", killed)
        killed.kill()
        killed.communicate()
        state = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
        world.ask_prefect(f"flow_runs/{page_id(driver)}/set_state", state)
        webhook.await_message("told-crashed crashed")
        # What should have been published, and is not.
        override = {"like": "run", "job": late, "schedule": timing, "expect_done_by": "06:00"}
        code = (
            "from pipeline.flows.deadline import check_deadline\n"
            f"check_deadline(open({late!r}).read())"
        )
        access = world.settings.prefect.environment()
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=world.root,
            env=world.variables(**access),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "published nothing" in webhook.await_message("told-late is late")["body"]
        project.write("ten", deployments={"benchmarks": {"enabled": False}, "told": override})
        assert ("create", "schedule", "deadline/told-deadline-ten") in project.changes("ten")
        project.changes("ten", remove=True)
        assert len(webhook.subjects()) == len(set(webhook.subjects())), "one message per incident"


@pytest.mark.long
def test_new_objects_start_one_run_for_a_burst(project: Project, world: World) -> None:
    """From an object that is put to a published output: notification, event, run, commit.

    What comes while a run maps, and what nobody tells of, is not lost either.
    """
    source, token = "s3://demo/arrivals/", "a-token-of-the-tests"
    more = {"output": {"mode": "append"}, "params": {"seconds": 2.0}}
    job = world.job("arrived", "shop.transforms:slow", source, **more)
    (project.root / job).write_text((world.root / job).read_text())
    project.write(
        "eleven",
        job_variables={"working_dir": str(world.root)},
        deployments={
            "benchmarks": {"enabled": False},
            "arrived": {"like": "run", "job": job, "on_objects": True},
        },
    )
    project.changes("eleven")
    access = world.settings.prefect.environment()
    receiver = subprocess.Popen(
        [*COMMAND, "receive", "eleven", "--port", "0", "--quiet", "1s"],
        cwd=project.root,
        env=world.variables(**access, RECEIVER_TOKEN=token),
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = start_worker(world, f"{POOL}-eleven")

    def put(*numbers: int) -> None:
        for number in numbers:
            world.storage.put(f"{source}{number}.parquet", parquet(sales(number * 100, 100)))

    def arrive(*numbers: int) -> None:
        put(*numbers)
        for number in numbers:
            record = {
                "eventName": "ObjectCreated:Put",
                "s3": {
                    "bucket": {"name": "demo"},
                    "object": {"key": f"arrivals/{number}.parquet"},
                },
            }
            body = json.dumps({"Records": [record]}).encode()
            for _ in range(2):  # Senders repeat.
                request = Request(url, body, {"Authorization": f"Bearer {token}"})
                with urlopen(request) as answer:
                    assert answer.status == 202

    def runs() -> list[str]:
        body = {
            "flow_runs": {"name": {"any_": ["arrived"]}},
            "flows": {"name": {"any_": ["chunkmap"]}},
        }
        return [each["state_type"] for each in world.ask_prefect("flow_runs/filter", body)]

    try:
        assert receiver.stdout is not None
        url = receiver.stdout.readline().split()[0]
        arrive(1, 2, 3)
        awaited(lambda: find_runs(world.storage, "s3://demo/out/arrived/").records)
        arrive(4, 5)  # The first run has its plan, and not all of its results.
        assert published(world, "arrived") == 0
        awaited(lambda: published(world, "arrived") == 1)
        assert world.frame("s3://demo/out/arrived/")["id"].to_list() == ids_of(1, 2, 3)
        awaited(lambda: published(world, "arrived") == 2)
        assert world.frame("s3://demo/out/arrived/")["id"].to_list() == ids_of(1, 2, 3, 4, 5)
        assert len(runs()) == 2
        # The receiver was down: a run of the schedule finds it.
        put(6)
        start_run(project, "arrived-eleven")
        awaited(lambda: published(world, "arrived") == 3)
        assert world.frame("s3://demo/out/arrived/")["id"].to_list() == ids_of(1, 2, 3, 4, 5, 6)
    finally:
        project.changes("eleven", remove=True)
        receiver.terminate()
        receiver.communicate(timeout=60)
        stop_worker(worker)


@pytest.mark.long
def test_a_worker_is_killed_and_another_takes_over(project: Project, world: World) -> None:
    """kill -9 of all its processes; the sweep, run by the other one, finds it and resumes the run.

    People hear of it once, and again when it is done.
    """
    path = world.job("swept", "shop.transforms:slow")
    (project.root / path).write_text((world.root / path).read_text())
    with Webhook() as webhook:
        project.write(
            "fourteen",
            job_variables={"working_dir": str(world.root)},
            sweep={"every": "1h"},
            notify={"ops": {"kind": "webhook", "env": "OPS_URL"}},
            deployments={
                "benchmarks": {"enabled": False},
                "swept": {"like": "run", "job": path, "resume": True},
            },
        )
        project.changes("fourteen", OPS_URL=webhook.url)
        first = start_worker(world, f"{POOL}-fourteen")
        start_run(project, "swept-fourteen")
        prefix, driver = driver_of(world, "swept", first)
        for process in (psutil.Process(first.pid), *psutil.Process(first.pid).children(True)):
            process.kill()
        first.wait(60)
        silent = driver.model_copy(update={"seen": driver.seen - 2 * DEAD_SECONDS})
        world.storage.put(prefix + "driver.json", seal_json(silent.model_dump_json().encode()))
        worker = start_worker(world, f"{POOL}-fourteen")
        try:
            for _ in range(2):
                start_run(project, "sweep-fourteen")
            awaited(lambda: published(world, "swept") == 1)
            webhook.await_message("swept is done again")
            webhook.await_message("swept crashed")
        finally:
            project.changes("fourteen", remove=True)
            stop_worker(worker)
        subjects = [each["subject"] for each in webhook.messages if "swept" in each["subject"]]
        assert sorted(subjects) == ["swept crashed", "swept is done again"]
    runs = {"name": {"any_": ["swept"]}}
    found = world.ask_prefect("flow_runs/filter", {"flow_runs": runs})
    states = sorted(each["state_name"] for each in found)
    # Of the first driver, the flow run of the deployment and its subflow; and it was resumed once.
    assert states == ["Completed", "Completed", "Orphaned", "Silent"]


def start_run(project: Project, deployment: str) -> None:
    """Start a run of a deployment; repeated while the server is busy, as Prefect's client does."""
    known = project.deployment(deployment)["id"]

    def started() -> Any:
        try:
            return project.world.ask_prefect(f"deployments/{known}/create_flow_run", {})
        except HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            return None

    awaited(started)


@pytest.mark.long
def test_a_check_after_the_start_is_scheduled_once(project: Project, world: World) -> None:
    path = world.job("within")
    (project.root / path).write_text((world.root / path).read_text())
    timing = {"cron": "0 2 * * *"}
    override = {"like": "run", "job": path, "schedule": timing, "expect_within": "2h"}
    project.write("fifteen", deployments={"benchmarks": {"enabled": False}, "within": override})
    project.changes("fifteen")
    deadline = project.deployment("within-deadline-fifteen")
    start = datetime(2030, 3, 1, 2, tzinfo=UTC)
    access = world.settings.prefect.environment()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in access.items():
            patch.setenv(key, value)
        patch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", deadline["id"])
        with talking_to(access["PREFECT_API_URL"], DEPLOY_RETRIES):
            for _ in range(2):
                check_later(start + timedelta(hours=2), start)
    body = {"deployments": {"id": {"any_": [deadline["id"]]}}, "limit": 200}
    runs = world.ask_prefect("flow_runs/filter", body)
    [made] = [each for each in runs if each["parameters"].get("start")]
    assert made["expected_start_time"].startswith("2030-03-01T04:00:00")
    assert made["parameters"]["start"] == start.isoformat()
    assert made["parameters"]["within"] == 7200
    project.changes("fifteen", remove=True)


def ids_of(*numbers: int) -> list[int]:
    return [number * 100 + row for number in numbers for row in range(100)]


def driver_of(world: World, name: str, process: AnyProcess) -> tuple[str, DriverRecord]:
    """The prefix of the only run of an output, and its driver's record, once there is one."""
    output = f"s3://demo/out/{name}/"

    def found() -> tuple[str, DriverRecord] | None:
        for record in find_runs(world.storage, output).records:
            prefix = Ledger(world.storage, output, record.run).prefix
            driver = read_driver(world.storage, prefix)
            if driver is not None:
                return prefix, driver
        return None

    result: tuple[str, DriverRecord] = awaited(found, process)
    return result


def page_id(driver: DriverRecord) -> str:
    """The id of a driver's flow run."""
    assert driver.flow_run is not None
    return driver.flow_run.rpartition("/")[2]


class Webhook:
    """A receiver of messages on this machine."""

    def __enter__(self) -> Webhook:
        self.messages: list[dict[str, str]] = []
        self.changed = Condition()
        messages, changed = self.messages, self.changed

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                with changed:
                    messages.append(json.loads(self.rfile.read(size)))
                    changed.notify_all()
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def subjects(self) -> list[str]:
        """Subjects of the messages about this test's jobs."""
        return [each["subject"] for each in self.messages if "told-" in each["subject"]]

    def await_message(self, subject: str) -> dict[str, str]:
        with self.changed:
            found = self.changed.wait_for(
                lambda: next((m for m in self.messages if m["subject"] == subject), None), 60
            )
        assert found is not None, (subject, self.messages)
        return found


@pytest.mark.long
def test_prefects_own_command_takes_the_file(project: Project) -> None:
    (project.root / "prefect.yaml").write_text(
        (ROOT / "prefect.yaml").read_text().replace("name: chunkmap}", f"name: {POOL}-eight}}")
    )
    project.write("eight")
    project.changes("eight", remove=True)
    project.changes("eight")
    access = project.world.settings.prefect.environment()
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "run"],
        cwd=project.root,
        env=project.world.variables(**access, PREFECT_HOME=str(project.root / "home")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = project.deployment("run")
    assert json.dumps(found["entrypoint"]) == '"pipeline.flows.deployments.run_job"'
    project.changes("eight", remove=True)
