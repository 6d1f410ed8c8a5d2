"""Know which request follows a page. Pure: addresses and parsed answers in, addresses out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from math import ceil
from typing import Any
from urllib.parse import unquote_plus, urlencode, urljoin, urlsplit

import httpx

from pipeline.config.ingest import Http, Ingest
from pipeline.ingest.errors import SourceError
from pipeline.report.humanize import plural

Pairs = tuple[tuple[str, str], ...]
MAX_ADDRESS = 16_384
"""Maximum number of characters of an address."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Pages, each of which leads to the next: those of an ingest, or of a step of its window."""

    number: int
    params: Pairs
    """Query parameters of its requests, without that of the page."""
    label: str = ""
    """Its step of the window, for messages."""


def without_parameter(address: str, name: str) -> str:
    """Return an address without a query parameter."""
    start, mark, query = address.partition("?")
    query, anchor, rest = query.partition("#")
    kept = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name]
    return start + (mark if any(kept) else "") + "&".join(kept) + anchor + rest


def feeds_of(ingest: Ingest) -> list[Feed]:
    """Return the feeds of an ingest."""
    assert ingest.http is not None, "only APIs have feeds"
    params = tuple((name, _text(value)) for name, value in ingest.http.params.items())
    pages = ingest.http.pages
    if pages.size is not None and pages.size_parameter is not None:
        params = (*params, (pages.size_parameter, str(pages.size)))
    if ingest.window is None:
        return [Feed(0, params)]
    steps = (ingest.window.values(*step) for step in ingest.window.steps())
    return [
        Feed(number, (*params, *step), f"{step[0][1]} to {step[1][1]}")
        for number, step in enumerate(steps)
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date) else str(value)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the answer to a request says."""

    document: Any
    """The parsed JSON; None where there is no content."""
    link: str | None = None
    """Target of its Link header to the next page."""


class Paging:
    """The requests of an ingest."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._pages = http.pages

    def records(self, answer: Answer, address: str) -> list[dict[str, Any]]:
        """Return the records of a page.

        Raises:
            SourceError: It has none where the definition says, or they are no objects.
        """
        if answer.document is None:
            return []
        path = self._http.records
        found = self._at(answer.document, path, address) if path else answer.document
        if isinstance(found, dict):
            found = [found]
        elif found is None and path:
            found = []
        if not isinstance(found, list):
            raise SourceError(
                f"{address}: {_where(path)} is {kind_of(found)}, not a list of records",
                hint="set http.records to the keys that lead to the list",
            )
        for number, record in enumerate(found, 1):
            if not isinstance(record, dict):
                raise SourceError(
                    f"{address}: record {number} is {kind_of(record)}, not an object with fields",
                    hint="set http.records to the keys that lead to a list of objects",
                )
        return found

    def first(self, feed: Feed) -> str:
        """Return the address of a feed's first page."""
        return self.numbered(feed, 1, 0) if self._pages.is_numbered else self._address(feed.params)

    def numbered(self, feed: Feed, number: int, step: int) -> str:
        """Return the address of a numbered page.

        Args:
            feed: The feed.
            number: Number of the page, from 1.
            step: Number of records of a full page.
        """
        at = (number - 1) * step if self._pages.by == "offset" else number - 1 + self._pages.first
        return self.at(feed, at)

    def at(self, feed: Feed, value: int) -> str:
        """Return the address of the page that the parameter has this value for."""
        return self._address((*feed.params, (self._pages.name, str(value))))

    def following(
        self, feed: Feed, address: str, answer: Answer, *, number: int, records: int, step: int
    ) -> str | None:
        """Return the address of the page that follows; None after the last.

        Args:
            feed: The feed.
            address: Address of the page.
            answer: The answer.
            number: Number of the page, from 1.
            records: Number of its records.
            step: Number of records of a full page.

        Raises:
            SourceError: The answer does not say what follows, or names another host.
        """
        pages = self._pages
        if pages.by == "none":
            return None
        if pages.is_numbered:
            last = self.last(answer, address, step)
            is_last = records == 0 if last is None else number >= last
            if is_last and last is not None:
                self._refuse_fewer(answer, address, (number - 1) * step + records)
            return None if is_last else self.numbered(feed, number + 1, step)
        if pages.by == "cursor":
            cursor = self._next(answer, address)
            if cursor in (None, "", False):
                return None
            if not isinstance(cursor, str | int):
                raise SourceError(
                    f"{address}: {_where(pages.path)} is {kind_of(cursor)}, not a cursor",
                    hint="set http.pages.path to the keys that lead to the next cursor",
                )
            try:
                return self._address((*feed.params, (pages.name, str(cursor))))
            except UnicodeError:
                raise SourceError(
                    f"{address}: {_where(pages.path)} is a text that no address can hold",
                    hint="report it to the provider of the API",
                ) from None
        link = answer.link if pages.path is None else self._next(answer, address)
        return self._linked(address, link)

    def names_next(self, answer: Answer) -> bool:
        """Whether a page has the keys that lead to the next, if only with null."""
        path = self._pages.path
        if path is None:
            return True
        return answer.document is not None and not _missing(answer.document, path)[0]

    def unnamed(self, answer: Answer, address: str) -> SourceError:
        """Return the error for a feed whose only page lacks the keys that lead to the next."""
        path = self._pages.path
        assert path is not None, "pages without a path have no keys to lack"
        _, above, found = _missing(answer.document, path)
        return SourceError(
            f"{address}: the page has no {path!r} (http.pages.path), so it does not say whether "
            f"another follows: {_keys_of(found, above)}",
            hint="fix http.pages.path; if the API leaves it out where there is one page only, set "
            "http.pages.optional: true, and give the command again, which asks for nothing again",
        )

    def _refuse_fewer(self, answer: Answer, address: str, found: int) -> None:
        """Refuse a feed that ends before its pages have had as many records as they say."""
        total = self._total(answer, address) if self._pages.total and not self._pages.last else 0
        if found < (total or 0):
            raise SourceError(
                f"{address}: the pages end after {plural(found, 'record')}, but there are "
                f"{total:,} ({self._pages.total})",
                hint="ask for a page size that the API allows (http.pages.size), or leave out "
                "http.pages.total: then pages are read until one is empty",
            )

    def last(self, answer: Answer, address: str, step: int) -> int | None:
        """Return the number of the last page, from 1; None if pages do not say.

        Args:
            answer: The answer.
            address: Address of the page.
            step: Number of records of a full page, which may be fewer than were asked for.
        """
        value = self._total(answer, address)
        if value is None:
            return None
        if self._pages.last is not None:
            return value + 1 - self._pages.first
        return ceil(value / step) if step else 0

    def _total(self, answer: Answer, address: str) -> int | None:
        """Return the number of pages or records that a page names; None if it does not."""
        pages = self._pages
        path = pages.last or pages.total
        if path is None or answer.document is None:
            return None
        value = self._at(answer.document, path, address)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise SourceError(
                f"{address}: {_where(path)} is {kind_of(value)}, not a number of pages or records",
                hint="set http.pages.total or http.pages.last to the keys that lead to it",
            )
        return value

    def check(self, address: str) -> str:
        """Return an address that an answer or a stored page names, if it is one of the source.

        Raises:
            SourceError: It leads to another host, which must not get the credentials.
        """
        if len(address) > MAX_ADDRESS:
            raise SourceError(f"the next page's address has {plural(len(address), 'character')}")
        try:
            own, other = urlsplit(self._http.url), urlsplit(address)
            httpx.URL(address)
        except (ValueError, httpx.InvalidURL) as error:
            raise self._no_address(error) from None
        if (own.scheme, own.netloc) != (other.scheme, other.netloc):
            raise SourceError(
                f"a page of {self._http.url} names {other.scheme}://{other.hostname} as the "
                "host of the next page, which must not get the credentials",
                hint="set http.url to that host, if it is the right one",
            )
        return address

    def _linked(self, address: str, link: Any) -> str | None:
        if link in (None, "", False):
            return None
        if not isinstance(link, str):
            raise SourceError(
                f"{address}: {_where(self._pages.path)} is {kind_of(link)}, not an address",
                hint="set http.pages.path to the keys that lead to the next page's address",
            )
        try:
            target = urljoin(address, link)
        except ValueError as error:
            raise self._no_address(error) from None
        auth = self._http.auth
        if auth is not None and auth.parameter is not None:
            target = without_parameter(target, auth.parameter)
        return self.check(target)

    def _no_address(self, error: Exception) -> SourceError:
        return SourceError(
            f"a page of {self._http.url} names a next page whose address is none: {error}",
            hint="check http.pages.path, or read by another kind of pages (http.pages.by)",
        )

    def _next(self, answer: Answer, address: str) -> Any:
        path = self._pages.path
        assert path is not None, "the definition says where the cursor is"
        document = answer.document
        # Many APIs leave the cursor out of the last page, and what holds it, too.
        for name in path.split("."):
            if not isinstance(document, Mapping):
                return None
            document = document.get(name)
        return document

    def _at(self, document: Any, path: str, address: str) -> Any:
        found = document
        for name in path.split("."):
            if not isinstance(found, Mapping) or name not in found:
                raise SourceError(
                    f"{address}: the page has no {path!r}: {_keys_of(found)}",
                    hint="fix the keys in http.records or http.pages; the API may also have "
                    "changed",
                )
            found = found[name]
        return found

    def _address(self, params: Pairs) -> str:
        return f"{self._http.url}?{urlencode(params)}" if params else self._http.url


def _missing(document: Any, path: str) -> tuple[bool, str, Any]:
    """Return whether a document lacks the keys of a path; where they end, and what is there.

    A null on the way stands for all below it.
    """
    found, above = document, ""
    for name in path.split("."):
        if found is None:
            break
        if not isinstance(found, Mapping) or name not in found:
            return True, above, found
        found, above = found[name], f"{above}.{name}".lstrip(".")
    return False, above, found


def _keys_of(found: Any, above: str = "") -> str:
    where = f" in {above!r}" if above else ""
    if isinstance(found, Mapping) and found:
        return f"there are the keys {', '.join(map(repr, list(found)[:20]))}{where}"
    return f"{repr(above) if above else 'it'} is {kind_of(found)}"


def _where(path: str | None) -> str:
    return repr(path) if path else "the page"


def kind_of(value: Any) -> str:
    """Describe the kind of a JSON value."""
    kinds: tuple[tuple[Any, str], ...] = (
        (type(None), "null"),
        (bool, "a boolean"),
        (str, "a text"),
        (int, "a whole number"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((text for kind, text in kinds if isinstance(value, kind)), "a number")
