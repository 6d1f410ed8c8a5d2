"""A cluster of real processes: TLS, status, doctor, scaling, versions, metrics and logs."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulation import probes_engine
from pipeline.cluster import local
from pipeline.cluster.certificates import make
from pipeline.cluster.client import cluster_of
from pipeline.cluster.local.processes import HOST
from pipeline.cluster.process_info import ProcessInfo, about
from pipeline.cluster.task_runner import task_runner
from pipeline.flows.server import connect, talking_to
from tests.faults.world import await_that
from tests.integration.own_cluster import PATIENCE, OwnCluster, own_cluster
from tests.integration.world import READER, ROWS, World
from tests.support import forks

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("own-cluster")]


@pytest.fixture(scope="module")
def cluster(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCluster]:
    with own_cluster(world, tmp_path_factory.mktemp("own")) as one:
        yield one


@pytest.fixture(scope="module")
def ran(cluster: OwnCluster) -> dict[str, Any]:
    """A job that ran over TLS, on a worker that offers what it needs; its summary."""
    world = cluster.world
    job = world.job("secured", resources={"GPU": 1})
    answer = world.chunkmap("run", job, "--json", **cluster.client)
    assert answer.code == 0, answer.err
    return answer.data


@contextmanager
def running(world: World, job: str, **variables: str) -> Iterator[forks.Running]:
    """A run that is interrupted at the end of the block, unless it has ended."""
    process = world.start("run", job, "--json", **variables)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)


def findings(cluster: OwnCluster, *flags: str, code: int, **more: str) -> dict[str, Any]:
    """What `cluster doctor` found, by what it looked at."""
    client = {**cluster.client, **more}
    answer = cluster.world.chunkmap("cluster", "doctor", "--json", *flags, **client)
    assert answer.code == code, (answer.out, answer.err)
    return {finding["what"]: finding for finding in answer.data["findings"]}


# -- TLS ---------------------------------------------------------------------------------------


def test_a_job_runs_over_tls(cluster: OwnCluster, ran: dict[str, Any]) -> None:
    assert ran["rows_in"] == ROWS
    assert ran["failed"] == 0
    assert cluster.world.frame("s3://demo/out/secured/")["id"].n_unique() == ran["rows_out"]


def test_a_client_without_a_certificate_is_refused(cluster: OwnCluster) -> None:
    bare = {"CHUNKMAP_DASK__SCHEDULER": cluster.address}
    answer = cluster.world.chunkmap("cluster", "status", "--json", **bare)
    assert answer.code == 2
    assert answer.data["error"] == "EngineUnavailableError"
    assert "dask.tls" in answer.data["hint"]


@pytest.mark.long
@pytest.mark.parametrize("certified", [False, True], ids=["none", "of another authority"])
def test_the_scheduler_wants_a_certificate_of_its_authority(
    cluster: OwnCluster, tmp_path: Path, certified: bool
) -> None:
    context = ssl.create_default_context(cafile=str(cluster.certificates / "ca.pem"))
    context.check_hostname = False
    if certified:
        make(tmp_path)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client-key.pem")
    with (
        socket.create_connection((HOST, cluster.port), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(plain) as secured,
    ):
        # With TLS 1.3 the refusal comes after the handshake.
        if secured.recv(100) == b"":
            raise ConnectionError("closed")


@pytest.mark.long
def test_plain_tcp_is_refused(cluster: OwnCluster) -> None:
    bare = {"CHUNKMAP_DASK__SCHEDULER": cluster.address.replace("tls", "tcp")}
    answer = cluster.world.chunkmap("cluster", "status", "--json", **bare)
    assert (answer.code, answer.data["error"]) == (2, "EngineUnavailableError")


# -- status ------------------------------------------------------------------------------------


def test_status_says_what_the_cluster_is(cluster: OwnCluster) -> None:
    said = cluster.world.chunkmap("cluster", "status", "--json", **cluster.client).data
    assert said["scheduler"] == cluster.address
    assert said["prefect"] == str(cluster.world.settings.prefect.api_url).removesuffix("/api")
    [worker] = said["workers"]
    assert (worker["name"], worker["status"]) == ("one", "running")
    assert worker["memory_limit"] > worker["memory"] > 0
    assert set(worker["about"]["versions"]) >= {"python", "polars", "distributed", "chunkmap"}
    shown = cluster.world.chunkmap("cluster", "status", **cluster.client).out
    assert "1 worker," in shown
    assert "/status" in shown


@pytest.mark.long
def test_status_says_what_runs_where(cluster: OwnCluster) -> None:
    world = cluster.world
    job = world.job("watched", "shop.transforms:slow", params={"seconds": 5.0})
    with running(world, job, **cluster.client) as process, cluster_of(cluster.settings) as asked:
        seen: list[dict[str, Any]] = []

        def at_work() -> bool:
            assert process.poll() is None, process.communicate()
            [answer] = asked.ask(about).values()
            assert isinstance(answer, ProcessInfo), answer
            seen[:] = answer.at_work
            return bool(seen)

        await_that(at_work, "a batch", PATIENCE)
        shown = world.chunkmap("cluster", "status", **cluster.client).out
    assert seen[0]["batch"].startswith("r1-")
    assert 0 <= seen[0]["done"] < seen[0]["chunks"]
    assert f"of run {seen[0]['run']}" in shown


@pytest.mark.long
def test_without_a_cluster_it_says_how_to_get_one(world: World, tmp_path: Path) -> None:
    answer = world.chunkmap("cluster", "status", "--json", CHUNKMAP_STATE_DIR=str(tmp_path))
    assert answer.code == 2
    assert "chunkmap up" in answer.data["hint"]


# -- metrics and logs --------------------------------------------------------------------------


def test_metrics_tell_what_was_done(cluster: OwnCluster, ran: dict[str, Any]) -> None:
    said = cluster.metrics("one")
    assert said["chunkmap_chunks_total"] >= ran["chunks"]
    assert said['chunkmap_rows_total{direction="in"}'] >= ROWS
    assert said['chunkmap_s3_requests_total{kind="PutObject",status="200"}'] >= ran["chunks"]
    assert said["chunkmap_batch_seconds_count"] >= ran["batches"]
    assert any(key.startswith("dask_worker_") for key in said)


def test_log_lines_have_ids(cluster: OwnCluster, ran: dict[str, Any]) -> None:
    lines = [line for line in cluster.lines("one") if line.get("run") == ran["run"]]
    assert len(lines) >= ran["batches"]
    assert all(line["batch"].startswith("r1-") for line in lines)


# -- doctor ------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong(cluster: OwnCluster) -> None:
    found = findings(cluster, "--output", "s3://demo/out/examined/", code=0)
    assert {check["level"] for check in found.values()} <= {"ok", "warning"}
    for name in ("Prefect version", "Prefect services"):
        assert found[name]["level"] == "ok", found[name]
    # Other tests have deployments on this server.
    assert {"Prefect limits", "late runs"} <= found.keys()
    for name in ("Prefect", "Dask", "versions", "clocks", "TLS", "S3, from here"):
        assert found[name]["level"] == "ok", found[name]
    assert found["S3, from workers"]["level"] == "ok"
    assert "valid for at least 36" in found["TLS"]["said"]
    assert not cluster.world.objects("s3://demo/out/examined"), "something was left behind"
    bucket, state = "demo", "s3://demo/out/examined.chunkmap/"
    assert not cluster.world.storage.staged_under(state, state), bucket


@pytest.mark.long
def test_doctor_names_the_worker_without_rights(cluster: OwnCluster) -> None:
    key, secret = READER
    cluster.add("reader", AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret)
    try:
        found = findings(cluster, "--output", "s3://demo/out/examined/", code=1)
    finally:
        cluster.workers.pop("reader").stop()
    bad = found["S3, from worker reader"]
    assert bad["level"] == "error"
    assert "cannot create an object" in bad["said"]
    assert "s3:PutObject" in bad["said"]
    assert "S3, from worker one" not in found


@pytest.mark.long
def test_doctor_warns_of_certificates_that_expire(cluster: OwnCluster, tmp_path: Path) -> None:
    for name in ("ca.pem", "ca-key.pem"):
        (tmp_path / name).write_bytes((cluster.certificates / name).read_bytes())
    make(tmp_path, days=9)
    found = findings(cluster, code=0, **cluster.tls("client", tmp_path))
    assert found["TLS"]["level"] == "warning"
    assert "this command's cert certificate expires in 9 days" in found["TLS"]["said"]
    assert "tls init" in found["TLS"]["fix"]


@pytest.mark.long
def test_doctor_says_that_prefect_is_gone(cluster: OwnCluster) -> None:
    nowhere = {
        "CHUNKMAP_PREFECT__API_URL": "http://127.0.0.1:9/api",
        "CHUNKMAP_PREFECT__CONNECT_TIMEOUT": "1",
    }
    found = findings(cluster, code=1, **nowhere)
    assert found["Prefect"]["level"] == "error"
    assert found["Prefect's secrets"]["level"] == "ok"


# -- versions ----------------------------------------------------------------------------------


@pytest.mark.long
def test_workers_with_other_packages_are_refused(cluster: OwnCluster, tmp_path: Path) -> None:
    """A worker that says it has another Polars: its package's metadata is found first."""
    metadata = tmp_path / "polars-9.9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: polars\nVersion: 9.9.9\n")
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    cluster.add("odd", PYTHONPATH=path)
    world = cluster.world
    try:
        answer = world.chunkmap("run", world.job("odd"), "--json", **cluster.client)
        found = findings(cluster, code=1)
    finally:
        cluster.workers.pop("odd").stop()
    assert answer.code == 2, answer.err
    assert answer.data["error"] == "VersionMismatchError"
    assert "polars 2." in answer.data["message"]
    assert "9.9.9 on tls://" in answer.data["message"]
    assert not world.objects("s3://demo/out/odd"), "something was written"
    assert "9.9.9 in worker odd" in found["versions"]["said"]


