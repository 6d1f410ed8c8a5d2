"""The cost of a listing does not depend on other objects: workers list with every batch."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.suite.proxy import CountingProxy
from pipeline.config.settings import Settings
from pipeline.storage import open_storage
from tests.servers.launching import BUCKET, Server

OBJECTS = 2_500


@pytest.mark.integration
def test_a_listing_takes_as_many_pages_as_it_has_to(seaweedfs: Server) -> None:
    folder = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
    storage = open_storage(Settings(s3=seaweedfs.settings()))
    names = [f"r1-abcd-{number:05d}-x-0001" for number in range(OBJECTS)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.put(folder + name, b""), names))

    with CountingProxy(seaweedfs.endpoint) as proxy:
        counted = seaweedfs.settings().model_copy(update={"endpoint_url": proxy.endpoint})
        storage = open_storage(Settings(s3=counted))

        def pages() -> int:
            return sum(proxy.traffic().requests.get("ListObjects", {}).values())

        assert len(storage.objects(folder)) == OBJECTS
        assert pages() == 3
        assert len(storage.objects(folder + "r1-abcd-01200-")) == 1
        assert pages() == 4
        assert len(storage.after(folder, "r1-abcd-02400")) == 100
        assert pages() == 5
