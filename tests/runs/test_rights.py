"""Whole runs whose workers and driver have the rights of deploy/policies, and no others."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.runs.admin.status import list_runs
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import run_serially
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import PARTIAL
from pipeline.runs.worker import chunk
from pipeline.storage import RetryPolicy, Storage
from pipeline.storage.s3_backend import COPIED_BYTES
from tests.servers.launching import Server, backend_of
from tests.servers.roles import Roles, roles
from tests.support.runs_by_hand import Run

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_state")]

QUICK = RetryPolicy(attempts=3, seconds=30.0, wait_initial=0.01, wait_max=0.05)
FILES, ROWS = 40, 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    with roles(
        tmp_path_factory.mktemp("roles"), buckets="lake", inputs="lake/in/", outputs="lake/out/"
    ) as server:
        owner = on(server.admin)
        for number in range(FILES):
            rows = {"station": ["a", "b"] * (ROWS // 2), "measure": [float(number)] * ROWS}
            data = io.BytesIO()
            pl.DataFrame(rows).write_parquet(data)
            owner.put(f"s3://lake/in/day={number % 4}/{number:03d}.parquet", data.getvalue())
        yield server


def on(server: Server, copied: int = COPIED_BYTES) -> Storage:
    return Storage({"s3": backend_of(server.access, copied)}, QUICK)


def job_of(function: str, **more: Any) -> Job:
    return Job.model_validate(
        {
            "name": "rights",
            "input": {"uri": "s3://lake/in/"},
            "chunks": {"per_file": True},
            "transform": f"pipeline.examples.stations:{function}",
            "output": {"uri": f"s3://lake/out/{uuid.uuid4().hex[:8]}/"},
            **more,
        }
    )


def read(server: Roles, job: Job) -> pl.DataFrame:
    owner = on(server.admin)
    found = [owner.get(info.uri).data for info in owner.objects(job.output.uri)]
    return pl.concat(pl.read_parquet(io.BytesIO(data)) for data in found)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("copied", [COPIED_BYTES, 0], ids=["copies", "uploads"])
def test_a_run_ends_right_with_these_rights_whatever_a_worker_has_written(
    server: Roles, copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, worker = on(server.driver), on(server.worker, copied)
    monkeypatch.setattr(chunk, "own_storage", lambda: worker)
    job, settings = job_of("partial"), load_settings()
    planned = plan_run(job, settings, driver, ResumeOptions())
    hostile = Run(worker, Ledger(worker, job.output.uri, planned.ledger.run), planned.plan)
    entry = hostile.completion(3)
    hostile.store(
        replace(entry, upload="s3://lake/in/day=0/000.parquet"),
        replace(entry, uri=entry.uri.replace("s3://lake/out/", "s3://lake/in/")),
        replace(entry, rows_out=-5),
    )
    before = {info.uri: info.etag for info in on(server.admin).objects("s3://lake/in/")}
    summary = run_serially(job, settings, driver)
    assert summary.state == "done" and summary.mapped == FILES
    assert [note for note in summary.notes if "not counted" in note]
    assert {i.uri: i.etag for i in on(server.admin).objects("s3://lake/in/")} == before
    assert read(server, job)["count"].sum() == FILES * ROWS
    (state,) = list_runs(driver, job.output.uri)
    assert state.state == "done" and len(state.problems) == 3
    verified = verify_output(driver, job.output.uri)
    assert verified.problems == () and len(verified.notes) == 3
    for name in ("report.html", "report.json"):
        text = driver.get(planned.ledger.prefix + name).data.decode()
        assert text.count("entries of the ledger are not counted") == 3


def test_a_reduce_ends_right_with_these_rights(
    server: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, worker = on(server.driver), on(server.worker)
    monkeypatch.setattr(chunk, "own_storage", lambda: worker)
    reduce = {
        "combine": "pipeline.examples.stations:combine",
        "finalize": "pipeline.examples.stations:finalize",
    }
    # So many partials that the reduce is a tree: workers look whether its nodes are there.
    settings = load_settings(overrides={"batches": {"max_chunks": 1}})
    job = job_of("partial", reduce=reduce)
    planned = plan_run(job, settings, driver, ResumeOptions())
    hostile = Run(worker, Ledger(worker, job.output.uri, planned.ledger.run), planned.plan)
    nowhere = planned.ledger.prefix + "partials/nobody-stored-this.arrow"
    entry = hostile.completion(3)
    hostile.store(replace(entry, uri=nowhere, upload=PARTIAL, parts=(), sha256=""))
    summary = run_serially(job, settings, driver)
    assert summary.state == "done" and not [n for n in summary.notes if "not counted" in n]
    found = read(server, job)
    assert found["station"].to_list() == ["a", "b"]
    assert found["greatest"].to_list() == [FILES - 1.0] * 2


def test_a_map_over_groups_ends_right_with_these_rights(
    server: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, worker = on(server.driver), on(server.worker)
    monkeypatch.setattr(chunk, "own_storage", lambda: worker)
    then = {"function": "pipeline.examples.stations:finalize", "by": ["station"]}
    reduce = {"combine": "pipeline.examples.stations:combine"}
    checks = {"run": [{"check": "unique", "columns": ["station"]}]}
    job = job_of("partial", reduce=reduce, then=then, checks=checks)
    summary = run_serially(job, load_settings(), driver)
    assert summary.then is not None and summary.then.pieces == 2
    found = read(server, job).sort("station")
    assert found["station"].to_list() == ["a", "b"]
    assert found["greatest"].to_list() == [FILES - 1.0] * 2
    assert not verify_output(driver, job.output.uri).problems
