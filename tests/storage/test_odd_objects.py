"""An input object whose key no client can spell is named, or skipped as the job says."""

from __future__ import annotations

import io
import uuid

import polars as pl
import pytest

from partitioning import BadObjectsError, PlanRequest, plan_dataset
from pipeline.storage import Storage, StorageReader
from pipeline.storage.s3_backend import S3Backend
from tests.servers.launching import BUCKET, Server

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", ["seaweedfs", pytest.param("ministack", marks=pytest.mark.long)])
def test_a_key_with_a_control_character(name: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(name)
    storage = Storage({"s3": S3Backend(server.access)})
    folder = f"{uuid.uuid4().hex}/"
    buffer = io.BytesIO()
    pl.DataFrame({"id": [1]}).write_parquet(buffer)
    client = server.client()
    for key in ("good.parquet", "new\nline.parquet"):
        client.put_object(Bucket=BUCKET, Key=folder + key, Body=buffer.getvalue())
    client.close()
    wanted = PlanRequest(f"s3://{BUCKET}/{folder}")
    with pytest.raises(BadObjectsError, match="U\\+000A"):
        plan_dataset(wanted, StorageReader(storage))
    lenient = PlanRequest(f"s3://{BUCKET}/{folder}", on_bad_object="skip")
    assert plan_dataset(lenient, StorageReader(storage)).plan.rows == 1
