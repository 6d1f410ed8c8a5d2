"""Starting and stopping processes, with ones that cost nothing."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster.local import credentials, down, processes, services, status, up
from pipeline.cluster.local.start import choose_ports, given_elsewhere
from pipeline.cluster.local.state import NAMES, Service, StackState, StateFolder
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import StackError
from pipeline.processes import is_alive, start_time

# Ignores SIGTERM, and so does its child, which says through a pipe that both are there.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    state = StateFolder(tmp_path / "state")
    state.create()
    yield state
    processes.stop(state.marker(), seconds=5)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def spawn(folder: StateFolder, *command: str) -> tuple[int, float]:
    log = folder.logs / "test.log"
    return processes.spawn(command, os.environ, folder.root, log, folder.marker())


def test_a_process_starts_in_a_session_of_its_own_and_is_found_by_its_mark(
    folder: StateFolder,
) -> None:
    pid, started = spawn(folder, "sleep", "600")
    assert os.getsid(pid) == pid
    assert processes.runs(pid, started)
    assert [process.pid for process in processes.marked(folder.marker())] == [pid]
    assert processes.stop(folder.marker()) == 1
    assert not processes.runs(pid, started)
    assert processes.stop(folder.marker()) == 0


def test_processes_that_do_not_listen_are_killed_with_their_children(folder: StateFolder) -> None:
    pipe = folder.root / "pipe"
    os.mkfifo(pipe)
    pid, started = spawn(folder, sys.executable, "-c", STUBBORN, str(pipe))
    child = int(pipe.read_text(encoding="utf-8"))
    assert processes.stop(folder.marker(), seconds=0.2) == 2
    assert not processes.runs(pid, started)
    assert start_time(child) is None


def test_children_that_outlived_their_leader_are_stopped(folder: StateFolder) -> None:
    pipe = folder.root / "pipe"
    os.mkfifo(pipe)
    pid, _ = spawn(folder, sys.executable, "-c", STUBBORN, str(pipe))
    child = int(pipe.read_text(encoding="utf-8"))
    os.kill(pid, signal.SIGKILL)
    processes.stop(folder.marker(), seconds=0.2)
    assert start_time(child) is None


def test_sessions_to_keep_are_kept(folder: StateFolder) -> None:
    kept, started = spawn(folder, "sleep", "600")
    other, _ = spawn(folder, "sleep", "600")
    assert processes.stop(folder.marker(), keep=[kept]) == 1
    assert processes.runs(kept, started)
    assert start_time(other) is None


def test_an_id_that_was_used_again_is_another_process(bystander: subprocess.Popen[bytes]) -> None:
    started = start_time(bystander.pid)
    assert started is not None
    assert is_alive(bystander.pid, started)
    assert not is_alive(bystander.pid, started - 1)


def test_a_process_that_ended_does_not_run_even_uncollected() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(process.pid) is None


def test_down_spares_a_process_that_only_has_the_noted_id(
    folder: StateFolder, bystander: subprocess.Popen[bytes]
) -> None:
    noted = Service("s3", bystander.pid, 1.0, "http://127.0.0.1:1", ports=(1,))
    folder.save(StackState("local", {"s3": noted}))
    said: list[str] = []
    down(Settings(state_dir=folder.root), said.append)
    assert bystander.poll() is None
    assert said == ["The local stack is not up."]
    assert folder.load() is None


def test_down_without_a_stack_makes_no_folder(tmp_path: Path) -> None:
    said: list[str] = []
    down(Settings(state_dir=tmp_path / "none"), said.append)
    assert said == ["The local stack is not up."]
    assert not (tmp_path / "none").exists()


def test_status_without_a_stack_is_stopped(tmp_path: Path) -> None:
    found = status(Settings(state_dir=tmp_path / "none"))
    assert [(service.name, service.state) for service in found] == [
        ("s3", "stopped"),
        ("prefect", "stopped"),
        ("dask", "stopped"),
    ]


def test_ports_are_used_again_unless_they_are_taken() -> None:
    free = processes.free_ports(11)
    with socket.socket() as taken:
        taken.bind((processes.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        state = StackState(
            "local",
            {
                "s3": Service("s3", 1, 1.0, "", ports=free[1:]),
                "prefect": Service("prefect", 1, 1.0, "", ports=(port,)),
            },
        )
        ports = choose_ports(state, {}, {})
    assert ports["s3"] == free[1:]
    assert ports["prefect"] != (port,)
    assert len({port for chosen in ports.values() for port in chosen}) == 13


def test_what_the_settings_name_elsewhere_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    flags = {"dask.cluster_class": "dask_kubernetes.operator:KubeCluster"}
    assert given_elsewhere(load_settings(overrides=flags, cwd=tmp_path)) == {
        "prefect": "http://prefect:4200/api (from PREFECT_API_URL)",
        "dask": "dask_kubernetes.operator:KubeCluster (from flag (dask.cluster_class))",
    }
    assert given_elsewhere(Settings()) == {}


def test_a_damaged_state_is_no_state(folder: StateFolder) -> None:
    folder.file.write_text('{"environment": "local", "services": {"s3": 3}}', encoding="utf-8")
    assert folder.load() is None


def test_the_state_is_for_this_user_alone_and_does_not_show_its_secrets(
    folder: StateFolder,
) -> None:
    state = StackState("local", {}, {"secret_access_key": "wJalrXUtnFEMI"})
    folder.save(state)
    assert folder.load() == state
    assert folder.file.stat().st_mode & 0o777 == 0o600
    assert "wJalr" not in repr(state)


def test_credentials_are_made_once(folder: StateFolder) -> None:
    first = credentials.s3_settings(folder.root, 1)
    assert credentials.s3_settings(folder.root, 1) == first
    assert (folder.root / "s3.json").stat().st_mode & 0o777 == 0o600
    (folder.root / "s3.json").write_text("damaged", encoding="utf-8")
    assert credentials.s3_settings(folder.root, 1) != first


def test_a_service_that_ends_at_once_is_reported_and_nothing_stays(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_weed", lambda: "/bin/ls")
    settings = Settings(state_dir=folder.root)
    with pytest.raises(StackError) as caught:
        up(settings, lambda line: None)
    assert str(caught.value).startswith("S3 (SeaweedFS) ended while it started:\n")
    assert "invalid option" in str(caught.value)
    assert caught.value.hint == f"see its log: {folder.logs / 's3.log'}"
    assert not processes.marked(folder.marker())


def test_a_missing_weed_is_said_with_what_to_install(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder.root))
    monkeypatch.setenv("PATH", str(folder.root))
    with pytest.raises(StackError, match="SeaweedFS is not installed") as caught:
        up(Settings(state_dir=folder.root), lambda line: None)
    assert caught.value.hint == "pip install 'chunkmap[local]'"


def test_a_long_log_is_put_aside(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOG_LIMIT", 10)
    for _ in range(2):
        spawn(folder, "true")
    assert (folder.logs / "test.old.log").exists()


def test_ports_stay_the_same_after_the_stack_was_stopped(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    assert folder.last_ports() == {}
    free = processes.free_ports(13)
    ports = {"s3": free[:10], "prefect": free[10:11], "dask": free[11:]}
    services = {name: Service(name, 1, 1.0, "", ports=ports[name]) for name in NAMES}
    folder.save(StackState("local", services))
    folder.forget()
    assert folder.load() is None
    assert choose_ports(StackState("local"), {}, folder.last_ports()) == ports
    # Those of a service that did not run before the last stop are remembered too.
    folder.save(StackState("local", {"prefect": services["prefect"]}))
    folder.forget()
    assert folder.last_ports() == ports
    (tmp_path / "state" / "ports.json").write_text('{"s3": [1], "dask": "x"}')
    assert len(choose_ports(StackState("local"), {}, folder.last_ports())["s3"]) == 10
