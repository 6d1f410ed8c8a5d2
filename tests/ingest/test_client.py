"""Answers that cannot be used, retries, waits, and the secret that nobody sees."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.ingest.errors import SourceDeniedError, SourceError, SourceUnavailableError
from pipeline.ingest.store import find_ingests
from tests.ingest.conftest import OUTPUT, World, orders
from tests.servers.api import Reply

Worlds = Callable[..., World]
SECRET = "s3cr3t-t0ken"
AUTH = {"auth": {"header": "X-Key", "value": "key {secret}", "env": "SHOP_TOKEN"}}


def first(reply: Reply, times: int = 1) -> Callable[[str, int], Reply | None]:
    """Answer the first requests of the second page with something else."""
    return lambda query, asked: reply if "after" in query and asked <= times else None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500),
        Reply(502, b"<html>", "text/html"),
        Reply(503),
        Reply(408),
        Reply(429, headers={"Retry-After": "0"}),
        Reply(401, headers={"Retry-After": "0"}),
        Reply(403, headers={"Retry-After": "0"}),
        Reply(202, b'{"data": [{"id": 99}]}'),
        Reply(body=json.dumps({"data": orders(5)}).encode(), missing=20),
        Reply(body=b'{"data": [{"id": 1}'),
        Reply(body=b'{"data": [{"id": NaN}]}'),
        Reply(body=b"[" * 100_000),
    ],
    ids=lambda reply: f"{reply.status}-{reply.missing}-{len(reply.body)}-{len(reply.headers)}",
)
def test_what_may_pass_is_asked_again(world: Worlds, reply: Reply) -> None:
    it = world(20, by="cursor", script=first(reply, times=2))
    summary = it.ingest()
    assert (summary.retries, summary.pages, summary.requests) == (2, 2, 4)
    assert it.frame().height == 20


def test_retries_end(world: Worlds) -> None:
    it = world(20, by="cursor", script=first(Reply(503), times=99))
    with pytest.raises(SourceUnavailableError, match="503") as caught:
        it.ingest(http={"retries": 3})
    assert it.api.queries.count("after=c10") == 4
    assert caught.value.hint is not None
    assert "pages that were fetched are kept" in caught.value.hint


@pytest.mark.parametrize("by_date", [False, True])
def test_retry_after_is_waited_for_by_all_requests(world: Worlds, by_date: bool) -> None:
    moments: list[tuple[str, float]] = []

    def script(query: str, times: int) -> Reply | None:
        moments.append((query, time.monotonic()))
        if "after" in query and times == 1:
            text = formatdate(time.time() + 1.6, usegmt=True) if by_date else "1"
            return Reply(429, headers={"Retry-After": text})
        return None

    it = world(20, by="cursor", script=script)
    it.ingest()
    [_, (_, refused), (_, again)] = moments
    assert 0.5 <= again - refused < 5


@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "-1",
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999",
    ],
)
def test_a_wait_that_is_none_is_not_kept(world: Worlds, text: str) -> None:
    it = world(20, by="cursor", script=first(Reply(429, headers={"Retry-After": text})))
    assert it.ingest().rows == 20


def test_a_wait_that_is_too_long_is_refused_with_both_numbers(world: Worlds) -> None:
    reply = Reply(429, headers={"Retry-After": "86400"})
    it = world(20, by="cursor", script=first(reply, times=99))
    with pytest.raises(SourceError, match=r"wait 86,400 s, longer than the 60 s of http.max_wait"):
        it.ingest(http={"max_wait": "1min"})
    assert it.api.queries.count("after=c10") == 1


def test_requests_per_second_are_limited(world: Worlds) -> None:
    it = world(60, by="cursor")
    started = time.monotonic()
    it.ingest(http={"requests_per_second": 20})
    assert time.monotonic() - started >= 5 / 20
    assert len(it.api.queries) == 6


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_not_tried_again(
    world: Worlds, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    body = json.dumps({"error": "bad token", "token": SECRET}).encode()
    it = world(20, by="cursor", script=lambda query, times: Reply(status, body))
    with pytest.raises(SourceDeniedError, match=f"answers {status}") as caught:
        it.ingest(http=AUTH)
    assert len(it.api.queries) == 1
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None
    assert "SHOP_TOKEN" in caught.value.hint


@pytest.mark.parametrize(
    ("reply", "message", "hint"),
    [
        (Reply(404, b'{"message": "no such thing"}'), r'404 Not Found: \{"message": "no s', "url"),
        (Reply(206, b'{"data": [{"id": 1}]}'), "206 Partial Content", "http.params"),
        (Reply(400, b"x" * 5000), r"400 Bad Request: x+ …$", "http.params"),
        (Reply(301, headers={"Location": "https://other.example/x?key=1"}), "other.example", "url"),
        (Reply(kind="text/html", body=b"<html>"), "answers text/html, not JSON", "Accept"),
        (Reply(kind=""), "without a content type", "Accept"),
        (
            Reply(body=b'{"items": []}'),
            r"has no 'data': there are the keys 'items'",
            "http.records",
        ),
        (Reply(body=b'{"data": 5}'), r"'data' is a whole number, not a list", "http.records"),
        (Reply(body=b'{"data": [[1]]}'), r"record 1 is a list, not an object", "http.records"),
        (Reply(body=b"5"), r"has no 'data': it is a whole number", "http.records"),
        (
            Reply(body=b" " * 3000),
            r"answers 3,000 bytes or more; http.max_page_bytes is 2,000",
            "size",
        ),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_answers_that_cannot_be_used_are_named_and_not_asked_again(
    world: Worlds, reply: Reply, message: str, hint: str
) -> None:
    it = world(20, by="cursor", script=lambda query, times: reply)
    with pytest.raises(SourceError, match=message) as caught:
        it.ingest(http={"max_page_bytes": 2000})
    assert len(it.api.queries) == 1
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_a_slow_answer_ends_with_the_timeout(world: Worlds) -> None:
    it = world(20, by="cursor", script=first(Reply(seconds=0.5), times=99))
    with pytest.raises(SourceUnavailableError, match=r"nothing for 0.1 s \(http.timeout\)"):
        it.ingest(http={"timeout": 0.1, "retries": 0})


def test_nobody_answers(world: Worlds) -> None:
    it = world(20, by="cursor")
    it.api.url = "http://127.0.0.1:9/api/orders"
    with pytest.raises(SourceUnavailableError, match=r"127\.0\.0\.1:9"):
        it.ingest(http={"retries": 1})


def test_an_unknown_host_is_named_at_once(world: Worlds) -> None:
    it = world(20, by="cursor")
    it.api.url = "http://no-such-host.invalid/api/orders"
    with pytest.raises(SourceError, match=r"there is no host 'no-such-host.invalid'") as caught:
        it.ingest()
    assert not isinstance(caught.value, SourceUnavailableError)


def test_a_link_to_another_host_is_refused(world: Worlds) -> None:
    link = {"Link": '<http://evil.example/api/orders?page=2>; rel="next"'}
    it = world(20, by="link", script=lambda query, times: Reply(headers=link))
    with pytest.raises(SourceError, match=r"names http://evil.example as the host"):
        it.ingest()


def test_a_link_header_that_cannot_be_read_does_not_end_the_pages(world: Worlds) -> None:
    it = world(20, by="link", script=lambda query, times: Reply(headers={"Link": "page 2"}))
    with pytest.raises(SourceError, match=r"its Link header, .* cannot be read"):
        it.ingest()
    assert not it.table_log.manifest().commits


def test_the_next_address_may_be_in_the_page(world: Worlds) -> None:
    def script(query: str, times: int) -> Reply:
        following = None if "page" in query else "/api/orders?page=2"
        return Reply(body=json.dumps({"results": [{"id": len(query)}], "next": following}).encode())

    it = world(0, script=script)
    it.ingest(http={"pages": {"by": "link", "path": "next"}, "records": "results"})
    assert it.frame()["id"].to_list() == [0, 6]


# -- the secret -----------------------------------------------------------------------------------


def test_the_secret_is_sent_and_nowhere_else(
    world: Worlds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of an API that repeats what it was sent."""
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    caplog.set_level(logging.DEBUG)
    echo = json.dumps(
        {"data": [{"id": 1, "you": f"key {SECRET}"}], "meta": {"next": None}}
    ).encode()
    it = world(0, by="cursor", script=lambda query, times: Reply(body=echo))
    summary = it.ingest(http=AUTH)
    assert it.api.headers[0]["X-Key"] == f"key {SECRET}"
    assert it.frame()["you"].to_list() == ["key ********"]
    stored = b"".join(one.data for one in it.backend.stored.values())
    assert SECRET.encode() not in stored
    # Pages are compressed: look into them.
    [record] = find_ingests(it.backend.storage(), OUTPUT).records
    from tests.ingest.test_run import store_of

    store = store_of(it)
    assert record.ingest == store.ingest
    assert SECRET.encode() not in store.body(store.page(0, 1))
    assert SECRET not in json.dumps(summary.to_dict(), default=str) + caplog.text


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_errors_do_not_show_the_secret(
    world: Worlds,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    caplog.set_level(logging.DEBUG)
    reply = Reply(status, f"your key {SECRET} is wrong".encode())
    it = world(0, by="cursor", script=lambda query, times: reply)
    with pytest.raises(SourceError) as caught:
        it.ingest(http={**AUTH, "retries": 1})
    texts: list[Any] = [str(caught.value), caught.value.hint, repr(caught.value), caplog.text]
    texts.append(pickle.dumps(caught.value).decode("latin-1"))
    error: BaseException | None = caught.value
    while error is not None:
        texts.append(repr(error) + repr(vars(error)))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert not [text for text in texts if SECRET in str(text)]


def test_a_next_address_with_the_secret_is_not_stored(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    it = world(20, by="link")
    link = {"Link": f'<{it.api.url}?page=2&key={SECRET}>; rel="next"'}
    it.api.script = lambda query, times: Reply(headers=link)
    with pytest.raises(SourceError, match="contains the secret") as caught:
        it.ingest(http=AUTH)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "variable SHOP_TOKEN holds no secret"),
        ("", "holds no secret"),
        ("a\nb-secret", "characters that a header cannot have"),
        ("sécret", "characters that a header cannot have"),
    ],
)
def test_a_secret_that_cannot_be_sent_is_refused_before_anything_is_stored(
    world: Worlds, value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("SHOP_TOKEN", value)
    it = world(20, by="cursor")
    with pytest.raises(UsageError, match=message) as caught:
        it.ingest(http=AUTH)
    assert not value or value not in str(caught.value)
    assert it.backend.stored == {}
    assert it.api.queries == []
