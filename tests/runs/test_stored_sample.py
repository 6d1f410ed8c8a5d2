"""A run and a backfill that an earlier chunkmap left half done are resumed by this one.

tests/support/stored_sample holds all objects of a bucket as that version (before the modules were
moved into rooms) left it: an input of eight days, a run over it of which six of sixteen chunks had
failed, and a backfill by days of which three had failed. Nothing in it may be written again.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.settings import Settings, load_settings
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.run import run_serially
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import open_storage
from pipeline.table.scan import scan_output
from tests.servers.launching import Server

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).parents[1] / "support" / "stored_sample"


@pytest.fixture(scope="module")
def settings(seaweedfs: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings for a bucket that holds the sample."""
    client = seaweedfs.client()
    client.create_bucket(Bucket="sample")
    with tarfile.open(SAMPLE / "objects.tar.gz") as archive:
        for member in archive:
            data = archive.extractfile(member)
            assert data is not None
            named = {
                name.removeprefix("chunkmap."): value
                for name, value in member.pax_headers.items()
                if name.startswith("chunkmap.")
            }
            client.put_object(Bucket="sample", Key=member.name, Body=data.read(), Metadata=named)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "CHUNKMAP_S3__ENDPOINT_URL": seaweedfs.endpoint,
            "CHUNKMAP_S3__ACCESS_KEY_ID": seaweedfs.key_id,
            "CHUNKMAP_S3__SECRET_ACCESS_KEY": seaweedfs.secret,
            "CHUNKMAP_S3__REGION": "us-east-1",
            "CHUNKMAP_TRANSFORMS__ALLOW": '["stored_transforms"]',
            "CHUNKMAP_STATE_DIR": str(tmp_path_factory.mktemp("state")),
            "SAMPLE_IS_FIXED": "1",
        }.items():
            patch.setenv(name, value)
        patch.syspath_prepend(SAMPLE)
        yield load_settings()


def expected() -> pl.DataFrame:
    """The result over all days, computed beside chunkmap."""
    ids = [day * 10 + number for day in range(1, 9) for number in range(10)]
    return pl.DataFrame({"id": ids, "value": [id_ // 10 * 5.0 for id_ in ids]})


def published(output: str) -> pl.DataFrame:
    return scan_output(output).select("id", "value").sort("id").collect()


def test_a_run_is_resumed(settings: Settings) -> None:
    storage = open_storage(settings)
    ledger = Ledger(storage, "s3://sample/out/", "319af4c400b13373")
    before = set(ledger.read().completions["attempt"])
    assert len(before) == 10
    summary = run_serially(ledger.job(), settings, storage)
    assert (summary.run, summary.mapped, summary.failed) == (ledger.run, 6, 0)
    assert before < set(ledger.read().completions["attempt"])
    assert published(ledger.output).equals(expected())
    assert verify_output(storage, ledger.output).problems == ()


def test_a_backfill_is_resumed(settings: Settings) -> None:
    storage = open_storage(settings)
    [record] = backfills_of(storage, "s3://sample/daily/")
    store = BackfillStore(storage, record.output, record.backfill)
    assert published(record.output).height == 50
    summary = BackfillDriver(
        store, settings, NoBackfillOrchestrator(), BackfillResumeOptions()
    ).run()
    assert (summary.state, summary.counts["done"]) == ("done", 8)
    assert published(record.output).equals(expected())
    assert verify_output(storage, record.output).problems == ()
