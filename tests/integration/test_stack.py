"""The embedded stack itself: started twice at once, looked at, killed, repaired and stopped.

The shared one is looked at; what kills and restarts one has a stack of its own.
"""

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from distributed import Client

from pipeline.cluster import local
from pipeline.cluster.local import StackState, processes
from pipeline.cluster.local.start import TITLES
from pipeline.cluster.local.state import StateFolder
from pipeline.cluster.resources import MALLOC
from pipeline.cluster.tls import security_of
from pipeline.config.settings import Settings, load_settings
from pipeline.storage import open_storage
from tests.integration.world import UPS, World

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Running:
    """A stack that runs."""

    folder: StateFolder
    settings: Settings

    @property
    def state(self) -> StackState:
        state = self.folder.load()
        assert state is not None
        return state

    def start(self, said: list[str]) -> StackState:
        """Start what does not run."""
        return local.up(self.settings, said.append)

    def status(self) -> list[str]:
        return [service.state for service in local.status(self.settings)]


@pytest.fixture(scope="module")
def running(world: World) -> Running:
    """The shared stack, which two commands started at once."""
    return Running(StateFolder(world.root / ".chunkmap"), world.settings)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A stack of these tests alone."""
    folder = StateFolder(tmp_path_factory.mktemp("stack") / "state")
    settings = Settings.model_validate({"state_dir": folder.root, "dask": {"workers": 1}})
    try:
        local.up(settings, lambda line: None)
        yield Running(folder, load_settings(overrides={"state_dir": str(folder.root)}))
    finally:
        local.down(settings, lambda line: None)
        assert not processes.marked(folder.marker())


def pids(state: StackState) -> dict[str, int]:
    return {name: service.pid for name, service in state.services.items()}


def addresses(state: StackState) -> dict[str, str]:
    return {name: service.address for name, service in state.services.items()}


def test_two_ups_at_once_start_one_stack(running: Running, world: World) -> None:
    first, second = json.loads((world.root / UPS).read_text())
    assert first == second
    names = [service["name"] for service in first["services"]]
    assert names == list(pids(running.state)) == ["s3", "prefect", "dask"]
    assert {s["name"]: s["pid"] for s in first["services"]} == pids(running.state)
    assert running.status() == ["running"] * 3


def test_another_up_says_what_runs_and_changes_nothing(running: Running) -> None:
    said: list[str] = []
    before = pids(running.state)
    assert pids(running.start(said)) == before
    assert len(said) == 3
    assert all(line.endswith("runs already") for line in said)


def test_nothing_listens_beyond_this_machine(running: Running) -> None:
    listening = [
        connection.laddr
        for process in processes.marked(running.folder.marker())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 10
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_settings_find_the_stack(running: Running) -> None:
    settings = running.settings
    services = running.state.services
    assert settings.s3.endpoint_url == services["s3"].address
    assert settings.prefect.api_url == services["prefect"].address
    assert settings.dask.scheduler == services["dask"].address


def test_workers_are_told_the_addresses_and_have_imported_what_is_slow(running: Running) -> None:
    def look() -> tuple[dict[str, str], bool]:
        import os
        import sys

        return dict(os.environ), {"polars", "prefect_dask"} <= set(sys.modules)

    settings = running.settings
    security = security_of(settings.dask.tls)
    with Client(settings.dask.scheduler, security=security, set_as_default=False) as client:
        found = list(client.run(look).values())
    assert found
    for variables, imported in found:
        assert imported
        assert "PREFECT_API_URL" not in variables
        assert variables["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"
        assert int(variables["POLARS_MAX_THREADS"]) >= 1
        # Dask has a value of its own for it, which ours must win over.
        assert variables["MALLOC_TRIM_THRESHOLD_"] == MALLOC["MALLOC_TRIM_THRESHOLD_"]
        assert settings.s3.environment().items() <= variables.items()


def test_the_secrets_are_in_no_command_line_and_no_log(running: Running) -> None:
    root = running.folder.root
    signing = (root / "seaweedfs/security.toml").read_text().splitlines()
    secrets = {
        running.state.s3["secret_access_key"],
        (root / "prefect-password").read_text().strip().partition(":")[2],
        *(line.split('"')[1] for line in signing if re.fullmatch('key = "[0-9a-f]{64}"', line)),
    }
    assert len(secrets) == 6
    lines = [" ".join(process.cmdline()) for process in processes.marked(running.folder.marker())]
    logs = [path.read_text(encoding="utf-8") for path in running.folder.logs.glob("*.log")]
    assert len(logs) >= 3
    assert not [secret for secret in secrets for text in lines + logs if secret in text]


def test_only_this_user_may_read_the_secrets(running: Running) -> None:
    root = running.folder.root
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    names = ["stack.json", "s3.json", "prefect-password", "seaweedfs/security.toml"]
    names += [str(path.relative_to(root)) for path in root.glob("*/*key.pem")]
    assert len(names) == 4 + 1 + 2 * 4
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in names} == {0o600}


def test_prefect_keeps_to_the_state_folder(running: Running) -> None:
    server = psutil.Process(running.state.services["prefect"].pid)
    home = running.folder.root / "prefect"
    assert (home / "prefect.db").exists()
    databases = [file.path for file in server.open_files() if file.path.endswith(".db")]
    assert databases
    assert all(Path(path).is_relative_to(home) for path in databases)


def test_the_disk_space_of_deleted_objects_is_returned(running: Running) -> None:
    storage = open_storage(running.settings)
    root, uri = running.folder.root, "s3://demo/large"
    size = 20 << 20
    storage.put(uri, os.urandom(size))
    storage.delete(uri)
    before = local.stored_bytes(root)
    assert before > size
    # The server deletes the parts of a large object a moment after it has answered.
    deadline = time.monotonic() + 60
    while local.stored_bytes(root) > before - size // 2 and time.monotonic() < deadline:
        local.reclaim_space(running.settings)
    assert local.stored_bytes(root) < before - size // 2


@pytest.mark.long
def test_a_stack_of_an_older_version_is_told_and_started_again(own: Running) -> None:
    """As `up` of an older version wrote it: nothing but S3's credentials."""
    before = own.state
    text = json.loads(own.folder.file.read_text())
    for service in text["services"].values():
        del service["secured"], service["password_file"]
    del text["prefect"], text["tls"]
    own.folder.file.write_text(json.dumps(text))
    assert set(own.status()) == {"outdated"}

    said: list[str] = []
    after = own.start(said)
    outdated = [line for line in said if "an older version started it" in line]
    assert [line.partition(":")[0] for line in outdated] == list(TITLES.values())
    assert set(pids(after).values()).isdisjoint(pids(before).values())
    assert addresses(after) == addresses(before)
    assert set(own.status()) == {"running"}


@pytest.mark.long
def test_a_killed_stack_is_repaired_with_its_data_ports_and_credentials(own: Running) -> None:
    open_storage(own.settings).put("s3://demo/kept", b"kept")
    before = own.start([])
    killed = [psutil.Process(service.pid) for service in before.services.values()]
    for process in killed:
        process.kill()
    assert not psutil.wait_procs(killed, timeout=10)[1]
    assert set(own.status()) == {"died"}

    after = local.up(Settings.model_validate({"state_dir": own.folder.root}), lambda line: None)
    assert set(pids(after).values()).isdisjoint(pids(before).values())
    assert addresses(after) == addresses(before)
    assert after.s3 == before.s3
    assert open_storage(own.settings).get("s3://demo/kept").data == b"kept"
