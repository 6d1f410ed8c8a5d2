"""The requests that completions and the driver's record count are those that were sent to S3."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline import metrics
from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.runs.driver.heartbeat import read_driver
from pipeline.runs.driver.run import run_serially
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import open_storage
from tests.servers.launching import Server

pytestmark = pytest.mark.integration
CHUNKS = 6


def sent() -> dict[str, float]:
    """How many requests of each kind this process has sent."""
    counts: dict[str, float] = {}
    for family in metrics.REQUESTS.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                kind = sample.labels["kind"]
                counts[kind] = counts.get(kind, 0) + sample.value
    return counts


def test_every_request_is_counted_once(
    seaweedfs: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = seaweedfs.client()
    client.create_bucket(Bucket="counts")
    for name, value in {
        "CHUNKMAP_S3__ENDPOINT_URL": seaweedfs.endpoint,
        "CHUNKMAP_S3__ACCESS_KEY_ID": seaweedfs.key_id,
        "CHUNKMAP_S3__SECRET_ACCESS_KEY": seaweedfs.secret,
        "CHUNKMAP_S3__REGION": "us-east-1",
        "CHUNKMAP_STATE_DIR": str(tmp_path / "state"),
        "CHUNKMAP_TRANSFORMS__ALLOW": '["counted_transforms"]',
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "counted_transforms.py").write_text("def same(frame):\n    return frame\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for number in range(CHUNKS):
        # Larger than what is read whole, so that footer and columns are requests of their own.
        ids = pl.int_range(number * 200_000, (number + 1) * 200_000, eager=True).shuffle(number)
        file = tmp_path / "part.parquet"
        pl.DataFrame({"id": ids, "twice": ids * 2}).write_parquet(file, compression="uncompressed")
        client.upload_file(str(file), "counts", f"in/{number}.parquet")
    client.close()
    settings = load_settings()
    job = Job.model_validate(
        {
            "name": "counted",
            "input": {"uri": "s3://counts/in/"},
            "chunks": {"per_file": True},
            "transform": "counted_transforms:same",
            "output": {"uri": "s3://counts/out/"},
        }
    )
    before = sent()
    storage = open_storage(settings)
    summary = run_serially(job, settings, storage)
    after = sent()
    used = {kind: after[kind] - before.get(kind, 0) for kind in after}
    ledger = Ledger(storage, summary.output, summary.run)
    done = ledger.read().completions
    assert done.height == CHUNKS
    # For each chunk its footer and its columns were read, some ahead of time, and a result stored.
    assert done["reads"].sum() >= 2 * CHUNKS and done["writes"].sum() >= CHUNKS
    assert done["retries"].sum() == 0 and (done["memory"] > 10_000_000).all()
    driver = read_driver(storage, ledger.prefix)
    assert driver is not None and driver.reads > 0 and driver.writes > 0
    reads = sum(used.get(kind, 0) for kind in ("GetObject", "HeadObject"))
    writes = sum(
        number
        for kind, number in used.items()
        if kind.startswith(("Put", "Copy", "List", "Create", "Upload", "Complete"))
    )
    # A small run waits for nearly all of them. Of a chunk: its footer, to plan and to map it, its
    # columns, and a result that is staged, looked for and copied. Of a batch: what an earlier
    # attempt has stored, and a segment, written and read. The first run on a service probes it.
    fixed = sum(used.values()) - 6 * CHUNKS - 3 * summary.batches
    assert fixed <= 52, used
    # Apart from the end of each batch (its last segment), and of the driver (its own record).
    assert 0 <= reads - int(done["reads"].sum()) - driver.reads <= 4 * summary.batches + 8
    assert 0 <= writes - int(done["writes"].sum()) - driver.writes <= 4 * summary.batches + 8
    # One clock: the phases add up, and the report says the same.
    assert summary.seconds == pytest.approx(sum(took for _, took in summary.phases))
    assert [name for name, _ in summary.phases] == ["plan", "map", "publish", "report"]