# -- what a batch costs ------------------------------------------------------------------------


def test_batches_of_the_simulation_are_measured_on_a_cluster(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes_engine, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(probes_engine, "QUEUED", 6)
    for name, value in world.settings.prefect.environment().items():
        monkeypatch.setenv(name, value)  # `connect` sets them, and nobody else would remove them.
    pids = {service.name: service.pid for service in local.status(world.settings)}
    with talking_to(connect(world.settings.prefect), 1):
        runner: Any = task_runner(world.settings.dask, world.settings.s3.environment())
        flow: Any = probes_engine.probe_flow.with_options(task_runner=runner)
        figures = flow(pids["dask"], [pids["dask"]], pids["prefect"])
    assert figures["driver.submit_seconds"][0] > 0.0
    assert figures["services.prefect_seconds"][0] > 0.0


# -- scaling -----------------------------------------------------------------------------------


@pytest.mark.long
def test_who_started_workers_by_hand_scales_them_by_hand(cluster: OwnCluster) -> None:
    answer = cluster.world.chunkmap("cluster", "scale", "3", "--json", **cluster.client)
    assert answer.code == 2
    assert "--scale dask-worker=N" in answer.data["hint"]


@pytest.mark.long
def test_the_embedded_cluster_is_scaled_while_a_job_runs(world: World) -> None:
    def names() -> set[str]:
        said = world.chunkmap("cluster", "status", "--json").data
        return {worker["name"] for worker in said["workers"] if worker["status"] == "running"}

    before = names()
    job = world.job("scaled", "shop.transforms:slow", params={"seconds": 0.5})
    with running(world, job) as process:
        begun = "s3://demo/out/scaled.chunkmap/runs/"
        await_that(lambda: world.storage.objects(begun), "the run", PATIENCE)
        answer = world.chunkmap("cluster", "scale", str(len(before) + 1), "--json")
        assert answer.data == {"before": len(before), "workers": len(before) + 1}
        await_that(lambda: len(names()) == len(before) + 1, "another worker", PATIENCE)
        world.chunkmap("cluster", "scale", str(len(before)))
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert '"failed": 0' in out
    assert '"rounds": 1' in out
    await_that(lambda: len(names()) == len(before), "as many workers as before", PATIENCE)
