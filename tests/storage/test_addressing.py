"""A bucket in the path, or in the host's name: all three clients do as the settings say."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import polars as pl
import pytest

from pipeline.config.settings import Settings
from pipeline.storage import Storage, open_storage, scan_options
from tests.servers.http import Proxy, serve
from tests.servers.launching import BUCKET, Server

HOST = "s3.test"


class _ByHost(Proxy):
    """An HTTP proxy, so that names need not resolve: the host's first label becomes the path's."""

    hosts: set[str]

    def forwarded(self, body: bytes) -> tuple[str, Mapping[str, str]]:
        address = urlsplit(self.path)
        assert address.hostname is not None
        self.hosts.add(address.hostname)
        path = self.path.partition(address.netloc)[2]
        if address.hostname != HOST:
            path = "/" + address.hostname.removesuffix("." + HOST) + path
        return path, {k: v for k, v in self.headers.items() if k.lower() != "host"}


@pytest.fixture
def hosts(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the hosts that requests went to."""
    hosts: set[str] = set()
    with serve(_ByHost, behind=moto.endpoint, hosts=hosts) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield hosts


@pytest.mark.parametrize(
    ("addressing", "host"), [(None, HOST), ("path", HOST), ("virtual", f"{BUCKET}.{HOST}")]
)
def test_each_client_addresses_the_bucket_as_the_settings_say(
    addressing: str | None, host: str, hosts: set[str]
) -> None:
    s3 = {"endpoint_url": f"http://{HOST}", "addressing": addressing, "copied_bytes": 0}
    keys = {"access_key_id": "test", "secret_access_key": "test"}
    settings = Settings.model_validate({"s3": {**s3, **keys}})
    storage = open_storage(settings)
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
    for use in (obstore, uploads, polars):
        hosts.clear()
        use(storage, settings, prefix)
        assert hosts == {host}, use


def obstore(storage: Storage, settings: Settings, prefix: str) -> None:
    storage.put_new(prefix + "a", b"x")
    assert storage.get(prefix + "a").data == b"x"
    assert [info.uri for info in storage.objects(prefix)] == [prefix + "a"]


def uploads(storage: Storage, settings: Settings, prefix: str) -> None:
    buffer = io.BytesIO()
    pl.DataFrame({"n": [1, 2]}).write_parquet(buffer)
    staged = storage.stage(prefix + "b.parquet", buffer.getbuffer(), "attempt", prefix)
    assert storage.complete([staged]) == []


def polars(storage: Storage, settings: Settings, prefix: str) -> None:
    options = scan_options(settings, prefix)
    frame = pl.scan_parquet(prefix + "b.parquet", storage_options=options, glob=False)
    assert frame.collect()["n"].to_list() == [1, 2]
