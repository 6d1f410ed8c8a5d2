"""A run on a service that throttles completes, without flooding it."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest
from prometheus_client import REGISTRY

from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.runs.driver.heartbeat import read_driver
from pipeline.runs.driver.report import attempts_of
from pipeline.runs.driver.run import run_serially
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import open_storage
from tests.faults.proxy import running_proxy
from tests.servers.launching import Server

pytestmark = pytest.mark.integration
CAPACITY = 4
CHUNKS = 150


def test_a_throttled_run_lowers_its_requests_and_completes(
    seaweedfs: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = seaweedfs.client()
    client.create_bucket(Bucket="busy")
    file = io.BytesIO()
    pl.DataFrame({"id": range(10)}).write_parquet(file)
    for number in range(CHUNKS):
        client.put_object(Bucket="busy", Key=f"in/{number:03d}.parquet", Body=file.getvalue())
    client.close()
    (tmp_path / "busy_transforms.py").write_text("def same(frame):\n    return frame\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with running_proxy(urlsplit(seaweedfs.endpoint).port or 80) as proxy:
        for name, value in {
            "CHUNKMAP_S3__ENDPOINT_URL": proxy.endpoint("driver"),
            "CHUNKMAP_S3__ACCESS_KEY_ID": seaweedfs.key_id,
            "CHUNKMAP_S3__SECRET_ACCESS_KEY": seaweedfs.secret,
            "CHUNKMAP_S3__REGION": "us-east-1",
            "CHUNKMAP_STATE_DIR": str(tmp_path / "state"),
            "CHUNKMAP_TRANSFORMS__ALLOW": '["busy_transforms"]',
        }.items():
            monkeypatch.setenv(name, value)
        proxy.capacity, proxy.service_seconds = CAPACITY, 0.005
        settings = load_settings()
        job = Job.model_validate(
            {
                "name": "busy",
                "input": {"uri": "s3://busy/in/"},
                "chunks": {"per_file": True},
                "transform": "busy_transforms:same",
                "output": {"uri": "s3://busy/out/"},
            }
        )
        storage = open_storage(settings)
        summary = run_serially(job, settings, storage)
        refused = sum(act == "503" for _, act in proxy.log)
        ledger = Ledger(storage, summary.output, summary.run)
        progress = ledger.read()
        requests = attempts_of(read_driver(storage, ledger.prefix))[0].requests
    assert summary.rows_out == 10 * CHUNKS
    assert progress.failures.is_empty() and progress.completions.height == CHUNKS
    # Listing, footers, and what is published: hundreds of requests, many at a time.
    assert len(proxy.log) > 4 * CHUNKS
    # 557 with a limit that stays.
    assert 0 < refused < 2 * CHUNKS
    limit = REGISTRY.get_sample_value("chunkmap_s3_request_limit")
    assert limit is not None and limit <= 3 * CAPACITY
    assert 0 < requests.throttled <= refused and 1 <= requests.request_limit <= CAPACITY
