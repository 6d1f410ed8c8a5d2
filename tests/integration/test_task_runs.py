"""Task runs as Prefect shows them, though workers have neither its password nor its address.

On a server that asks for a password, which only the driver has, and workers of their own.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from pipeline.cluster.local import services
from pipeline.cluster.local.processes import HOST, free_ports
from pipeline.runs.ledger.ledger import Ledger
from tests.faults.world import Process, await_that
from tests.integration.own_cluster import PATIENCE, OwnCluster, own_cluster
from tests.integration.world import Answer, World

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("guarded"), pytest.mark.long]

AUTH = "admin:only-the-driver-has-it"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
BATCH = re.compile(r"r\d+-[0-9a-f]+-\d{5}")


@dataclass
class Guarded:
    """A Prefect server with a password, and a cluster whose workers were told another address."""

    world: World
    cluster: OwnCluster
    api: str
    trap: socket.socket
    """Listens at the address that workers have in their variables."""

    def run(self, job: str, **more: str) -> Answer:
        return self.world.chunkmap("run", job, "--json", **self.driver, **more)

    @property
    def driver(self) -> dict[str, str]:
        return {
            **self.cluster.client,
            "PREFECT_API_URL": self.api,
            "PREFECT_API_AUTH_STRING": AUTH,
        }

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {
            "content-type": "application/json",
            "authorization": f"Basic {base64.b64encode(AUTH.encode()).decode()}",
        }
        if method == "POST":
            token = self._answer("GET", "csrf-token?client=tests", None, headers)["token"]
            headers |= {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"}
        return self._answer(method, path, body, headers)

    def _answer(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(
            f"{self.api}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def batches(self, page: str) -> list[dict[str, Any]]:
        """The task runs of batches of a flow run, by the address of its page."""
        found = {"flow_runs": {"id": {"any_": [page.rpartition("/")[2]]}}, "limit": 200}
        runs: list[dict[str, Any]] = self.ask("POST", "task_runs/filter", found)
        return [run for run in runs if BATCH.fullmatch(run["name"])]

    def states(self, task_run: str) -> list[tuple[str, datetime]]:
        found = self.ask("GET", f"task_run_states/?task_run_id={task_run}")
        states = [(state["type"], datetime.fromisoformat(state["timestamp"])) for state in found]
        return sorted(states, key=lambda state: state[1])

    def knocked(self) -> bool:
        """Whether anybody has called the address that the workers were told."""
        self.trap.setblocking(False)
        try:
            self.trap.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def guarded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "root").mkdir()
    launch = services.prefect(folder / "root", tuple(free_ports(1)))
    launch.folder.mkdir(exist_ok=True)
    environment = {**launch.environment, "PREFECT_SERVER_API_AUTH_STRING": AUTH}
    server = Process("prefect", launch.command, environment, folder)
    with closing(socket.create_server((HOST, 0))) as trap:
        told = f"http://{HOST}:{trap.getsockname()[1]}/api"
        try:
            server.start()
            with own_cluster(world, folder) as cluster:
                cluster.workers.pop("one").stop()
                cluster.add("two", PREFECT_API_URL=told)
                await_that(launch.is_ready, "the Prefect server", PATIENCE)
                yield Guarded(world, cluster, launch.address, trap)
        finally:
            server.stop()


@pytest.fixture(scope="module")
def done(guarded: Guarded) -> dict[str, Any]:
    answer = guarded.run(guarded.world.job("guarded", "shop.transforms:tells"))
    assert answer.code == 0, answer.err
    return answer.data


def await_ended(guarded: Guarded, page: str, count: int) -> list[dict[str, Any]]:
    """The batches, once the server has recorded the end of as many."""

    def all_ended() -> bool:
        found = guarded.batches(page)
        ended = [run for run in found if run["state_type"] in FINAL]
        return len(ended) >= count and len(ended) == len(found)

    await_that(all_ended, f"{count} batches that ended", PATIENCE)
    return guarded.batches(page)


def test_the_password_is_asked_for(guarded: Guarded, done: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{guarded.api}/work_pools/nothing")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert refused.value.code == 401


def test_each_batch_is_a_task_run_with_its_states_and_times(
    guarded: Guarded, done: dict[str, Any]
) -> None:
    found = await_ended(guarded, done["prefect_ui"], done["batches"])
    assert len(found) == done["batches"] > 2
    ledger = Ledger(guarded.world.storage, "s3://demo/out/guarded/", done["run"])
    completions = ledger.read().completions
    for run in found:
        states = guarded.states(run["id"])
        assert [type_ for type_, _ in states] == ["PENDING", "RUNNING", "COMPLETED"]
        assert (run["state_type"], run["run_count"]) == ("COMPLETED", 1)
        began, ended = (datetime.fromisoformat(run[name]) for name in ("start_time", "end_time"))
        assert [began, ended] == [at for _, at in states[1:]]
        assert abs((ended - began).total_seconds() - run["total_run_time"]) < 0.001
        # The worker's own times: its chunks lie between them.
        chunks = completions.filter(batch=run["name"])
        assert chunks.height
        assert began.timestamp() <= chunks["started"].min()  # type: ignore[operator]
        last = (chunks["started"] + chunks["seconds"]).max()
        assert last <= ended.timestamp() + 0.1  # type: ignore[operator]


def test_what_transforms_log_is_on_the_pages(guarded: Guarded, done: dict[str, Any]) -> None:
    page = done["prefect_ui"].rpartition("/")[2]
    found = {"logs": {"flow_run_id": {"any_": [page]}, "task_run_id": {"is_null_": False}}}
    # The driver tries the transform before the flow has begun: only batches have lines.
    runs = {run["id"] for run in await_ended(guarded, done["prefect_ui"], done["batches"])}

    def lines() -> list[dict[str, Any]]:
        answer = guarded.ask("POST", "logs/filter", {**found, "limit": 200})
        return [line for line in answer if line["message"] == "told by a transform"]

    # Workers send logs in the background, once in a while.
    await_that(
        lambda: runs == {line["task_run_id"] for line in lines()}, "lines of all batches", PATIENCE
    )
    assert all(line["level"] == 30 for line in lines())


def test_no_worker_asked_prefect_or_started_one(guarded: Guarded, done: dict[str, Any]) -> None:
    assert not guarded.knocked()
    port = urlsplit(guarded.api).port
    for worker in guarded.cluster.workers.values():
        tree = psutil.Process(worker.pid).children(recursive=True)
        assert tree
        # Events would go through a connection that Prefect keeps open.
        peers = [connection.raddr for process in tree for connection in process.net_connections()]
        called = {getattr(peer, "port", None) for peer in peers}
        assert guarded.cluster.port in called and port not in called
        commands = " ".join(" ".join(process.cmdline()) for process in tree)
        assert "prefect.server" not in commands and "uvicorn" not in commands
        variables = [
            process.environ()
            for process in tree
            if "multiprocessing" in " ".join(process.cmdline())
        ]
        assert not any(AUTH in str(variable) for variable in variables)


def test_doctor_says_which_workers_hold_secrets_of_prefect(guarded: Guarded) -> None:
    def finding() -> dict[str, str]:
        answer = guarded.world.chunkmap("cluster", "doctor", "--json", **guarded.driver)
        found = {finding["what"]: finding for finding in answer.data["findings"]}
        return found["Prefect's secrets"]  # type: ignore[no-any-return]

    assert finding()["level"] == "ok"
    guarded.cluster.add("told", PREFECT_API_AUTH_STRING=AUTH)
    try:
        found = finding()
    finally:
        guarded.cluster.workers.pop("told").stop()
    assert found["level"] == "warning"
    assert "worker told holds api.auth_string" in found["said"]
    assert AUTH not in str(found)


def test_a_batch_that_runs_is_shown_as_running(guarded: Guarded) -> None:
    world = guarded.world
    job = world.job("guarded-shown", "shop.transforms:slow", params={"seconds": 1.5})
    with world.start("run", job, "--json", **guarded.driver) as process:
        seen: list[dict[str, Any]] = []

        def some_run() -> bool:
            assert process.poll() is None, process.communicate()
            wanted = {"type": {"any_": ["RUNNING"]}}
            given = {"task_runs": {"state": wanted}, "limit": 50}
            runs = guarded.ask("POST", "task_runs/filter", given)
            seen[:] = [run for run in runs if BATCH.fullmatch(run["name"])]
            return bool(seen)

        await_that(some_run, "a batch that is shown as running", PATIENCE)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert seen[0]["start_time"]
    # Those that were under way are not left as if they ran for ever.
    flow_run = seen[0]["flow_run_id"]
    found = await_ended(guarded, flow_run, 1)
    assert {run["state_type"] for run in found} <= {"COMPLETED", "CANCELLED"}


def test_a_batch_whose_worker_dies_has_crashed(guarded: Guarded) -> None:
    job = guarded.world.job(
        "guarded-dying", "shop.transforms:dies", rounds=1, input={"include": ["0*"]}
    )
    answer = guarded.run(job)
    assert answer.code == 1, answer.err
    named = {"flow_runs": {"name": {"any_": ["guarded-dying"]}}}
    [flow_run] = guarded.ask("POST", "flow_runs/filter", named)
    found = await_ended(guarded, flow_run["id"], 1)
    assert {run["state_type"] for run in found} == {"CRASHED"}
    for run in found:
        states = guarded.states(run["id"])
        assert states[0][0] == "PENDING"
        assert states[-1][0] == "CRASHED"
    assert any("died with it" in run["state"]["message"] for run in found)


def test_workers_that_are_told_nothing_run_a_reduce(guarded: Guarded, tmp_path: Path) -> None:
    """The reduce's steps are task runs on workers, too."""
    package = guarded.world.root / "shop" / "counting.py"
    package.write_text(REDUCE)
    reduce = {"combine": "shop.counting:combine"}
    job = guarded.world.job("counted", "shop.counting:count", reduce=reduce)
    answer = guarded.run(job)
    assert answer.code == 0, (answer.out, answer.err)
    page = answer.data["prefect_ui"].rpartition("/")[2]

    def reduced() -> bool:
        given = {"flow_runs": {"id": {"any_": [page]}}, "limit": 200}
        runs = guarded.ask("POST", "task_runs/filter", given)
        steps = [run for run in runs if run["name"].startswith("reduced/")]
        return bool(steps) and all(run["state_type"] == "COMPLETED" for run in steps)

    await_that(reduced, "steps of the reduce that are completed", PATIENCE)


REDUCE = '''"""Counts rows."""

import polars as pl


def count(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.select(rows=pl.len())


def combine(frames: list[pl.LazyFrame]) -> pl.LazyFrame:
    return pl.concat(frames).select(pl.col("rows").sum())
'''
