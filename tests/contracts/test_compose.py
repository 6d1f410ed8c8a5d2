"""The compose file, without an engine: what it promises about every container."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.settings import load_settings
from tests.contracts.source import ROOT

FILE = ROOT / "docker-compose.dask.yml"
EXAMPLE = ROOT / ".env.example"
VARIABLE = re.compile(r"\$\{(\w+)(?::?-((?:[^{}]|\{[^{}]*\})*))?\}")
JOBS = {"secrets", "prefect-init", "s3-init", "driver"}
"""Services that end by themselves."""
PROFILES = {
    "redis": "redis",
    "prefect-services": "redis",
    "prometheus": "monitoring",
    "grafana": "monitoring",
    "driver": "driver",
}
SECRET = re.compile(r"password|secret|token|auth_string|api_key", re.IGNORECASE)


def _interpolated(text: str) -> str:
    """The file as it is when no variable is set."""
    for _ in range(3):  # a default may hold another
        text = VARIABLE.sub(lambda found: found[2] or "", text)
    return text


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_interpolated(FILE.read_text("utf-8")))
    return found


SERVICES: dict[str, dict[str, Any]] = _compose()["services"]


def _named(service: str) -> Iterator[tuple[str, str]]:
    """The volumes of a service, as (volume or folder, where)."""
    for mount in SERVICES[service].get("volumes", []):
        source, where, *_ = mount.split(":")
        yield source, where


def test_it_is_as_the_specification_says(tmp_path: Path) -> None:
    expanded = tmp_path / "compose.yaml"
    compose = {name: part for name, part in _compose().items() if not name.startswith("x-")}
    for service in compose["services"].values():
        deploy = service["deploy"]
        if "replicas" in deploy:
            deploy["replicas"] = int(deploy["replicas"])
    expanded.write_text(yaml.safe_dump(compose), "utf-8")
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", str(expanded)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_compose_itself_takes_it() -> None:
    docker = shutil.which("docker")
    has_compose = (
        docker
        and not subprocess.run(
            [docker, "compose", "version"], capture_output=True, check=False
        ).returncode
    )
    if not has_compose or docker is None:
        pytest.skip("docker compose is not installed; the specification's schema has been asked")
    command = [docker, "compose", "--file", str(FILE), "--profile", "*", "config", "--quiet"]
    # `make test JOBS=3` hands its variable down, and in the compose file it is a folder.
    variables = {name: value for name, value in os.environ.items() if name != "JOBS"}
    checked = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_what_there_is() -> None:
    assert SERVICES.keys() >= {
        "dask-scheduler",
        "dask-worker",
        "postgres",
        "prefect-server",
        "prefect-worker",
        "s3",
    }
    profiles = {
        name: service["profiles"][0] for name, service in SERVICES.items() if "profiles" in service
    }
    assert profiles == PROFILES


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_nothing_special(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "devices", "userns_mode"} & service.keys()
    if name == "secrets":  # it gives files to the users of the others
        assert set(service["cap_add"]) == {"CHOWN", "DAC_OVERRIDE", "FOWNER"}
        assert service["network_mode"] == "none"
    else:
        assert "cap_add" not in service
        assert service.get("user") not in ("0", "0:0", "root")
        assert service["networks"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_limits(name: str) -> None:
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert re.fullmatch(r"\d+[mg]", limits["memory"])
    assert 0 < limits["pids"] <= 512
    assert SERVICES[name]["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - JOBS))
def test_a_server_is_watched_and_stops_well(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert check["test"] and check["interval"] and check["retries"] and check["start_period"]
    assert int(service["stop_grace_period"].rstrip("s")) >= 30


@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_job_is_not_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_container_needs_is_awaited(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if needed in JOBS else "service_healthy"
        assert how["condition"] == wanted, needed
        # Compose starts what is not wanted otherwise: a profile's, or an S3 that is elsewhere.
        assert (how.get("required") is False) == (needed in {"redis", "s3"}), needed


def test_there_may_be_any_number_of_workers() -> None:
    for service in SERVICES.values():
        assert "container_name" not in service
    assert not {"ports", "hostname"} & SERVICES["dask-worker"].keys()


@pytest.mark.parametrize("name", [name for name in SERVICES if "ports" in SERVICES[name]])
def test_ports_are_published_on_the_loopback_address_alone(name: str) -> None:
    for port in SERVICES[name]["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
        # Dask's own, PostgreSQL's and Redis's are nobody's business outside.
        assert port.rpartition(":")[2] in {"4200", "8787", "8333", "9090", "3000"}


def test_networks_are_apart() -> None:
    networks = _compose()["networks"]
    assert networks["database"]["internal"] is True
    assert networks["cluster"]["internal"] is True
    on_database = {name for name in SERVICES if "database" in SERVICES[name].get("networks", [])}
    assert on_database == {"postgres", "redis", "prefect-server", "prefect-services"}
    assert networks["prefect"]["internal"] is True
    assert SERVICES["dask-worker"]["networks"] == ["cluster"]


@pytest.mark.parametrize("name", ["dask-worker", "dask-scheduler"])
def test_what_runs_code_that_it_is_sent_has_no_way_to_prefect(name: str) -> None:
    service = SERVICES[name]
    assert not {*service["networks"]} & {*SERVICES["prefect-server"]["networks"]}
    assert "secret-prefect" not in dict(_named(name))
    assert not {"PREFECT_API_URL", "PREFECT_AUTH_FILE"} & service["environment"].keys()
    assert "prefect-server" not in service["depends_on"]
    # Without an address, Prefect would start a server of its own in each process.
    assert service["environment"]["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"


@pytest.mark.parametrize("name", ["driver", "prefect-worker", "prefect-init"])
def test_what_runs_flows_has_a_way_to_prefect(name: str) -> None:
    service = SERVICES[name]
    assert "prefect" in service["networks"]
    assert service["environment"]["PREFECT_AUTH_FILE"].startswith("/etc/chunkmap/prefect/")


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_versions(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    if image.startswith("chunkmap"):
        assert tag == "local", "built here; its version is in pyproject.toml alone"
        assert SERVICES[name]["pull_policy"] == "never"
    else:
        assert re.match(r"v?\d+\.\d+", tag), f"{image} without a version"


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_a_variable(name: str) -> None:
    service = SERVICES[name]
    for variable, value in service.get("environment", {}).items():
        is_file = variable.endswith("_FILE") and str(value).startswith("/etc/chunkmap/")
        assert is_file or not SECRET.search(variable), variable
        assert variable not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert not SECRET.search(" ".join(map(str, service.get("command", []))).split("/etc/")[0])


def test_each_has_the_secrets_that_it_needs() -> None:
    held = {
        name: {source for source, _ in _named(name) if source.startswith(("secret-", "tls-"))}
        for name in SERVICES
        if name != "secrets"
    }
    driver = {"secret-prefect", "secret-s3-driver", "tls-client"}
    server = {"secret-prefect", "secret-postgres", "secret-redis"}
    assert {name: volumes for name, volumes in held.items() if volumes} == {
        "dask-scheduler": {"tls-scheduler"},
        "dask-worker": {"secret-s3-worker", "tls-worker"},
        "driver": driver,
        "postgres": {"secret-postgres"},
        "prefect-init": {"secret-prefect"},
        "prefect-server": server,
        "prefect-services": server,
        "prefect-worker": driver,
        "redis": {"secret-redis"},
        "s3": {"secret-s3-server"},
        "s3-init": {"secret-s3-admin"},
    }
    assert [name for name in SERVICES if "authority" in dict(_named(name))] == ["secrets"]


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"secrets"}))
def test_secrets_and_files_of_ours_cannot_be_written(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        if mount.startswith(("secret-", "tls-", "./")):
            assert mount.endswith(":ro"), mount


def test_workers_have_time_to_hand_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = load_settings("compose")
    worker = SERVICES["dask-worker"]
    assert worker["stop_signal"] == "SIGTERM"
    assert settings.dask.stop_seconds + 5 <= int(worker["stop_grace_period"].rstrip("s"))


def test_prefect_is_closed() -> None:
    variables = SERVICES["prefect-server"]["environment"]
    assert variables["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    origins = variables["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == ["http://127.0.0.1:4200", "http://localhost:4200"]
    for name in ("dask-worker", "prefect-worker", "driver"):
        assert SERVICES[name]["environment"]["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"


def _example() -> dict[str, str]:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def test_every_variable_is_explained_with_its_default() -> None:
    used: dict[str, set[str]] = {}
    for name, default in VARIABLE.findall(FILE.read_text("utf-8")):
        used.setdefault(name, set()).add(default)
    example = _example()
    assert example.keys() - {"COMPOSE_PROFILES"} == used.keys()  # which Compose itself reads
    differing = {
        name: (value, used[name])
        for name, value in example.items()
        # PREFECT_PORTS falls back to another variable.
        if used.get(name, {value}) != {value} and name != "PREFECT_PORTS"
    }
    assert not differing
    assert not any(SECRET.search(name) for name in example)
