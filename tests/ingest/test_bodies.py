"""Bodies of answers: within a limit, decompressed or not, and within a time."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from pipeline.ingest.body import BodyError, read_body
from pipeline.ingest.errors import SourceError, SourceUnavailableError
from pipeline.ingest.fetch import run_in_loop
from tests.ingest.conftest import World, orders
from tests.servers.api import Reply
from tests.servers.http import Handler, serve

Worlds = Callable[..., World]
GZIP = {"Content-Encoding": "gzip"}


def read(data: bytes, limit: int, encoding: str = "gzip", step: int = 65_536) -> tuple[bytes, bool]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), step):
            yield data[start : start + step]

    return run_in_loop(lambda: read_body(pieces(), {"content-encoding": encoding}, limit))


def test_a_compressed_bomb_is_not_decompressed() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    tracemalloc.start()
    try:
        body, is_more = read(bomb, 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(body), is_more) == (1 << 20, True)
    assert peak < 8 << 20


@pytest.mark.parametrize("step", [1, 7, 65_536])
def test_what_is_compressed_is_read_as_it_was(step: int) -> None:
    text = json.dumps(orders(50)).encode()
    two = gzip.compress(text[:99]) + gzip.compress(text[99:])
    assert read(two, len(text), step=step) == (text, False)
    assert read(two, len(text) - 1, step=step) == (text[:-1], True)
    assert read(text, len(text), "identity", step) == (text, False)
    assert read(text, 5, "", step) == (text[:5], True)
    assert read(b"", 5) == (b"", False)


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b"x" * 99)[:-5]], ids=["other", "cut"])
def test_what_cannot_be_decompressed_is_refused(data: bytes) -> None:
    with pytest.raises(BodyError):
        read(data, 1000)


def test_only_what_can_be_limited_is_asked_for(world: Worlds) -> None:
    page = json.dumps({"data": orders(3), "meta": {"next": None}}).encode()
    it = world(by="cursor", script=lambda q, n: Reply(body=gzip.compress(page), headers=GZIP))
    assert it.ingest().rows == 3
    assert it.api.headers[0]["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(body=gzip.compress(bytes(10**7)), headers=GZIP), "answers 20,001 bytes or more"),
        (Reply(body=b"x", headers={"Content-Encoding": "zstd"}), "in the encoding 'zstd'"),
    ],
)
def test_answers_that_are_too_large_or_compressed_otherwise_are_refused(
    world: Worlds, reply: Reply, message: str
) -> None:
    it = world(by="cursor", script=lambda query, times: reply)
    with pytest.raises(SourceError, match=message) as caught:
        it.ingest(http={"max_page_bytes": 20_000})
    assert not isinstance(caught.value, SourceUnavailableError)
    assert len(it.api.queries) == 1


class _Drips(Handler):
    """Sends a byte now and then, for ever."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            for _ in range(1000):
                self.wfile.write(b" ")
                time.sleep(0.02)


@contextmanager
def _dripping() -> Iterator[str]:
    with serve(_Drips) as address:
        yield address


def test_an_answer_that_never_ends_is_given_up(world: Worlds) -> None:
    it = world(by="cursor")
    started = time.monotonic()
    with _dripping() as address:
        it.api.url = f"{address}/api/orders"
        with pytest.raises(SourceUnavailableError, match=r"in 0.3 s \(http.page_timeout\)"):
            it.ingest(http={"page_timeout": 0.3, "timeout": 5, "retries": 1})
    assert time.monotonic() - started < 10
