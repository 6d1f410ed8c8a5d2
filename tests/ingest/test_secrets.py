"""The secret of requests is sent, and is in nothing that is stored, logged or shown."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import zstandard

from pipeline.config.ingest import Http, Ingest, parse_ingest
from pipeline.config.secret import Secret
from pipeline.errors import ChunkmapError, JobError, UsageError
from pipeline.ingest.errors import SourceError
from tests.ingest.conftest import World, orders
from tests.servers.api import Reply

Worlds = Callable[..., World]
LONG, SHORT = "s3cr3t/t0ken+x", "q7#Z"
PLACES: dict[str, dict[str, str]] = {
    "header": {"header": "X-Key"},
    "cookie": {"header": "Cookie", "value": "session={secret}"},
    "parameter": {"parameter": "apikey"},
}


def _echoes(secret: str) -> dict[str, Reply]:
    """Answers that repeat the secret, each in another place."""

    def page(**more: Any) -> bytes:
        return json.dumps({"data": orders(2), "meta": {"next": None}, **more}).encode()

    escaped = "".join(f"\\u{ord(letter):04x}" for letter in secret)
    return {
        "record": Reply(body=page(data=[{"id": 1, "you": f"key {secret}!"}])),
        "key": Reply(body=page(data=[{"id": 1, secret: 2}])),
        "escapes": Reply(body=page(data=[{"id": 1, "you": "?"}]).replace(b"?", escaped.encode())),
        "quoted": Reply(body=page(you=f"/x?k={quote(secret, safe='')}")),
        "utf-16": Reply(body=page(you=secret).decode().encode("utf-16")),
        "cursor": Reply(body=page(meta={"next": f"c-{secret}"})),
        "link": Reply(headers={"Link": f'</api/orders?k={quote(secret)}>; rel="next"'}),
        "cookie": Reply(body=page(), headers={"Set-Cookie": f"a={quote(secret)}", "X-You": secret}),
        "type": Reply(kind=f"text/{secret}"),
        "encoding": Reply(headers={"Content-Encoding": secret}),
        "redirect": Reply(302, headers={"Location": f"http://{quote(secret, safe='')}.example/"}),
        "error": Reply(400, f"{'no ' * 70}{secret} is wrong".encode()),
        "denied": Reply(401, secret.encode()),
        "cut": Reply(body=page(), missing=9),
        "away": Reply(503, secret.encode()),
    }


def _written(it: World, error: BaseException | None) -> Iterator[str]:
    """All texts of the storage, unpacked, and of an error with what it came from."""
    for uri, item in it.backend.stored.items():
        data = item.data
        yield uri + data.decode("latin-1")
        start = data.find(zstandard.FRAME_HEADER) if uri.endswith(".zst") else -1
        if start >= 0:
            unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(data[start:])
            yield unpacked.decode("latin-1")
    if error is not None:
        yield pickle.dumps(error).decode("latin-1")
        yield "".join(traceback.TracebackException.from_exception(error).format())
    while error is not None:
        yield f"{error!r} {vars(error)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize("secret", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("echo", _echoes("x"))
def test_a_secret_that_answers_repeat_is_nowhere(
    world: Worlds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    secret: str,
    echo: str,
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", secret)
    caplog.set_level(logging.DEBUG)
    for number, place in enumerate(PLACES.values()):
        by = {"by": "link"} if echo == "link" else {"by": "cursor", "path": "meta.next"}
        it = world(script=lambda query, times: _echoes(secret)[echo])
        error: BaseException | None = None
        shown = ""
        try:
            auth = {"env": "SHOP_TOKEN", **place}
            http = {"auth": auth, "pages": by, "retries": 0, "params": {"n": number}}
            shown = json.dumps(it.ingest(http=http).to_dict(), default=str)
        except ChunkmapError as caught:
            error = caught
        sent = it.api.headers[0].get("X-Key", "") + it.api.headers[0].get("Cookie", "")
        assert secret in sent or quote(secret, safe="") in it.api.queries[0]
        texts = [*_written(it, error), shown, caplog.text]
        for form in (secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1]):
            assert not [text for text in texts if form in text]
        assert error is None or isinstance(error, SourceError)


def test_a_parameter_with_the_secret_is_not_in_the_addresses_of_pages(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the API repeats it in the address of the next page."""
    monkeypatch.setenv("SHOP_TOKEN", LONG)
    it = world(20, by="link")
    it.api.script = lambda query, times: (
        None
        if "page=2" in query
        else Reply(
            body=json.dumps({"data": orders(10)}).encode(),
            headers={"Link": f'<{it.api.url}?apikey={quote(LONG)}&page=2>; rel="next"'},
        )
    )
    auth = {"env": "SHOP_TOKEN", "parameter": "apikey"}
    summary = it.ingest(http={"auth": auth, "max_pages": 2, "pages": {"by": "link"}})
    assert summary.pages == 2
    assert [query.count("apikey=") for query in it.api.queries] == [1, 1]


