"""Pages that may be missing, links that are none, and secrets that answers repeat."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config.ingest import Http, IngestWindow
from pipeline.ingest.errors import SourceError
from tests.ingest.conftest import PAGES, World, orders
from tests.servers.api import Reply

Worlds = Callable[..., World]
AUTH = {"header": "X-Key", "env": "SHOP_TOKEN"}


def _page(records: list[dict[str, object]], **meta: object) -> Reply:
    return Reply(body=json.dumps({"data": records, "meta": meta}).encode())


@pytest.mark.parametrize(
    "pages",
    [{"by": "cursor", "path": "meta.nxt"}, {"by": "link", "path": "meta.nxt"}],
    ids=lambda pages: str(pages["by"]),
)
def test_a_page_that_does_not_say_what_follows_is_refused_with_its_keys(
    world: Worlds, pages: dict[str, Any]
) -> None:
    it = world(script=lambda query, times: _page(orders(3), next="c3"))
    with pytest.raises(SourceError, match=r"no 'meta.nxt' .* the keys 'next' in 'meta'") as caught:
        it.ingest(http={"pages": pages})
    assert caught.value.hint is not None
    assert "http.pages.optional: true" in caught.value.hint
    assert it.table_log.head()[0].current == 0


def test_an_api_that_leaves_the_cursor_out_of_a_single_page_is_read_when_that_is_declared(
    world: Worlds,
) -> None:
    it = world(by="cursor", script=lambda query, times: _page(orders(3)))
    with pytest.raises(SourceError, match=r"no 'meta.next'"):
        it.ingest()
    summary = it.ingest(http={"pages": PAGES["cursor"] | {"optional": True}})
    assert (summary.rows, summary.asked) == (3, 0)


@pytest.mark.parametrize(
    "page", [_page([]), _page(orders(3), next=None), _page(orders(3), next=""), Reply(204, b"")]
)
def test_a_page_that_says_that_none_follows_is_the_last(world: Worlds, page: Reply) -> None:
    it = world(by="cursor", script=lambda query, times: page)
    assert it.ingest(output={"mode": "append"}).pages == 1


def test_one_step_of_a_window_that_names_a_next_page_vouches_for_the_others(
    world: Worlds,
) -> None:
    it = world(15, by="cursor")
    it.api.script = lambda query, times: None if "a=2024-03-01" in query else _page(orders(2))
    window = {"from": "2024-03-01", "to": "2024-03-04", "parameters": ["a", "b"], "step": "1d"}
    assert it.ingest(window=window).rows == 19


@pytest.mark.parametrize("link", ["http://[", "/x\x01y"])
def test_links_that_are_no_addresses_are_named(world: Worlds, link: str) -> None:
    it = world(script=lambda query, times: _page(orders(1), next=link))
    with pytest.raises(SourceError, match="names a next page whose address is none"):
        it.ingest(http={"pages": {"by": "link", "path": "meta.next"}})


@pytest.mark.parametrize(
    ("secret", "body"),
    [
        ("abc/def/ghi", rb'{"data": [{"id": 1, "said": "abc\/def\/ghi"}]}'),
        ("abc/def/ghi", b'{"data": [{"id": 1}], "meta": {"next": "?k=abc%2Fdef%2Fghi"}}'),
        ("id", b'{"data": [{"id": 1}]}'),
    ],
)
def test_secrets_that_answers_repeat_are_not_stored(
    world: Worlds, monkeypatch: pytest.MonkeyPatch, secret: str, body: bytes
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", secret)
    it = world(script=lambda query, times: Reply(body=body))
    with pytest.raises(SourceError, match=r"contains the secret of http\.auth"):
        it.ingest(http={"auth": AUTH, "pages": {"by": "link", "path": "meta.next"}})
    assert not it.state("pages/")


@pytest.mark.parametrize("name", ["key", "jwt", "Cookie", "sessionid"])
def test_names_of_secrets_are_refused(name: str) -> None:
    for part in ("params", "headers"):
        with pytest.raises(ValueError, match="looks like a secret"):
            Http.model_validate({"url": "https://a.example/x", part: {name: "v"}})


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("%Y-%m-%dT%H:%M:%S.%fZ", ("2024-02-29T22:00:00.000000Z", "2024-03-01T21:59:59.999999Z")),
        ("%Y-%m-%d %R", ("2024-02-29 22:00", "2024-03-01 21:59")),
        ("%Y-%m-%dT%H:%M%z", ("2024-03-01T00:00+0200", "2024-03-01T23:59+0200")),
        ("%Y-%m-%d", ("2024-03-01", "2024-03-01")),
    ],
)
def test_the_included_end_of_a_window(form: str, values: tuple[str, str]) -> None:
    window = IngestWindow.model_validate(
        {
            "from": "2024-03-01T00:00+02:00",
            "to": "2024-03-02T00:00+02:00",
            "parameters": ["a", "b"],
            "format": form,
            "includes_end": True,
        }
    )
    first, last = window.values(*window.steps()[0])
    assert (first[1], last[1]) == values
