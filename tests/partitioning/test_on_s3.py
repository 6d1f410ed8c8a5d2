"""Planning on a real S3 server through s3fs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.micro.planning_server import BUCKET, Server, filesystem, serve, weed
from partitioning import FsspecReader, ObjectInfo, PlanRequest, TailRequest, plan_dataset
from tests.support.stores import ids, parquet

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(weed() is None, reason="SeaweedFS is not installed"),
]

# SeaweedFS turns `a//b` into `a/b`: double slashes are proven on the stores in memory.
KEYS = [
    "a[1].parquet", "a1.parquet", "what?.parquet", "star*.parquet", "hash#.parquet",
    "percent%2F.parquet", "a b.parquet", "plus+.parquet", "ünïcode-日本.parquet",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture(scope="module")
def fs(server: Server) -> Any:
    return filesystem(server)


def test_odd_keys_survive_exactly(fs: Any) -> None:
    objects = {}
    for number, key in enumerate(KEYS):
        data = parquet(ids(number * 5, number * 5 + 5), 2)
        fs.pipe_file(f"{BUCKET}/odd/{key}", data)
        objects[f"s3://{BUCKET}/odd/{key}"] = data
    reader = FsspecReader(fs)
    plan = plan_dataset(PlanRequest(f"s3://{BUCKET}/odd", per_file=True), reader).plan
    found = [chunk.fragments[0] for chunk in plan.chunks()]
    assert [f.uri for f in found] == sorted(objects)
    assert [f.size for f in found] == [len(objects[f.uri]) for f in found]
    for uri in objects:
        alone = plan_dataset(PlanRequest(uri), reader).plan
        assert [c.fragments[0].uri for c in alone.chunks()] == [uri]


def test_a_footer_is_of_the_listed_version_or_refused(fs: Any) -> None:
    path = f"{BUCKET}/versions/a.parquet"
    fs.pipe_file(path, parquet(ids(0, 5)))
    reader = FsspecReader(fs)
    old = reader.head(f"s3://{path}")
    fs.pipe_file(path, parquet(ids(5, 10)))
    new = reader.head(f"s3://{path}")
    lost = ObjectInfo(f"s3://{BUCKET}/versions/none.parquet", old.etag, 10)
    requests = [TailRequest(info, 8) for info in (old, new, lost)]
    tails = {t.object: t for t in reader.read_tails(requests, 4)}
    assert (tails[new].data or b"")[-4:] == b"PAR1"
    assert tails[old].data is None
    assert "replaced since it was listed" in str(tails[old].error)
    assert "FileNotFoundError" in str(tails[lost].error)


def test_a_new_listing_is_not_an_old_one_from_a_cache(fs: Any) -> None:
    reader = FsspecReader(fs)
    request = PlanRequest(f"s3://{BUCKET}/growing/")
    fs.pipe_file(f"{BUCKET}/growing/a.parquet", parquet(ids(0, 5)))
    first = plan_dataset(request, reader).plan
    fs.pipe_file(f"{BUCKET}/growing/b.parquet", parquet(ids(5, 10)))
    second = plan_dataset(request, reader, previous=first)
    assert second.changes.added == (f"s3://{BUCKET}/growing/b.parquet",)
    assert (second.plan.rows, second.explain.footers_read) == (10, 1)
