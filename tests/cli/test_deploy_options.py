"""What `chunkmap deploy` refuses before it asks a server, with what to do instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.cli.deploy import deploy
from pipeline.config.deploy_file import read_deployed
from pipeline.config.job import load_job
from pipeline.errors import JobError, UsageError
from tests.cli.test_hints import JOB
from tests.cli.test_ingest import FILE

LOAD = "{name: orders, input: {uri: s3://shop/out/}, into: {uri: shop.duckdb, table: orders}}"
PROJECT = {
    "name": "shop",
    "deployments": [
        {"name": kind, "entrypoint": f"pipeline.flows.{kind}.{kind}_flow"}
        for kind in ("ingest", "load")
    ],
}
CRON = {"cron": "0 2 * * *"}


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(json.dumps(JOB))
    (tmp_path / "ingest.yaml").write_text(FILE.format(url="http://127.0.0.1:9"))
    (tmp_path / "load.yaml").write_text(LOAD)
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(PROJECT))
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    return tmp_path


def refused(what: str, schedule: dict[str, str], *, remove: bool = False) -> UsageError:
    with pytest.raises(UsageError) as caught:
        deploy(
            what,
            None,
            schedule,
            lookback=None,
            params=(),
            to=None,
            dry_run=True,
            adopt=False,
            remove=remove,
            as_json=False,
        )
    return caught.value


@pytest.mark.parametrize("kind", ["ingest", "load"])
def test_files_that_are_deployed_by_an_environment_alone(kind: str, shop: Path) -> None:
    """The hint is what the environment's file then has."""
    error = refused(f"{kind}.yaml", CRON)
    assert f"{kind}.yaml is a file of the kind {kind}" in str(error)
    added = str(error.hint).partition("deployments: ")[2].partition("; or")[0]
    environment = {"work_pool": {"name": "dev"}, "deployments": yaml.safe_load(added)}
    (shop / "conf" / "deploy" / "dev.yaml").write_text(yaml.safe_dump(environment))
    *_, deployed = read_deployed(shop, "dev", {}).deployments
    assert (deployed.key, deployed.schedule and deployed.schedule.cron) == ("NAME", "0 2 * * *")


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"timezone": "Europe/Berlin"}, "--timezone needs one of --cron, --interval and --rrule"),
        ({**CRON, "interval": "1h"}, "--cron, --interval and --rrule exclude each other"),
    ],
)
def test_a_schedule_is_one(schedule: dict[str, str], message: str) -> None:
    error = refused("job.yaml", schedule)
    assert message in str(error) and '--cron "0 2 * * *"' in str(error.hint)


@pytest.mark.parametrize("what", ["job.yaml", "dev"])
def test_what_is_removed_has_no_schedule(what: str) -> None:
    error = refused(what, CRON, remove=True)
    assert str(error) == "--remove and --cron exclude each other: use one of them"


@pytest.mark.parametrize("kind", ["ingest", "load"])
def test_another_file_is_not_read_as_a_job(kind: str) -> None:
    with pytest.raises(JobError, match=rf"this is an? {kind} file, not a job") as caught:
        load_job(f"{kind}.yaml")
    assert caught.value.hint == f"chunkmap {kind} {kind}.yaml"
