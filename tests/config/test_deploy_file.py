"""What prefect.yaml and the file of an environment say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from prefect.cli.deploy._models import DeploymentConfig
from rich.console import Console

from pipeline.config.deploy_file import (
    Deployed,
    Override,
    RunLimit,
    Schedule,
    environments,
    read_deployed,
)
from pipeline.config.pipeline_file import parse_pipeline, read_pipeline
from pipeline.errors import DeployFileError, UsageError
from tests.contracts.source import ROOT

PROJECT: dict[str, Any] = {
    "name": "shop",
    "deployments": [
        {
            "name": "run",
            "entrypoint": "pipeline.flows.deployments.run_job",
            "tags": ["chunkmap"],
            "work_pool": {"name": "any", "job_variables": {"env": {"A": "1", "B": "1"}}},
        },
        {"name": "load", "entrypoint": "pipeline.flows.load.load_flow"},
        {"name": "pipeline", "entrypoint": "pipeline.flows.pipeline.run_pipeline"},
    ],
}
VARIABLES = {"PWD": "/here", "TOKEN": "hush"}


def write(folder: Path, environment: dict[str, Any], project: dict[str, Any] = PROJECT) -> None:
    (folder / "conf" / "deploy").mkdir(parents=True, exist_ok=True)
    (folder / "prefect.yaml").write_text(yaml.safe_dump(project))
    (folder / "conf" / "deploy" / "prod.yaml").write_text(yaml.safe_dump(environment))


def read(folder: Path, environment: dict[str, Any], **more: Any) -> Deployed:
    write(folder, {"work_pool": {"name": "prod"}, **environment}, **more)
    return read_deployed(folder, "prod", VARIABLES, "c0ffee")


def test_an_environment_is_put_over_prefect_yaml(tmp_path: Path) -> None:
    deployed = read(
        tmp_path,
        {
            "suffix": "-prod",
            "settings": "compose",
            "tags": ["prod"],
            "job_variables": {"working_dir": "{{ $PWD }}", "env": {"B": "2"}},
            "secrets": {"shop-token": {"env": "TOKEN"}},
            "deployments": {
                "load": {"enabled": False},
                "run": {"concurrency_limit": 3, "job_variables": {"env": {"C": "3"}}},
            },
        },
    )
    [run, _] = deployed.deployments
    assert (run.name, run.version, run.tags) == ("run-prod", "c0ffee", ("chunkmap", "prod"))
    assert run.limit == RunLimit(limit=3, collision_strategy="ENQUEUE")
    assert run.job_variables == {
        "working_dir": "/here",
        "env": {"A": "1", "B": "2", "C": "3", "CHUNKMAP_ENVIRONMENT": "compose"},
    }
    assert deployed.secret(deployed.secrets["shop-token"]) == "hush"
    assert "hush" not in repr(deployed)


def test_a_job_becomes_a_deployment_with_its_text(tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text(json.dumps(ORDERS))
    timing = {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}
    new = {"like": "run", "job": "orders.yaml", "schedule": timing, "parameters": {"x": 1}}
    deployed = read(tmp_path, {"deployments": {"orders": new}})
    assert [each.key for each in deployed.deployments] == ["run", "load", "pipeline", "orders"]
    [orders] = deployed.only("orders").deployments
    assert yaml.safe_load(orders.parameters["job"]) == ORDERS
    assert orders.parameters["x"] == 1
    assert orders.schedule == Schedule(cron="0 2 * * *", timezone="Europe/Berlin")


DAILY = """\
name: daily
state: s3://shop/pipelines/daily/
parameters: {date: {type: date, default: yesterday}, country: string}
pipeline:
  - map: totals.yaml
    set: {params.country: "{{ country }}"}
  - {load: {name: warehouse, input: {uri: s3://shop/totals/}, into: {uri: w.duckdb, table: t}}}
"""
TOTALS = """\
name: totals
input: {uri: s3://shop/orders/, filter: [[day, "==", "{{ date }}"]]}
transform: examples.totals:totals
output: {uri: s3://shop/totals/, mode: overwrite-partitions}
"""


def test_a_pipeline_becomes_a_deployment_with_the_files_of_its_stages(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "daily.yaml").write_text(DAILY)
    (tmp_path / "files" / "totals.yaml").write_text(TOTALS)
    daily = {
        "like": "pipeline",
        "pipeline": "files/daily.yaml",
        "schedule": {"cron": "0 5 * * *"},
        "parameters": {"parameters": {"country": "DE"}},
    }
    deployed = read(tmp_path, {"deployments": {"daily": daily}})
    [deployment] = deployed.only("daily").deployments
    assert deployment.parameters["parameters"] == {"country": "DE"}
    # Where the files are not, it is the same pipeline: same id, same definitions.
    there = parse_pipeline(deployment.parameters["file"]).resolve({"country": "DE"})
    here = read_pipeline(tmp_path / "files" / "daily.yaml").resolve({"country": "DE"})
    assert there.run == here.run
    assert [each.definition for each in there.stages] == [each.definition for each in here.stages]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "files/daily.yaml: parameter country has no value"),
        ({"land": "DE"}, "has no parameter 'land'"),
        ({"country": "DE", "date": "someday"}, "parameter date: 'someday' is not a date"),
    ],
)
def test_parameters_of_scheduled_pipelines_are_checked(
    tmp_path: Path, given: dict[str, str], message: str
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "daily.yaml").write_text(DAILY)
    (tmp_path / "files" / "totals.yaml").write_text(TOTALS)
    daily = {
        "like": "pipeline",
        "pipeline": "files/daily.yaml",
        "parameters": {"parameters": given},
    }
    # By hand, a run can still be given what it needs.
    read(tmp_path, {"deployments": {"daily": daily}})
    with pytest.raises(DeployFileError) as error:
        read(tmp_path, {"deployments": {"daily": {**daily, "schedule": {"cron": "0 5 * * *"}}}})
    assert message in str(error.value)
    assert str(error.value).startswith("deployment daily: ")


ORDERS = {
    "name": "orders",
    "input": {"uri": "s3://shop/orders/"},
    "transform": "examples.orders:euros",
    "output": {"uri": "s3://shop/euros/"},
}


@pytest.mark.parametrize(
    ("expected", "parameters", "schedule"),
    [
        (
            {"expect_done_by": "06:05"},
            {"cron": "0 2 * * 1-5", "timezone": "Europe/Berlin"},
            Schedule(cron="5 6 * * 1-5", timezone="Europe/Berlin", active=False),
        ),
        (
            {"expect_within": "2h"},
            {"within": 7200},
            Schedule(cron="0 2 * * 1-5", timezone="Europe/Berlin", active=False),
        ),
    ],
)
def test_a_deadline_is_a_deployment_of_its_own(
    tmp_path: Path, expected: dict[str, str], parameters: dict[str, Any], schedule: Schedule
) -> None:
    (tmp_path / "orders.yaml").write_text(json.dumps(ORDERS))
    timing = {
        "cron": "0 2 * * 1-5",
        "timezone": "Europe/Berlin",
        "parameters": {"lookback": "3d"},
        "active": False,
    }
    new = {"like": "run", "job": "orders.yaml", "schedule": timing, **expected}
    deployed = read(tmp_path, {"suffix": "-prod", "deployments": {"orders": new}})
    orders, deadline = deployed.only("orders").deployments
    assert deadline.name == "orders-deadline-prod"
    assert deadline.parameters == {"job": orders.parameters["job"], **parameters}
    assert deadline.schedule == schedule
    assert deadline.limit is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"work_pol": {}}, "prod.yaml:1: unknown key `work_pol`; did you mean `work_pool`?"),
        ({"deployments": {"runn": {}}}, "prefect.yaml has no deployment 'runn'"),
        ({"deployments": {"run": {"like": "load"}}}, "`like` is for new names"),
        ({"deployments": {"run": {"queue": "fast"}}}, "the work pool prod has no queue 'fast'"),
        ({"deployments": {"run": {"schedule": {}}}}, "exactly one of `cron`, `interval`"),
        ({"deployments": {"run": {"job": "a", "load": "b"}}}, "set one of `job`, `ingest`, `load`"),
        ({"deployments": {"run": {"job": "none.yaml"}}}, "none.yaml does not exist"),
        ({"tags": ["{{ $NOWHERE }}"]}, "the variable NOWHERE is not set"),
        ({"work_pool": {"name": "p", "type": "docker"}}, "type docker needs `job_template`"),
        ({"results": "/tmp/here"}, "`results`"),
        ({"deployments": {"run": {"expect_within": "2h"}}}, "needs a `job` and a `schedule`"),
        ({"deployments": {"run": {"expect_within": "1s"}}}, "`deployments.run.expect_within`"),
        ({"deployments": {"run": {"schedule": {"interval": "1s"}}}}, "schedule.interval`"),
        ({"deployments": {"run": {"resume": True}}}, "the sweep resumes runs and backfills"),
        (
            {"deployments": {"run": {"expect_within": "2h", "expect_done_by": "06:00"}}},
            "one of `expect_done_by` and `expect_within`",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, environment: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, environment)
    assert message in str(error.value)


def test_intervals_are_seconds_or_spans(tmp_path: Path) -> None:
    for written, seconds in ((3600, 3600.0), ("10m", 600.0)):
        deployed = read(tmp_path, {"deployments": {"run": {"schedule": {"interval": written}}}})
        assert deployed.deployments[0].schedule == Schedule(interval=seconds)


def test_secrets_are_looked_up_when_they_are_needed(tmp_path: Path) -> None:
    deployed = read(tmp_path, {"secrets": {"a": {"env": "NOWHERE"}}})
    with pytest.raises(DeployFileError, match=r"prod\.yaml: the variable NOWHERE is not set"):
        deployed.secret(deployed.secrets["a"])


def test_two_schedules_of_one_deployment_are_refused(tmp_path: Path) -> None:
    schedules = [{"cron": "0 2 * * *"}, {"cron": "0 3 * * *"}]
    project = {"deployments": [{**PROJECT["deployments"][0], "schedules": schedules}]}
    with pytest.raises(DeployFileError, match="2 schedules"):
        read(tmp_path, {}, project=project)


def test_what_is_no_environment(tmp_path: Path) -> None:
    write(tmp_path, {"work_pool": {"name": "prod"}})
    with pytest.raises(DeployFileError, match="no environment 'prd'") as error:
        read_deployed(tmp_path, "prd", {})
    assert error.value.hint == "environments: prod"
    with pytest.raises(DeployFileError, match="is no name"):
        read_deployed(tmp_path, "../prod", {})


def test_a_template_is_one(tmp_path: Path) -> None:
    (tmp_path / "template.json").write_text('{"variables": {}}')
    pool = {"name": "prod", "type": "docker", "job_template": "template.json"}
    with pytest.raises(DeployFileError, match="not a base job template"):
        read(tmp_path, {"work_pool": pool})


@pytest.mark.parametrize("name", environments(ROOT))
def test_the_environments_of_the_repository(name: str) -> None:
    deployed = read_deployed(ROOT, name, {"PWD": "/here"})
    names = [each.key for each in deployed.deployments]
    assert names[:5] == ["run", "backfill", "windows", "ingest", "load"]
    assert names[5:7] == ["pipeline", "sweep"]
    if name != "dev":
        # Code comes with the image, never from a folder that only one machine has.
        assert all(each.job_variables["working_dir"] == "/app" for each in deployed.deployments)


def test_prefects_own_command_reads_the_file() -> None:
    """As `prefect deploy --all` does: with each field where Prefect's own model has it."""
    configs, actions = _load_deploy_configs_and_actions(ROOT / "prefect.yaml", console=Console())
    ours = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert [each["name"] for each in configs] == [each["name"] for each in ours["deployments"]]
    for theirs, each in zip(configs, ours["deployments"], strict=True):
        assert theirs["entrypoint"] == each["entrypoint"]
        assert theirs["work_pool"]["name"] == each["work_pool"]["name"]
        assert each.keys() <= DeploymentConfig.model_fields.keys(), "Prefect would ignore it"
    assert actions["pull"] == []


def test_overrides_replace_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"work_pool": {"name": "p"}, "deployments": {"run": {"queue": "default"}}})
    more = {"run": Override(description="another")}
    deployed = read_deployed(tmp_path, "prod", {}, None, more)
    assert [(each.description, each.queue) for each in deployed.deployments[:1]] == [
        ("another", None)
    ]


def test_runs_of_windows_and_after_objects_follow_each_other(tmp_path: Path) -> None:
    project = {"deployments": [{"name": "windows", "entrypoint": "pipeline.flows.a"}]}
    (tmp_path / "orders.yaml").write_text(json.dumps(ORDERS))
    job = {"like": "windows", "job": "orders.yaml"}
    given = {"a": job, "b": {**job, "on_objects": True}, "c": {**job, "concurrency_limit": 3}}
    deployed = read(tmp_path, {"deployments": given}, project=project)
    limits = {each.key: each.limit and each.limit.limit for each in deployed.deployments}
    # That of prefect.yaml itself takes any job.
    assert limits == {"windows": None, "a": 1, "b": 1, "c": 3}
    assert deployed.only_notified == ["b"]


SWEPT = {
    "deployments": [
        {"name": name, "entrypoint": f"pipeline.flows.{name}"}
        for name in ("run", "backfill", "sweep")
    ]
}


def test_the_sweep_looks_at_the_outputs_of_all_jobs(tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text(json.dumps(ORDERS))
    other = {**ORDERS, "name": "other", "output": {"uri": "s3://shop/other/"}}
    (tmp_path / "other.yaml").write_text(json.dumps(other))
    environment = {
        "suffix": "-prod",
        "sweep": {"every": "5m", "outputs": ["s3://shop/by-hand/"]},
        "deployments": {
            "orders": {"like": "run", "job": "orders.yaml", "resume": True},
            "other": {"like": "run", "job": "other.yaml"},
        },
    }
    deployed = read(tmp_path, environment, project=SWEPT)
    [sweep] = deployed.only("sweep").deployments
    assert sweep.schedule == Schedule(interval=300)
    assert sweep.limit == RunLimit(limit=1, collision_strategy="CANCEL_NEW")
    assert sweep.parameters == {
        "outputs": ["s3://shop/by-hand/", "s3://shop/euros/", "s3://shop/other/"],
        "resume": ["s3://shop/euros/"],
        "suffix": "-prod",
        "resume_backfills": False,
    }


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"deployments": {"orders": {"like": "run", "resume": True}}}, "`resume` needs a `job`"),
        (
            {"deployments": {"orders": {"like": "run", "job": "orders.yaml", "resume": True}}},
            "prod.yaml: `resume` needs a `sweep`",
        ),
        (
            {"sweep": {}, "watchdog": True, "deployments": {"backfill": {"enabled": False}}},
            "`sweep` needs the deployment 'backfill'",
        ),
        (
            {"sweep": {}, "deployments": {"sweep": {"enabled": False}}},
            "`sweep` needs the deployment 'sweep'",
        ),
    ],
)
def test_a_sweep_needs_what_resumes(
    tmp_path: Path, environment: dict[str, Any], message: str
) -> None:
    (tmp_path / "orders.yaml").write_text(json.dumps(ORDERS))
    with pytest.raises(DeployFileError) as error:
        read(tmp_path, environment, project=SWEPT)
    assert message in str(error.value)
