"""Planning on a real S3 server through s3fs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import s3fs

from partitioning import FsspecReader, ObjectInfo, PlanRequest, TailRequest, plan_dataset
from tests.servers.fixtures import seaweedfs  # noqa: F401
from tests.servers.launching import Server
from tests.support.stores import ids, parquet

pytestmark = pytest.mark.integration

# SeaweedFS turns `a//b` into `a/b`: double slashes are proven on the stores in memory.
KEYS = [
    "a[1].parquet", "a1.parquet", "what?.parquet", "star*.parquet", "hash#.parquet",
    "percent%2F.parquet", "a b.parquet", "plus+.parquet", "ünïcode-日本.parquet",
]  # fmt: skip


@pytest.fixture(scope="module")
def fs(seaweedfs: Server) -> Any:  # noqa: F811
    return s3fs.S3FileSystem(
        key=seaweedfs.key_id,
        secret=seaweedfs.secret,
        endpoint_url=seaweedfs.endpoint,
        client_kwargs={"region_name": "us-east-1"},
        use_listings_cache=False,
    )


@pytest.fixture
def folder(seaweedfs: Server) -> str:  # noqa: F811
    return f"{seaweedfs.bucket}/{uuid.uuid4().hex}"


def test_odd_keys_survive_exactly(fs: Any, folder: str) -> None:
    objects = {}
    for number, key in enumerate(KEYS):
        data = parquet(ids(number * 5, number * 5 + 5), 2)
        fs.pipe_file(f"{folder}/odd/{key}", data)
        objects[f"s3://{folder}/odd/{key}"] = data
    reader = FsspecReader(fs)
    plan = plan_dataset(PlanRequest(f"s3://{folder}/odd", per_file=True), reader).plan
    found = [chunk.fragments[0] for chunk in plan.chunks()]
    assert [f.uri for f in found] == sorted(objects)
    assert [f.size for f in found] == [len(objects[f.uri]) for f in found]
    for uri in objects:
        alone = plan_dataset(PlanRequest(uri), reader).plan
        assert [c.fragments[0].uri for c in alone.chunks()] == [uri]


def test_a_footer_is_of_the_listed_version_or_refused(fs: Any, folder: str) -> None:
    path = f"{folder}/a.parquet"
    fs.pipe_file(path, parquet(ids(0, 5)))
    reader = FsspecReader(fs)
    old = reader.head(f"s3://{path}")
    fs.pipe_file(path, parquet(ids(5, 10)))
    new = reader.head(f"s3://{path}")
    lost = ObjectInfo(f"s3://{folder}/none.parquet", old.etag, 10)
    requests = [TailRequest(info, 8) for info in (old, new, lost)]
    tails = {t.object: t for t in reader.read_tails(requests, 4)}
    assert (tails[new].data or b"")[-4:] == b"PAR1"
    assert tails[old].data is None
    assert "replaced since it was listed" in str(tails[old].error)
    assert "FileNotFoundError" in str(tails[lost].error)


def test_a_new_listing_is_not_an_old_one_from_a_cache(fs: Any, folder: str) -> None:
    reader = FsspecReader(fs)
    request = PlanRequest(f"s3://{folder}/")
    fs.pipe_file(f"{folder}/a.parquet", parquet(ids(0, 5)))
    first = plan_dataset(request, reader).plan
    fs.pipe_file(f"{folder}/b.parquet", parquet(ids(5, 10)))
    second = plan_dataset(request, reader, previous=first)
    assert second.changes.added == (f"s3://{folder}/b.parquet",)
    assert (second.plan.rows, second.explain.footers_read) == (10, 1)
