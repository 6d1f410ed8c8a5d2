"""An S3 that the user brings: the cluster has none of its own, and reaches it outside."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from tests.compose.cluster import S3, Cluster, reserved_ports
from tests.compose.engine import Engine, wait_until
from tests.compose.images import Built
from tests.compose.jobs import put_small_objects, write_job

ROLES = ("driver", "worker")
SERVER = (
    *("mini", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", "-master.telemetry=false"),
    *("-s3.port=8333", "-s3.config=/etc/own/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    *("-webdav=false", "-admin.ui=false"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    made.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def own(engine: Engine, built: dict[str, Built], folder: Path) -> Iterator[S3]:
    """A server outside every network of the cluster, with an identity for each role."""
    people = [(role, f"OWN{role.upper()}", uuid.uuid4().hex) for role in ROLES]
    for role, key, secret in people:
        text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        (folder / f"s3-{role}-credentials").write_text(text, "utf-8")
    known = [
        {
            "name": role,
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        for role, key, secret in people
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": known}), "utf-8")
    pattern = "{{(index .IPAM.Config 0).Gateway}}"
    host = engine("network", "inspect", "bridge", "--format", pattern).strip()
    with reserved_ports(1) as ports:
        (port,) = ports
    name = f"own-s3-{uuid.uuid4().hex[:6]}"
    engine(
        *("run", "--detach", "--name", name, "--publish", f"{host}:{port}:8333"),
        *("--volume", f"{folder}:/etc/own:ro", "chunkmap-s3:local", *SERVER),
    )
    server = S3(f"http://{host}:{port}", people[0][1], people[0][2])

    def ready() -> bool:
        try:
            server.client().create_bucket(Bucket="demo")
        except (BotoCoreError, ClientError):
            return False
        return True

    try:
        assert wait_until(ready, 60), engine("logs", name, check=False)[-3000:]
        yield server
    finally:
        engine("rm", "--force", "--volumes", name)


@pytest.fixture(scope="module")
def outward(engine: Engine, own: S3, folder: Path) -> Iterator[Cluster]:
    """A cluster without S3, set as .env.example says; its files are given from another folder."""
    given = folder / "given.yml"
    secrets = {"secrets": {"volumes": [f"{folder}:/given:ro"]}}
    given.write_text(yaml.safe_dump({"services": secrets}), "utf-8")
    cluster = Cluster(engine, folder, more=(given,))
    cluster.variables |= {
        "S3_REPLICAS": "0",
        "S3_ENDPOINT": own.endpoint,
        "CLUSTER_INTERNAL": "false",
        "WORKER_MEMORY": "1g",
    }
    try:
        cluster.up()
        yield cluster
    finally:
        cluster("--profile", "*", "down", "--volumes", "--timeout", "20", check=False)


def test_a_job_reads_and_writes_the_users_s3(outward: Cluster, own: S3, folder: Path) -> None:
    assert outward.containers("s3") == []
    expected: pl.DataFrame = put_small_objects(own, "small", 8)
    job, output = write_job(folder, "small", "same")
    said = json.loads(outward.chunkmap("run", f"conf/jobs/{job}", "--json"))
    assert (said["state"], said["chunks"], said["failed"]) == ("done", 8, 0)
    assert own.read(output).sort("id").equals(expected)
    outward.chunkmap("verify", output)


def test_doctor_finds_nothing_to_mend(outward: Cluster) -> None:
    said = outward.chunkmap("cluster", "doctor", "--output", "s3://demo/out/doctor/")
    assert "S3, from workers: each may read, write, list and stage" in said
