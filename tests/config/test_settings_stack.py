"""What the embedded stack asks for goes to the embedded stack, and nowhere else."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.config.settings import explain, load_settings
from pipeline.masking import MASK
from pipeline.processes import start_time
from tests.support.forks import give

PASSWORD = "chunkmap:0123456789"
TLS = {"ca": "/stack/ca.pem", "cert": "/stack/client.pem", "key": "/stack/client-key.pem"}
USERS = {f"CHUNKMAP_DASK__TLS__{name.upper()}": f"/users/{name}.pem" for name in TLS}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a stack whose processes are this very one."""
    for name in list(os.environ):
        if name.startswith(("CHUNKMAP_", "AWS_", "PREFECT_API", "DASK_")):
            monkeypatch.delenv(name)
    pid, started = os.getpid(), start_time(os.getpid())
    addresses = {"prefect": "http://127.0.0.1:2/api", "dask": "tls://127.0.0.1:3"}
    services = {
        name: {"pid": pid, "started": started, "address": address}
        for name, address in addresses.items()
    }
    state = {"environment": "local", "services": services, "s3": {}}
    state |= {"prefect": {"auth_string": PASSWORD}, "tls": TLS}
    (tmp_path / ".chunkmap").mkdir()
    (tmp_path / ".chunkmap" / "stack.json").write_text(json.dumps(state), encoding="utf-8")
    return tmp_path


def older(project: Path) -> None:
    """Make it the stack of a version that asked for nothing."""
    file = project / ".chunkmap" / "stack.json"
    state = json.loads(file.read_text())
    del state["prefect"], state["tls"]
    state["services"]["dask"]["address"] = "tcp://127.0.0.1:3"
    file.write_text(json.dumps(state), encoding="utf-8")


def test_its_secrets_come_with_its_addresses(project: Path) -> None:
    settings = load_settings(cwd=project)
    assert settings.prefect.environment() == {
        "PREFECT_API_URL": "http://127.0.0.1:2/api",
        "PREFECT_API_AUTH_STRING": PASSWORD,
    }
    assert settings.dask.scheduler == "tls://127.0.0.1:3"
    assert settings.dask.tls.paths() == TLS
    shown = {key: value for key, value, _ in explain(settings)}
    assert shown["prefect.auth_string"] == MASK
    assert PASSWORD not in repr(settings)


def test_a_shell_gets_the_address_and_password_of_the_prefect_server(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    printed = give("env", "--prefect", cwd=project)
    assert printed.stderr == ""
    script = f"{printed.stdout}\necho $PREFECT_API_URL $PREFECT_API_AUTH_STRING $PREFECT_API_KEY"
    foreign = {"PREFECT_API_AUTH_STRING": "me:mine", "PREFECT_API_KEY": "cloud"}
    shell = subprocess.check_output(["sh", "-c", script], env=foreign, text=True)
    assert shell.split() == ["http://127.0.0.1:2/api", PASSWORD]
    (project / "conf").mkdir()
    (project / "conf" / "other.yaml").write_text("")
    printed = give("env", "--prefect", "--environment", "other", cwd=project)
    assert printed.returncode == 2 and "no Prefect server is set" in printed.stderr


def test_another_prefect_server_does_not_get_its_password(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    assert load_settings(cwd=project).prefect.auth_string is None
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:mine")
    assert load_settings(cwd=project).prefect.environment() == {
        "PREFECT_API_URL": "http://prefect:4200/api",
        "PREFECT_API_AUTH_STRING": "me:mine",
    }


def test_it_does_not_get_the_password_of_another_server(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:mine")
    asked_for = load_settings(cwd=project).prefect.environment()
    assert asked_for["PREFECT_API_AUTH_STRING"] == PASSWORD


def test_certificates_never_mix(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in USERS.items():
        monkeypatch.setenv(name, value)
    assert load_settings(cwd=project).dask.tls.paths() == TLS
    monkeypatch.setenv("CHUNKMAP_DASK__SCHEDULER", "tls://scheduler:8786")
    assert set(load_settings(cwd=project).dask.tls.paths().values()) == set(USERS.values())
    for name in USERS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CHUNKMAP_DASK__SCHEDULER", "tcp://scheduler:8786")
    assert load_settings(cwd=project).dask.tls.paths() == {}


def test_a_stack_of_an_older_version_is_reached_as_before(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(project)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:mine")
    for name, value in USERS.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(cwd=project)
    assert settings.prefect.environment() == {"PREFECT_API_URL": "http://127.0.0.1:2/api"}
    assert settings.dask.scheduler == "tcp://127.0.0.1:3"
    assert settings.dask.tls.paths() == {}
