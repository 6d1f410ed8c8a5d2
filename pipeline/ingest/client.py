"""Make requests of an HTTP API: retried, paced, limited, and checked before an answer is used.

The secret is in the client's headers and nowhere else: errors do not chain those of httpx, which
hold the request, and what a server sends is searched for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import unquote, unquote_plus

import httpx
import stamina

from pipeline.config.ingest import Http
from pipeline.config.masking import MASK, mask_text
from pipeline.http_answers import (
    RETRIED_STATUSES,
    THROTTLED_FACTOR,
    Waits,
    certificate_problem,
    is_unknown_host,
    retry_after,
)
from pipeline.ingest.errors import SourceDeniedError, SourceError, SourceUnavailableError
from pipeline.ingest.paging import Answer
from pipeline.printable import printable_line

MAX_EXCERPT = 200
"""Maximum number of characters of an answer that an error shows."""
MIN_MASKED = 8
"""Minimum length of a secret that is masked in answers; a shorter one is refused there."""
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
    _secret: str
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
            attempts = stamina.retry_context(
                on=self._retried(),
                attempts=None,
                timeout=None,
                wait_initial=self.waits.first,
                wait_max=self.waits.most,
                wait_jitter=self.waits.first,
            )
            async for attempt in attempts:
                with attempt:
                    self.counts.retries += attempt.num > 1
                    return await self._once(address)
        raise AssertionError("stamina returns or raises")

    def _retried(self) -> Callable[[Exception], bool | float]:
        failed, throttled = count(1), count(1)
        most = self.http.retries

        def is_retried(error: Exception) -> bool | float:
            if not isinstance(error, SourceUnavailableError):
                return False
            again = (
                next(throttled) <= most * THROTTLED_FACTOR
                if error.throttled
                else next(failed) <= most
            )
            if again and error.wait is not None:
                self._pace.pause(error.wait)
                return 0.0
            return again

        return is_retried

    async def _once(self, address: str) -> Page:
        await self._pace.turn()
        self.counts.requests += 1
        try:
            async with self._httpx.stream("GET", address) as response:
                await self._check_status(response, address)
                if response.status_code == httpx.codes.NO_CONTENT:
                    return Page(Answer(None), b"")
                self._check_head(response, address)
                body = await self._read(response, address)
                link = response.links.get("next", {}).get("url")
        except httpx.HTTPError as error:
            raise self._translate(error, address) from None
        self.counts.bytes += len(body)
        body = self._without_secret(body, address)
        document = self._parse(body, address)
        # Escapes hide it from a search of the bytes, e.g. `\\/` for a slash.
        if self._secret and b"\\" in body and _json(self._secret) in _json(document):
            raise self._repeats(address)
        self.refuse_secret(address, link)
        return Page(Answer(document, link), body)

    def refuse_secret(self, address: str, following: str | None) -> None:
        """Refuse the address of a next page that holds the secret: it would be stored.

        Raises:
            SourceError: It does, plain or quoted.
        """
        forms = (following, unquote(following), unquote_plus(following)) if following else ()
        if self._secret and any(self._secret in form for form in forms):
            raise SourceError(
                f"{address}: the next page's address contains the secret of http.auth, which "
                "would be stored",
                hint="use pages of another kind (http.pages.by), if the API has some",
            )

    def _without_secret(self, body: bytes, address: str) -> bytes:
        """Mask the secret in a body: some servers repeat requests, e.g. test servers."""
        secret = self._secret.encode()
        if not secret or secret not in body:
            return body
        if len(secret) < MIN_MASKED:  # It may be part of any value, which the mask would damage.
            raise self._repeats(address)
        return body.replace(secret, MASK.encode())

    def _repeats(self, address: str) -> SourceError:
        return SourceError(
            f"{address}: the answer contains the secret of http.auth, which would be stored",
            hint="read records that do not have it, or use a longer secret",
        )

    # -- checks of an answer ---------------------------------------------------------------------

    async def _check_status(self, response: httpx.Response, address: str) -> None:
        status = response.status_code
        if response.is_success:
            return
        wait = retry_after(response.headers.get("retry-after"))
        said = f"{status} {response.reason_phrase}".strip()
        if status in (401, 403) and wait is None:
            raise SourceDeniedError(f"{address} answers {said}", hint=self._auth_hint(status))
        if status in RETRIED_STATUSES or (status == 403 and wait is not None):
            raise self._come_back(f"{address} answers {said}", status, wait)
        if response.is_redirect:
            target = httpx.URL(response.headers.get("location", ""))
            host = f" to {target.scheme}://{target.host}" if target.host else ""
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
        if wait is not None and wait > self.http.max_wait:
            return SourceError(
                f"{message} and asks to wait {wait:,.0f} s, longer than the "
                f"{self.http.max_wait:,.0f} s "
                "of http.max_wait",
                hint="give the command again later, raise http.max_wait, or set "
                "http.requests_per_second",
            )
        error = SourceUnavailableError(message, hint=_LATER)
        error.wait, error.throttled = wait, status in (403, 429) or wait is not None
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
        kind = response.headers.get("content-type", "")
        if not _JSON.fullmatch(kind.strip()):
            raise SourceError(
                f"{address} answers {kind or 'something without a content type'}, not JSON",
                hint="check http.url; some APIs need http.headers: {Accept: application/json}",
            )
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.http.max_page_bytes:
            raise self._too_large(address, int(length))

    async def _read(self, response: httpx.Response, address: str) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > self.http.max_page_bytes:
                raise self._too_large(address, len(body))
        return bytes(body)

    def _too_large(self, address: str, size: int) -> SourceError:
        return SourceError(
            f"{address} answers {size:,} bytes or more; http.max_page_bytes is "
            f"{self.http.max_page_bytes:,}",
            hint="ask for smaller pages (http.pages.size), or raise http.max_page_bytes",
        )

    def _parse(self, body: bytes, address: str) -> Any:
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            # A connection that was cut without a length looks like this.
            problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise SourceUnavailableError(
                f"{address} answers {len(body):,} bytes that are not JSON: {problem}", hint=_LATER
            ) from None

    async def _excerpt(self, response: httpx.Response) -> str:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_EXCERPT * 4:
                break
        text = " ".join(bytes(body).decode("utf-8", "replace").split())
        text = text.replace(self._secret, MASK) if self._secret else text
        text = printable_line(mask_text(text))
        return text if len(text) <= MAX_EXCERPT else text[:MAX_EXCERPT] + " …"

    def _translate(self, error: httpx.HTTPError, address: str) -> SourceError:
        """Turn an error of httpx into ours, which does not hold the request with its headers."""
        why = certificate_problem(error)
        if why is not None:
            return SourceError(
                f"{address}: the server's certificate is not accepted: {why}",
                hint="check the host in http.url; for an authority of your own, set "
                "SSL_CERT_FILE to "
                "its certificate",
            )
        if is_unknown_host(error):
            return SourceError(
                f"{address}: there is no host {httpx.URL(address).host!r}",
                hint="check http.url, and the DNS of this machine",
            )
        if isinstance(error, httpx.TimeoutException):
            return SourceUnavailableError(
                f"{address} has sent nothing for {self.http.timeout:g} s (http.timeout)",
                hint=_LATER,
            )
        if isinstance(
            error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.DecodingError
        ):
            return SourceError(f"{address}: {type(error).__name__}: {mask_text(str(error))}")
        text = mask_text(str(error)) or type(error).__name__
        return SourceUnavailableError(f"{address}: {text}", hint=_LATER)


_LATER = "pages that were fetched are kept: give the command again when the source answers"


def _json(value: Any) -> str:
    return json.dumps(value)[1:-1]


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
    headers = {"Accept": "application/json", "User-Agent": "chunkmap", **http.headers}
    if http.auth is not None:
        headers[http.auth.header] = http.auth.header_value(secret)
    client = httpx.AsyncClient(
        headers=headers,
        timeout=http.timeout,
        follow_redirects=False,
        # Without TLS, the certificates of authorities would be read for nothing.
        verify=http.url.startswith("https:"),
        limits=httpx.Limits(max_connections=http.concurrency),
    )
    async with client:
        pace = Pace(http.requests_per_second)
        yield Client(http, waits, secret or "", client, pace, asyncio.Semaphore(http.concurrency))
