"""What earlier releases left in a bucket is read, resumed, finished and rolled back by this one.

tests/support/stored_samples has an archive of each release (make.py there says what is in it);
"before-0.1" is from before the first one. docs/compatibility.md promises what is tested here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from pipeline.config.job import Job
from pipeline.config.settings import Settings, load_settings
from pipeline.runs.admin.status import list_runs
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.run import run_serially
from pipeline.runs.ledger.ledger import Ledger, run_id
from pipeline.runs.worker import chunk
from pipeline.storage import Storage, open_storage
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from pipeline.table.repair import diagnose
from pipeline.table.scan import scan_output
from tests.contracts.source import ROOT
from tests.servers.launching import seaweedfs
from tests.support.stored_samples import make

pytestmark = pytest.mark.integration

ARCHIVES = {path.name.removesuffix(".tar.gz"): path for path in make.FOLDER.glob("*.tar.gz")}


def having(output: str) -> pytest.MarkDecorator:
    """Run a test on every sample that has this output."""
    names = [name for name, path in ARCHIVES.items() if output in make.outputs_of(path)]
    return pytest.mark.parametrize("sample", sorted(names), indirect=True)


class Sample(NamedTuple):
    """The state of a release, in a bucket of its own server."""

    name: str
    settings: Settings
    storage: Storage
    client: Any

    def ledger(self, output: str) -> Ledger:
        """The ledger of an output's newest run."""
        runs = list_runs(self.storage, uri(output))
        return Ledger(self.storage, uri(output), max(runs, key=lambda run: run.created).run)

    def is_sound(self, output: str) -> bool:
        """Whether every file is what its manifest says."""
        return verify_output(self.storage, uri(output)).problems == ()


def uri(output: str) -> str:
    return f"s3://{make.BUCKET}/{output}/"


@pytest.fixture(scope="module")
def sample(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sample]:
    folder = tmp_path_factory.mktemp("sample")
    with seaweedfs(folder) as server, pytest.MonkeyPatch.context() as patch:
        make.unpack(ARCHIVES[request.param], server.client())
        for name, value in make.variables(server, folder / "state").items():
            patch.setenv(name, value)
        patch.setenv("SAMPLE_IS_FIXED", "1")
        patch.syspath_prepend(make.TRANSFORMS)
        settings = load_settings()
        chunk.open_run.cache_clear()  # Samples have runs of the same names, on other servers.
        yield Sample(request.param, settings, open_storage(settings), server.client())


def expected(factor: float = 1.0, days: int = 8) -> pl.DataFrame:
    """The result over some days, computed beside chunkmap."""
    ids = [day * 10 + number for day in range(1, days + 1) for number in range(10)]
    return pl.DataFrame({"id": ids, "value": [id_ // 10 * 10.0 * factor for id_ in ids]})


def published(output: str, version: int | None = None) -> pl.DataFrame:
    return scan_output(uri(output), version).select("id", "value").sort("id").collect()


@pytest.mark.parametrize("sample", sorted(ARCHIVES), indirect=True)
def test_the_same_job_is_the_same_run(sample: Sample) -> None:
    """Keys that jobs have got since, at their defaults, change no id."""
    for output in make.outputs_of(ARCHIVES[sample.name]):
        for run in list_runs(sample.storage, uri(output)):
            ledger = Ledger(sample.storage, run.output, run.run)
            record, plan = ledger.record(), ledger.plan()
            work = (plan, ledger.job(), record.fingerprint, record.backfill, record.tables)
            assert run.run in {run_id(*work, sees=sees) for sees in (True, False)}


@having("out")
def test_a_run_is_resumed(sample: Sample) -> None:
    ledger = sample.ledger("out")
    before = set(ledger.read().completions["attempt"])
    assert len(before) == 10
    summary = run_serially(ledger.job(), sample.settings, sample.storage)
    assert (summary.run, summary.mapped, summary.failed) == (ledger.run, 6, 0)
    assert before < set(ledger.read().completions["attempt"])
    assert published("out").equals(expected(0.5))
    assert sample.is_sound("out")


@having("total")
def test_a_reduce_is_resumed(sample: Sample) -> None:
    ledger = sample.ledger("total")
    summary = run_serially(ledger.job(), sample.settings, sample.storage)
    assert (summary.run, summary.mapped, summary.failed) == (ledger.run, 6, 0)
    assert scan_output(uri("total")).collect().rows() == [(expected()["value"].sum(), 80)]
    assert sample.is_sound("total")


@having("daily")
def test_a_backfill_is_resumed(sample: Sample) -> None:
    [record] = backfills_of(sample.storage, uri("daily"))
    store = BackfillStore(sample.storage, record.output, record.backfill)
    assert published("daily").height == 50
    summary = BackfillDriver(
        store, sample.settings, NoBackfillOrchestrator(), BackfillResumeOptions()
    ).run()
    assert (summary.state, summary.counts["done"]) == ("done", 8)
    assert published("daily").equals(expected(0.5))
    assert sample.is_sound("daily")


@having("claimed")
def test_a_publish_is_finished(sample: Sample) -> None:
    """Its driver died between the claim and the first visible file."""
    ledger = sample.ledger("claimed")
    problems = diagnose(TableLog(sample.storage, uri("claimed"))).problems
    assert len(problems) == 1
    summary = run_serially(ledger.job(), sample.settings, sample.storage)
    assert (summary.run, summary.mapped) == (ledger.run, 0)
    assert published("claimed").equals(expected())
    assert sample.is_sound("claimed")


@having("versions")
def test_versions_are_read_and_restored(sample: Sample) -> None:
    assert sample.is_sound("versions")
    assert published("versions").equals(expected(2.0))
    assert published("versions", 1).equals(expected(days=2))
    log = TableLog(sample.storage, uri("versions"))
    assert rollback(log).number == 3
    assert published("versions").equals(expected(days=2))
    assert published("versions", 2).equals(expected(2.0))
    assert sample.is_sound("versions")
    vacuum(sample.storage, uri("versions"))
    assert sample.is_sound("versions")


@having("appended")
def test_only_new_objects_are_appended(sample: Sample) -> None:
    job: Job = sample.ledger("appended").job()
    assert run_serially(job, sample.settings, sample.storage).mapped == 0
    key, data = make.day_object(9, 0)
    sample.client.put_object(Bucket=make.BUCKET, Key=key, Body=data)
    try:
        assert run_serially(job, sample.settings, sample.storage).mapped == 1
    finally:
        sample.client.delete_object(Bucket=make.BUCKET, Key=key)
    assert published("appended").equals(expected(days=9).head(85))
    assert sample.is_sound("appended")


@pytest.mark.parametrize("sample", sorted(ARCHIVES), indirect=True)
def test_every_run_is_listed(sample: Sample, request: pytest.FixtureRequest) -> None:
    archive: Path = ARCHIVES[request.node.callspec.params["sample"]]
    for output in make.outputs_of(archive):
        states = {run.state for run in list_runs(sample.storage, uri(output))}
        assert states
        assert "damaged" not in states


def test_every_release_has_a_sample() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases = re.findall(r"^## (\d+\.\d+\.\d+)\b", changelog, re.MULTILINE)
    assert releases
    assert {*releases, "before-0.1"} == ARCHIVES.keys(), (
        "python -m tests.support.stored_samples.make"
    )