@pytest.mark.parametrize("part", ["params", "headers"])
@pytest.mark.parametrize(
    "name",
    [
        *("key", "jwt", "Cookie", "sessionid", "PHPSESSID", "appkey", "x-key", "client_key"),
        *("Ocp-Apim-Subscription-Key", "api.key", "sid"),
    ],
)
def test_names_of_secrets_are_refused_without_their_values(part: str, name: str) -> None:
    text = f"name: a\nhttp: {{url: 'https://a.example/x', {part}: {{{name}: {LONG}}}}}\n"
    with pytest.raises(JobError, match="looks like a secret") as caught:
        parse_ingest(text + "output: {uri: s3://b/o/}\n")
    assert LONG not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["sort_key", "partition-key", "monkey", "keys", "obsession"])
def test_other_names_are_not(name: str) -> None:
    Http.model_validate({"url": "https://a.example/x", "params": {name: "v"}})


def test_values_that_are_secrets_are_refused() -> None:
    with pytest.raises(ValueError, match="looks like a secret"):
        Http.model_validate(
            {"url": "https://a.example/x", "headers": {"X-Forward": f"Bearer {LONG}"}}
        )


def test_a_definition_that_contains_the_secret_is_refused(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "0123456789")
    it = world(by="cursor")
    with pytest.raises(UsageError, match="the definition contains the secret") as caught:
        it.ingest(http={"params": {"bot": "0123456789"}, "auth": {"env": "SHOP_TOKEN"}})
    assert "0123456789" not in str(caught.value)
    assert it.backend.stored == {}


def test_headers_that_cannot_be_sent_are_refused_when_they_are_read() -> None:
    for auth in ({"value": "Bearer\n{secret}"}, {"value": "Schlüssel {secret}"}):
        with pytest.raises(ValueError, match="value"):
            Http.model_validate({"url": "https://a.example/x", "auth": {"env": "A", **auth}})


def test_a_secret_shows_itself_nowhere() -> None:
    pair = base64.b64encode(b"shop:pass word 1").decode()
    secret = Secret(pair)
    assert repr(secret) == "Secret()"
    for text in (pair, quote(pair), "as shop:pass word 1", "pass%20word%201", r"pass\u0020word 1"):
        assert "pass" not in secret.masked(f"said {text}")
        assert pair not in secret.masked(f"said {text}")
    assert secret.masked_body(b'["shop", "pass"]') == b'["shop", "pass"]'
    assert Secret().masked("a\x1bb") == r"a\x1bb"


def test_the_text_of_a_definition_holds_no_secret() -> None:
    """It is a parameter of the flow, which Prefect stores."""
    auth = {"env": "SHOP_TOKEN", "parameter": "apikey"}
    ingest = Ingest.model_validate(
        {
            "name": "a",
            "http": {"url": "https://a.example/x", "auth": auth},
            "output": {"uri": "s3://b/o/"},
        }
    )
    assert parse_ingest(ingest.to_yaml()) == ingest
