"""A bucket in the path, or in the host's name: all three clients do as the settings say."""

from __future__ import annotations

import http.client
import io
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import polars as pl
import pytest

from pipeline.config.settings import Settings
from pipeline.storage import Storage, open_storage, scan_options
from tests.servers.launching import BUCKET, Server

HOST = "s3.test"


class Forward(BaseHTTPRequestHandler):
    """An HTTP proxy, so that names need not resolve: the host's first label becomes the path's."""

    protocol_version = "HTTP/1.1"
    upstream: str
    hosts: set[str]

    def _forward(self) -> None:
        at = urlsplit(self.path)
        assert at.hostname is not None
        self.hosts.add(at.hostname)
        path = self.path.partition(at.netloc)[2]
        if at.hostname != HOST:
            path = "/" + at.hostname.removesuffix("." + HOST) + path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = http.client.HTTPConnection(urlsplit(self.upstream).netloc)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        server.request(self.command, path, body, headers)
        reply = server.getresponse()
        data = reply.read()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        server.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hosts(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the hosts that requests went to."""
    hosts: set[str] = set()
    handler = type("Handler", (Forward,), {"upstream": moto.endpoint, "hosts": hosts})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield hosts
        server.shutdown()
        thread.join()


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
