"""A stack's workers read from a service that is not the stack's, with credentials of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.world import World, parquet, sales, tear_down
from tests.servers import launching
from tests.servers.launching import BUCKET, Server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.xdist_group("two-services"),
]


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service beside the stack's own."""
    with launching.seaweedfs(tmp_path_factory.mktemp("other")) as server:
        yield server


def test_commands_and_workers_find_each_bucket_where_it_is(tmp_path: Path, other: Server) -> None:
    world = World(
        tmp_path,
        {
            "ARCHIVE_AWS_ACCESS_KEY_ID": other.key_id,
            "ARCHIVE_AWS_SECRET_ACCESS_KEY": other.secret,
        },
    )
    for folder in ("conf", "shop"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("def same(frame):\n    return frame\n")
    (tmp_path / "conf" / "base.yaml").write_text(
        "transforms: {allow: [shop]}\n"
        "dask: {workers: 1, connect_timeout: 60}\n"
        "prefect: {connect_timeout: 60}\n"
        f"s3: {{buckets: {{{BUCKET}: {{endpoint_url: '{other.endpoint}', "
        "env_prefix: ARCHIVE_}}}\n"
    )
    client = other.client()
    for number in range(3):
        body = parquet(sales(number * 100, 100))
        client.put_object(Bucket=BUCKET, Key=f"sales/{number}.parquet", Body=body)
    client.close()
    try:
        up = world.chunkmap("up")
        assert up.code == 0, up.err
        job = world.job("moved", "shop:same", source=f"s3://{BUCKET}/sales/")
        done = world.chunkmap("run", job, "--json")
        assert done.code == 0, done.err
        assert world.frame("s3://demo/out/moved/")["id"].to_list() == list(range(300))
        shown = world.chunkmap("config")
        assert f"s3.buckets.{BUCKET}.env_prefix" in shown.out
        logs = "".join(path.read_text() for path in (tmp_path / ".chunkmap/logs").iterdir())
        for text in (done.out, done.err, shown.out, logs):
            assert other.secret not in text
    finally:
        tear_down(world)
