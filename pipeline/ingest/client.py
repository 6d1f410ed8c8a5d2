"""Make requests of an HTTP API: retried, paced, limited, and checked before an answer is used.

The secret is in the client's requests and nowhere else: errors do not chain those of httpx, which
hold the request, its log is muted, and what a server sends is searched for the secret.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

import httpx

from pipeline.config.ingest import Http
from pipeline.config.secret import Secret
from pipeline.http_answers import (
    DENIED_STATUSES,
    Waits,
    attempts,
    is_retried_status,
    is_throttled,
    lasting_problem,
    muted_httpx,
    retry_after,
    too_long,
    url_of,
)
from pipeline.ingest.body import ACCEPTED, BodyError, is_readable, read_body
from pipeline.ingest.errors import SourceDeniedError, SourceError, SourceUnavailableError
from pipeline.ingest.frames import TwiceError, unique_pairs
from pipeline.ingest.link_header import next_link
from pipeline.ingest.paging import Answer, without_parameter
from pipeline.masking import MASK

MAX_EXCERPT = 200
"""Maximum number of characters of an answer that an error shows."""
MAX_READ = 16_384
"""Maximum number of bytes of an answer that is read for an error."""
ANSWERED_STATUSES = frozenset({200, 203, 204})
"""Statuses of whole answers. 202 promises one for later, and 206 is a part of one."""
_JSON = re.compile(r"(application|text)/([\w.+-]+\+)?(json|javascript)\s*(;.*)?", re.IGNORECASE)


@dataclass(slots=True)
class RequestCounts:
    """What a client has done."""

    requests: int = 0
    retries: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """An answer that has passed the checks."""

    answer: Answer
    body: bytes


@dataclass(slots=True)
class Pace:
    """When the next request may be made: so many per second, none while the source asks to wait."""

    per_second: float | None
    _next: float = 0.0
    _paused: float = 0.0

    async def turn(self) -> None:
        """Wait until a request may be made."""
        now = time.monotonic()
        if self.per_second is not None:
            at = max(now, self._next)
            self._next = at + 1.0 / self.per_second
            await asyncio.sleep(at - now)
        while (left := self._paused - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def pause(self, seconds: float) -> None:
        """Hold all requests back."""
        self._paused = max(self._paused, time.monotonic() + seconds)


@dataclass(slots=True)
class Client:
    """Reads pages of one API."""

    http: Http
    waits: Waits
    _secret: Secret
    _httpx: httpx.AsyncClient
    _pace: Pace
    _open: asyncio.Semaphore
    counts: RequestCounts = field(default_factory=RequestCounts)

    async def get(self, address: str) -> Page:
        """Read a page.

        Raises:
            SourceError: The source refuses, or answers something else than JSON.
            SourceUnavailableError: It has not answered in all attempts.
        """
        async with self._open:
            async for attempt in attempts(self.http.retries, self.waits, self._pace.pause):
                with attempt:
                    self.counts.retries += attempt.num > 1
                    return await self._once(address)
        raise AssertionError("stamina returns or raises")

    async def _once(self, address: str) -> Page:
        await self._pace.turn()
        self.counts.requests += 1
        try:
            return await self._answer(address)
        except TimeoutError:
            failure: SourceError = SourceUnavailableError(
                f"{address} has not sent a whole answer in {self.http.page_timeout:g} s "
                "(http.page_timeout)",
                hint=_LATER,
            )
        except httpx.HTTPError as error:
            failure = self._translate(error, address)
        # Not in its block: the context of an error is pickled with it, and holds the headers.
        raise failure

    async def _answer(self, address: str) -> Page:
        async with (
            asyncio.timeout(self.http.page_timeout),
            self._httpx.stream("GET", self._with_secret(address)) as response,
        ):
            await self._check_status(response, address)
            if response.status_code == httpx.codes.NO_CONTENT:
                return Page(Answer(None), b"")
            self._check_head(response, address)
            body = await self._read(response, address)
            link = self._link(response, address)
        self.counts.bytes += len(body)
        masked = self._secret.masked_body(body)
        if masked is None:
            raise self._repeats(address)
        document = self._parse(masked, address, is_masked=masked != body)
        if link and self._parameter:
            link = without_parameter(link, self._parameter)
        self.refuse_secret(address, link)
        return Page(Answer(document, link), masked)

    def _link(self, response: httpx.Response, address: str) -> str | None:
        pages = self.http.pages
        if pages.by != "link" or pages.path is not None:
            return None
        try:
            return next_link(", ".join(response.headers.get_list("link")))
        except ValueError as error:
            raise SourceError(
                f"{address}: its Link header, which names the next page, cannot be read: {error}",
                hint="report it to the provider of the API, or read by another kind of pages "
                "(http.pages.by)",
            ) from None

    @property
    def _parameter(self) -> str | None:
        return self.http.auth.parameter if self.http.auth is not None else None

    def _with_secret(self, address: str) -> str:
        """Add the parameter that holds the secret, which no stored address has."""
        if self._parameter is None:
            return address
        joint = "&" if "?" in address else "?"
        return f"{address}{joint}{urlencode({self._parameter: self._secret.text})}"

    def refuse_secret(self, address: str, following: str | None) -> None:
        """Refuse the address of a next page that holds the secret: it would be stored.

        Raises:
            SourceError: It does, plain, quoted, or masked.
        """
        if not following or not self._secret.text:
            return
        if self._secret.is_in(following) or MASK in unquote(following):
            raise SourceError(
                f"{address}: the next page's address contains the secret of http.auth, which "
                "would be stored",
                hint="use pages of another kind (http.pages.by), if the API has some",
            )

    def _repeats(self, address: str) -> SourceError:
        return SourceError(
            f"{address}: the answer contains the secret of http.auth, which would be stored",
            hint="read records that do not have it, or use a longer secret",
        )

    # -- checks of an answer ---------------------------------------------------------------------

    async def _check_status(self, response: httpx.Response, address: str) -> None:
        status = response.status_code
        if status in ANSWERED_STATUSES:
            return
        wait = retry_after(response.headers.get("retry-after"))
        said = f"{status} {self._secret.masked(response.reason_phrase)[:MAX_EXCERPT]}".strip()
        if is_retried_status(status, wait) or status == httpx.codes.ACCEPTED:
            raise self._come_back(f"{address} answers {said}", status, wait)
        if status in DENIED_STATUSES:
            raise SourceDeniedError(f"{address} answers {said}", hint=self._auth_hint(status))
        if response.is_redirect:
            target = url_of(response.headers.get("location", ""))
            host = f" to {target.scheme}://{target.host}" if target.host else ""
            host = self._secret.masked(host)
            raise SourceError(
                f"{address} answers {said}: it redirects{host}, which is not followed, since "
                "another "
                "host must not get the credentials",
                hint="set http.url to the address that it redirects to",
            )
        body = await self._excerpt(response)
        raise SourceError(
            f"{address} answers {said}" + (f": {body}" if body else ""),
            hint="check http.url and http.params against the documentation of the API",
        )

    def _come_back(self, message: str, status: int, wait: float | None) -> SourceError:
        if beyond := too_long(wait, self.http.max_wait, "http.max_wait"):
            return SourceError(
                message + beyond,
                hint="give the command again later, raise http.max_wait, or set "
                "http.requests_per_second",
            )
        error = SourceUnavailableError(message, hint=_LATER)
        error.wait, error.throttled = wait, is_throttled(status, wait)
        return error

    def _auth_hint(self, status: int) -> str:
        auth = self.http.auth
        if auth is None:
            return "the API requires credentials: name where they are in http.auth"
        where = f"the variable {auth.env}" if auth.env else f"the Secret block {auth.secret}"
        if status == 403:
            return f"give the token in {where} the right to read this, or use another one"
        return (
            f"the token in {where} is wrong or has expired: replace it, and give the command again"
        )

    def _check_head(self, response: httpx.Response, address: str) -> None:
        kind = self._secret.masked(response.headers.get("content-type", ""))[:MAX_EXCERPT]
        if not _JSON.fullmatch(kind.strip()):
            raise SourceError(
                f"{address} answers {kind or 'something without a content type'}, not JSON",
                hint="check http.url; some APIs need http.headers: {Accept: application/json}",
            )
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.http.max_page_bytes:
            raise self._too_large(address, int(length))

    async def _read(self, response: httpx.Response, address: str) -> bytes:
        limit = self.http.max_page_bytes
        if not is_readable(response.headers):
            encoding = self._secret.masked(response.headers["content-encoding"])[:MAX_EXCERPT]
            raise SourceError(
                f"{address} answers in the encoding {encoding!r}; gzip or none was requested",
                hint="set http.headers: {Accept-Encoding: identity}, if the API has such answers",
            )
        try:
            body, is_more = await read_body(response.aiter_raw(), response.headers, limit)
        except BodyError as error:
            raise SourceUnavailableError(
                f"{address} answers bytes that gzip cannot decompress: {error}", hint=_LATER
            ) from None
        if is_more:
            raise self._too_large(address, limit + 1)
        return body

    def _too_large(self, address: str, size: int) -> SourceError:
        return SourceError(
            f"{address} answers {size:,} bytes or more; http.max_page_bytes is "
            f"{self.http.max_page_bytes:,}",
            hint="ask for smaller pages (http.pages.size), or raise http.max_page_bytes",
        )

    def _parse(self, body: bytes, address: str, *, is_masked: bool) -> Any:
        try:
            if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):
                raise ValueError("it is not in UTF-8")
            return json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=unique_pairs)
        except TwiceError as error:
            raise SourceError(
                f"{address}: {self._secret.masked(str(error))}, of which one value would be lost",
                hint="report it to the provider of the API",
            ) from None
        except (ValueError, RecursionError) as error:
            if is_masked:  # The mask is no number, for example.
                raise self._repeats(address) from None
            # A connection that was cut without a length looks like this.
            problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise SourceUnavailableError(
                f"{address} answers {len(body):,} bytes that are not JSON: {problem}", hint=_LATER
            ) from None

    async def _excerpt(self, response: httpx.Response) -> str:
        if not is_readable(response.headers):
            return ""
        try:
            body, is_more = await read_body(response.aiter_raw(), response.headers, MAX_READ)
        except BodyError:
            return ""
        text = body.decode("utf-8", "replace")
        if is_more:  # A secret may be cut at the end.
            text = text[: MAX_READ - 4 * len(self._secret.text)]
        text = self._secret.masked(" ".join(text.split()))
        return text if len(text) <= MAX_EXCERPT else text[:MAX_EXCERPT] + " …"

    def _translate(self, error: httpx.HTTPError, address: str) -> SourceError:
        """Turn an error of httpx into ours, which does not hold the request with its headers."""
        lasting = lasting_problem(error, address, "http.url")
        if lasting is not None:
            return SourceError(f"{address}: {lasting[0]}", hint=lasting[1])
        if isinstance(error, httpx.TimeoutException):
            return SourceUnavailableError(
                f"{address} has sent nothing for {self.http.timeout:g} s (http.timeout)",
                hint=_LATER,
            )
        if isinstance(
            error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.DecodingError
        ):
            text = self._secret.masked(str(error))
            return SourceError(f"{address}: {type(error).__name__}: {text}")
        text = self._secret.masked(str(error)) or type(error).__name__
        return SourceUnavailableError(f"{address}: {text}", hint=_LATER)


_LATER = "pages that were fetched are kept: give the command again when the source answers"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


@asynccontextmanager
async def open_client(http: Http, secret: str | None, waits: Waits) -> AsyncIterator[Client]:
    """Open a client.

    Args:
        http: The API.
        secret: The secret of `http.auth`.
        waits: Waits between attempts.

    Raises:
        UsageError: The secret cannot be sent in a header.
    """
    headers = httpx.Headers(
        {"Accept": "application/json", "Accept-Encoding": ACCEPTED, "User-Agent": "chunkmap"}
    )
    headers.update(http.headers)
    if http.auth is not None:
        value = http.auth.header_value(secret)
        if http.auth.parameter is None:
            headers[http.auth.header] = value
    client = httpx.AsyncClient(
        headers=headers,
        timeout=http.timeout,
        follow_redirects=False,
        # Without TLS, the certificates of authorities would be read for nothing.
        verify=http.url.startswith("https:"),
        limits=httpx.Limits(max_connections=http.concurrency),
    )
    with muted_httpx():
        async with client:
            pace = Pace(http.requests_per_second)
            limit = asyncio.Semaphore(http.concurrency)
            yield Client(http, waits, Secret(secret or ""), client, pace, limit)
