"""The scripts of the containers, without containers."""

import http.server
import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster.local.seaweedfs import SERVICES
from tests.contracts.source import ROOT

DEPLOY = ROOT / "deploy"


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/ready" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("addresses", "is_healthy"),
    [
        (["http://127.0.0.1:{port}/api/ready"], True),
        (["http://127.0.0.1:{port}/other"], False),
        (["http://127.0.0.1:{port}"], False),
        (["tcp://127.0.0.1:{port}"], True),
        (["tcp://127.0.0.1:1"], False),
        (["tcp://127.0.0.1:{port}", "http://127.0.0.1:1/"], False),
    ],
)
def test_health_checks(port: int, addresses: list[str], is_healthy: bool) -> None:
    script = DEPLOY / "healthy.sh"
    given = [address.format(port=port) for address in addresses]
    done = subprocess.run(["bash", script, *given], capture_output=True, check=False, timeout=10)
    assert (done.returncode == 0) is is_healthy, done.stderr


def _entered(tmp_path: Path, command: str, **variables: str) -> str:
    (tmp_path / "auth").write_text("chunkmap:abc\n", "ascii")
    (tmp_path / "password").write_text("def", "ascii")
    script = DEPLOY / "entrypoint.sh"
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        ["sh", script, "sh", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.strip()


def test_secrets_become_variables(tmp_path: Path) -> None:
    files = {
        "PREFECT_AUTH_FILE": str(tmp_path / "auth"),
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"),
    }
    assert _entered(tmp_path, 'echo "$PREFECT_API_AUTH_STRING"', **files) == "chunkmap:abc"
    address = _entered(tmp_path, 'echo "$PREFECT_API_DATABASE_CONNECTION_URL"', **files)
    assert address == "postgresql+asyncpg://prefect:def@postgres:5432/prefect"
    assert _entered(tmp_path, 'echo "${PREFECT_MESSAGING_BROKER-none}"', **files) == "none"


def test_redis_is_used_when_it_is_named(tmp_path: Path) -> None:
    given = {"REDIS_HOST": "redis", "REDIS_PASSWORD_FILE": str(tmp_path / "password")}
    said = _entered(tmp_path, 'echo "$PREFECT_SERVER_DOCKET_URL"', **given)
    assert said == "redis://:def@redis:6379/0"


def test_variables_that_are_empty_are_not_set(tmp_path: Path) -> None:
    given = {"AWS_ENDPOINT_URL_S3": "", "AWS_REGION": "eu-central-1"}
    said = _entered(tmp_path, 'echo "${AWS_ENDPOINT_URL_S3-unset} $AWS_REGION"', **given)
    assert said == "unset eu-central-1"


def _make_secrets(tmp_path: Path, *arguments: str, **variables: str) -> dict[str, str]:
    given = tmp_path / "given"
    given.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SECRETS": str(tmp_path / "secrets"),
        "GIVEN": str(given),
        "CHUNKMAP_UID": str(os.getuid()),
        "SERVERS_GID": str(os.getgid()),
        **variables,
    }
    command = [sys.executable, str(DEPLOY / "make_secrets.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "secrets"
    found = {str(path.relative_to(made)): path for path in made.rglob("*") if path.is_file()}
    assert not [name for name, path in found.items() if path.stat().st_mode & 0o007 & ~0o004]
    texts = {name: path.read_text("utf-8") for name, path in found.items()}
    for name in ("prefect/auth", "postgres/password", "redis/password"):
        assert texts[name].rpartition(":")[2] not in done.stdout + done.stderr
    return texts


def test_secrets_are_made_once(tmp_path: Path) -> None:
    first = _make_secrets(tmp_path)
    assert first.keys() >= {
        "prefect/auth",
        "redis/redis.conf",
        "s3-server/s3.json",
        "tls-worker/key.pem",
    }
    toml = tomllib.loads(first["s3-server/security.toml"])
    assert toml["grpc"].keys() == {"ca", *SERVICES}
    files = {toml["grpc"]["ca"], *toml["grpc"]["master"].values()}
    assert {file.replace("/etc/seaweedfs", "s3-server") for file in files} <= first.keys()
    assert _make_secrets(tmp_path) == first
    renewed = _make_secrets(tmp_path, "--renew", "tls", "--renew", "s3")
    assert renewed["authority/ca.pem"] == first["authority/ca.pem"]
    for name in ("tls-worker/key.pem", "tls-client/cert.pem", "s3-worker/credentials"):
        assert renewed[name] != first[name]
    assert renewed["postgres/password"] == first["postgres/password"]


def test_a_given_secret_wins(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/postgres-password").write_text("a-long-password\n", "ascii")
    (tmp_path / "given/s3-worker-credentials").write_text("[default]\n", "ascii")
    found = _make_secrets(tmp_path, S3_REPLICAS="0")
    assert found["postgres/password"] == "a-long-password"
    assert found["s3-worker/credentials"] == "[default]\n"
    assert "s3-driver/credentials" not in found, "an S3 of the user's knows us otherwise"
    assert "s3-server/s3.json" not in found


def test_policies_are_of_the_buckets_that_are_named(tmp_path: Path) -> None:
    named = {"S3_BUCKETS": "lake, out", "S3_INPUTS": "", "S3_OUTPUTS": "out/daily/, out/one"}
    found = _make_secrets(tmp_path, **named, S3_TABLES="lake/rates/")
    server = json.loads(found["s3-server/s3.json"])
    assert [identity["name"] for identity in server["identities"]] == ["admin", "driver", "worker"]
    (worker,) = [policy for policy in server["policies"] if policy["name"] == "worker"]
    statements = {
        statement["Sid"]: statement for statement in json.loads(worker["content"])["Statement"]
    }
    arn = "arn:aws:s3:::"
    large = statements["StageLargeOutputs"]["Resource"]
    assert large == [f"{arn}out/daily/*/*.parquet", f"{arn}out/one/*.parquet"]
    staged = statements["StageAndRecord"]["Resource"]
    assert f"{arn}out/daily/*.chunkmap/staged/*" in staged
    assert f"{arn}out/one.chunkmap/runs/*/completions/*" in staged
    # Where no inputs are named, they may be anywhere; that is no reason to forbid writing anywhere.
    assert statements["ReadInputs"]["Resource"] == [
        f"{arn}lake/*",
        f"{arn}out/*",
        f"{arn}lake/rates/*",
    ]
    assert statements["NeverInputs"]["Resource"] == [f"{arn}lake/rates/*"]
    assert statements["FindStateAndTables"]["Resource"] == [f"{arn}lake", f"{arn}out"]
    prefixes = statements["FindStateAndTables"]["Condition"]["StringLike"]["s3:prefix"]
    assert prefixes == [
        "daily/*.chunkmap/runs/*",
        "one.chunkmap/runs/*",
        "daily/*.chunkmap/doctor/*",
        "one.chunkmap/doctor/*",
        "rates/*",
    ]
    words = ("BUCKET", "INPUT", "OUTPUT", "TABLE", "KEY")
    assert not [word for word in words if word in worker["content"]]


@pytest.mark.parametrize("name", ["worker", "driver"])
def test_workers_may_not_delete_and_drivers_may(name: str) -> None:
    policy = json.loads((DEPLOY / "policies" / f"{name}.json").read_text("utf-8"))
    allowed = {
        action
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
        for action in statement["Action"]
    }
    assert ("s3:DeleteObject" in allowed) is (name == "driver")
    assert not [action for action in allowed if "*" in action]
