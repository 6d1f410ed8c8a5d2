"""What a worker whose code is hostile can do to the driver, and what it cannot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_dask import DaskTaskRunner

from pipeline.cluster.local_cluster import start_local_cluster
from pipeline.flows import task_sender
from pipeline.flows.executor import DaskExecutor
from pipeline.flows.task_report import MAX_REPORT_BYTES
from pipeline.runs.driver.executor import Outcome
from pipeline.runs.worker.batch import Batch, BatchResult

pytestmark = pytest.mark.integration

PATIENCE = 120.0
GOOD = BatchResult("b1", 3, 0, 10, 10, 100, 100, 100, 0.5)


@task(name="good", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def good_task(run_uri: str, fingerprint: str, name: str, spec: str, types: str) -> BatchResult:
    """What a worker should do."""
    return GOOD


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    """A task runner on a worker process, without a Prefect server."""
    with (
        temporary_settings({PREFECT_API_URL: None}),
        start_local_cluster(1) as cluster,
        DaskTaskRunner(
            address=cluster.scheduler_address, client_kwargs={"security": cluster.security}
        ) as one,
    ):
        yield one


def outcome(runner: Any) -> Outcome:
    """Of one batch, of which the driver hears as of any other."""
    with temporary_settings({PREFECT_API_URL: None}):
        dask = DaskExecutor(runner, "none", "none", good_task)
        dask.submit(Batch("b1", "0-3"))
        deadline = time.monotonic() + PATIENCE
        while not (found := dask.wait(1.0)):
            assert time.monotonic() < deadline
    [one] = found
    return one


def instead(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
    """Let workers do something else than what they are asked for."""
    monkeypatch.setattr(task_sender, "run_packed", function)


def report(**changes: Any) -> bytes:
    whole = {"states": [], "lines": [], "result": asdict(GOOD), "error": None, **changes}
    return json.dumps(whole).encode()


def state(**changes: Any) -> dict[str, Any]:
    return {"type": "COMPLETED", "name": "Completed", "at": time.time(), "message": "", **changes}


def test_a_good_worker(runner: Any) -> None:
    found = outcome(runner)
    assert (found.kind, found.result) == ("finished", GOOD)


FORGED: dict[str, Any] = {
    "no report": 42,
    "no text": b"\xff\xfe",
    "no JSON": b"{",
    "another form": b'{"states": 3}',
    "something more": report(admin=True),
    "too large": b" " * (MAX_REPORT_BYTES + 1),
    "an unknown state": report(states=[state(type="ADMIN")]),
    "another event's name": report(states=[state(name="x.prefect.flow-run.Failed")]),
    "no time": report(states=[{**state(), "at": "soon"}]),
    "a long message": report(states=[state(message="x" * 10_000)]),
    "many states": report(states=[state()] * 51),
    "many lines": report(lines=[{"logger": "a", "level": 20, "at": 0.0, "message": ""}] * 201),
    "another batch": report(result=asdict(GOOD) | {"batch": "b2"}),
    "negative figures": report(result=asdict(GOOD) | {"seconds": -1.0}),
    "huge figures": report(result=asdict(GOOD) | {"rows_in": 10**30}),
    "no result": report(result=None),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("what", FORGED)
def test_a_forged_report_fails_its_batch_and_nothing_else(
    runner: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    forged = FORGED[what]
    with monkeypatch.context() as patched:
        instead(patched, lambda *_: forged)
        found = outcome(runner)
    assert (found.kind, found.result, found.is_final) == ("error", None, False)
    assert found.detail
    assert outcome(runner).kind == "finished"


def test_hostile_figures_within_bounds_are_its_own_batchs_alone(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker says of its own batch is all that the driver takes from it."""
    forged = report(states=[state(at=0.0), state(at=1e300)])
    instead(monkeypatch, lambda *_: forged)
    assert outcome(runner).result == GOOD


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return _leave_mark, (str(self.mark),)


def _leave_mark(mark: str) -> bytes:
    Path(mark).write_text(str(os.getpid()), encoding="ascii")
    return b"{}"


class HostileError(Exception):
    """Runs a command where it is unpickled."""

    def __init__(self, mark: str) -> None:
        super().__init__(mark)
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return _leave_mark_and_raise, (self.mark,)


def _leave_mark_and_raise(mark: str) -> Exception:
    _leave_mark(mark)
    return ValueError("hostile")


@pytest.mark.parametrize("how", ["result", "error", "scheduler"])
def test_a_worker_process_runs_code_in_the_driver(
    runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """SECURITY.md says so: Dask unpickles what it gets before chunkmap sees it.

    Should this test fail because Dask no longer does, then SECURITY.md can say so.
    """
    mark = tmp_path / "mark"

    def hostile(*_: Any) -> Any:
        if how == "error":
            raise HostileError(str(mark))
        if how == "scheduler":
            # A worker is a client, too, if it wants to be.
            from distributed import get_client

            get_client().run_on_scheduler(_leave_mark, str(mark))
            return report()
        return Hostile(mark)

    instead(monkeypatch, hostile)
    found = outcome(runner)
    assert found.kind == ("finished" if how == "scheduler" else "error")
    ran_in = int(mark.read_text("ascii"))
    # The scheduler of a local cluster is in this process; others have one of their own.
    assert ran_in == os.getpid()
