"""Pages that may be missing, links that are none, and secrets that answers repeat."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pipeline.config.ingest import Http, IngestWindow
from pipeline.ingest.errors import SourceError
from tests.ingest.conftest import World, orders
from tests.servers.api import Reply

Worlds = Callable[..., World]
AUTH = {"header": "X-Key", "env": "SHOP_TOKEN"}


def _page(records: list[dict[str, object]], **meta: object) -> Reply:
    return Reply(body=json.dumps({"data": records, "meta": meta}).encode())


@pytest.mark.parametrize(("meta", "notes"), [({}, 1), ({"next": None}, 0)])
def test_a_first_page_without_the_keys_of_the_next_is_noted(
    world: Worlds, meta: dict[str, object], notes: int
) -> None:
    it = world(by="cursor", script=lambda query, times: _page(orders(3), **meta))
    found = [note for note in it.ingest().notes if "meta.next" in note]
    assert len(found) == notes


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
