"""Send batches to an HTTP endpoint: retried with the same key, paced, and without shown secrets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import httpx
import stamina

from pipeline.config.load_file import LoadRequests
from pipeline.config.masking import MASK, mask_text
from pipeline.errors import ChunkmapError
from pipeline.http_answers import (
    RETRIED_STATUSES,
    THROTTLED_FACTOR,
    Waits,
    certificate_problem,
    is_unknown_host,
    retry_after,
)
from pipeline.load.errors import DestinationError, DestinationUnavailableError, LoadFailedError
from pipeline.printable import printable_line
from pipeline.uris import redacted

MAX_EXCERPT = 200
"""Maximum number of characters of an answer that an error shows."""
MAX_READ = 64 << 10
"""Maximum number of bytes of an answer that are read, so that the connection can be used again."""
_IN_PROGRESS = 409
"""Status for a key whose first request is still being processed."""
_AGAIN = "load again when it answers: the load resumes after the last batch that was acknowledged"
_CONTENT_TYPES = {"ndjson": "application/x-ndjson", "array": "application/json"}


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a commit, as a request sends them."""

    body: bytes
    key: str
    """Idempotency key: equal for equal rows at the same place of the same commit."""
    first: int
    """Number of rows of the commit before them."""
    rows: int

    @property
    def end(self) -> int:
        """Number of rows of the commit up to the last of them."""
        return self.first + self.rows


@dataclass
class EndpointClient:
    """Sends batches to one endpoint, one after the other."""

    uri: str
    requests: LoadRequests
    waits: Waits
    _secret: str
    _httpx: httpx.Client
    _next: float = 0.0
    sent: int = field(default=0)
    """Requests that were made, with those that failed."""

    @property
    def where(self) -> str:
        """Address for messages."""
        return redacted(self.uri)

    def post(self, batch: Batch) -> None:
        """Send a batch until it is acknowledged by a status of 2xx.

        Raises:
            DestinationError: The endpoint refuses the credentials, or is none.
            DestinationUnavailableError: It has not acknowledged it in all attempts.
            LoadFailedError: It refuses the rows.
        """
        for attempt in stamina.retry_context(
            on=self._retried(),
            attempts=None,
            timeout=None,
            wait_initial=self.waits.first,
            wait_max=self.waits.most,
            wait_jitter=self.waits.first,
        ):
            with attempt:
                return self._once(batch)
        raise AssertionError("stamina returns or raises")

    def _retried(self) -> Callable[[Exception], bool | float]:
        failed, throttled = count(1), count(1)
        most = self.requests.retries

        def is_retried(error: Exception) -> bool | float:
            if not isinstance(error, _Failure) or error.is_final:
                return False
            if error.wait is not None and error.wait > self.requests.max_wait:
                return False
            again = (
                next(throttled) <= most * THROTTLED_FACTOR
                if error.is_throttled
                else next(failed) <= most
            )
            return error.wait if again and error.wait is not None else again

        return is_retried

    def _once(self, batch: Batch) -> None:
        self._pace()
        self.sent += 1
        headers = {"Idempotency-Key": batch.key}
        try:
            with self._httpx.stream(
                "POST", self.uri, content=batch.body, headers=headers
            ) as answer:
                if answer.is_success:
                    # Acknowledged, whatever becomes of the rest.
                    with suppress(httpx.HTTPError):
                        _read(answer, MAX_READ)
                    return
                raise self._refusal(answer, batch)
        except httpx.HTTPError as error:
            # Errors of httpx hold the request with its headers.
            raise self._translated(error, batch) from None

    def _pace(self) -> None:
        if self.requests.requests_per_second is not None:
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + 1.0 / self.requests.requests_per_second

    # -- errors -----------------------------------------------------------------------------------

    def _refusal(self, answer: httpx.Response, batch: Batch) -> ChunkmapError:
        status = answer.status_code
        wait = retry_after(answer.headers.get("retry-after"))
        said = f"{self.where} answers {status} {answer.reason_phrase}".strip()
        rows = f"rows {batch.first + 1:,} to {batch.end:,}"
        if status in (401, 403) and wait is None:
            return DestinationError(said, hint=self._auth_hint(status))
        if status in RETRIED_STATUSES or status in (401, 403, _IN_PROGRESS):
            is_throttled = status in (403, 429) or wait is not None
            return self._failure(said, wait, is_throttled=is_throttled)
        if answer.is_redirect:
            target = httpx.URL(answer.headers.get("location", ""))
            to = f" to {target.scheme}://{target.host}" if target.host else ""
            return DestinationError(
                f"{said}: it redirects{to}, which is not followed, since another host must not get "
                "the rows and the credentials",
                hint="set into.uri to the address that it redirects to",
            )
        if status == 413:
            return LoadFailedError(
                f"{said} to a body of {len(batch.body):,} bytes",
                hint="send smaller batches: into.http.max_bytes, into.http.rows",
            )
        excerpt = self._excerpt(_read(answer, MAX_EXCERPT * 4))
        return LoadFailedError(
            f"{said} to {rows}" + (f": {excerpt}" if excerpt else ""),
            hint="check into.uri and into.http against the documentation of the endpoint, or fix "
            "the rows in the transform",
        )

    def _failure(
        self, message: str, wait: float | None = None, *, is_throttled: bool = False
    ) -> _Failure:
        hint = _AGAIN
        if wait is not None and wait > self.requests.max_wait:
            message += (
                f" and asks to wait {wait:,.0f} s, longer than the {self.requests.max_wait:,.0f} s "
                "of into.http.max_wait"
            )
            hint = (
                "load again later, raise into.http.max_wait, or set into.http.requests_per_second"
            )
        error = _Failure(message, hint=hint)
        error.wait, error.is_throttled = wait, is_throttled
        return error

    def _auth_hint(self, status: int) -> str:
        auth = self.requests.auth
        if auth is None:
            return "the endpoint requires credentials: name where they are in into.http.auth"
        if status == 403:
            return f"give the token in the {auth.where} the right to write, or use another one"
        return f"the token in the {auth.where} is wrong or has expired: replace it, and load again"

    def _translated(self, error: httpx.HTTPError, batch: Batch) -> ChunkmapError:
        why = certificate_problem(error)
        if why is not None:
            return DestinationError(
                f"{self.where}: the server's certificate is not accepted: {why}",
                hint="check the host in into.uri; for an authority of your own, set SSL_CERT_FILE "
                "to its certificate",
            )
        if is_unknown_host(error):
            return DestinationError(
                f"{self.where}: there is no host {httpx.URL(self.uri).host!r}",
                hint="check into.uri, and the DNS of this machine",
            )
        if isinstance(error, httpx.TimeoutException):
            return self._failure(
                f"{self.where} has not answered for {self.requests.timeout:g} s (into.http.timeout)"
            )
        text = self._masked(str(error)) or type(error).__name__
        failure = self._failure(f"{self.where}: {text}")
        failure.is_final = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
        return failure

    def _excerpt(self, body: bytes) -> str:
        text = self._masked(" ".join(body.decode("utf-8", "replace").split()))
        return text if len(text) <= MAX_EXCERPT else text[:MAX_EXCERPT] + " …"

    def _masked(self, text: str) -> str:
        text = text.replace(self._secret, MASK) if self._secret else text
        return printable_line(mask_text(text))


class _Failure(DestinationUnavailableError):
    """A request that may succeed if it is made again."""

    wait: float | None = None
    """Seconds that the endpoint asks to wait."""
    is_throttled: bool = False
    is_final: bool = False
    """Whether it fails in the same way each time."""


def _read(answer: httpx.Response, most: int) -> bytes:
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) >= most:
            break
    return bytes(body)


@contextmanager
def open_endpoint(
    uri: str, requests: LoadRequests, secret: str | None, waits: Waits
) -> Iterator[EndpointClient]:
    """Open a client of an endpoint; nothing is sent yet.

    Args:
        uri: Address of the endpoint.
        requests: How rows are sent.
        secret: The secret of `into.http.auth`.
        waits: Waits between attempts.

    Raises:
        UsageError: The secret is missing, or cannot be sent in a header.
    """
    headers = {
        "User-Agent": "chunkmap",
        "Content-Type": _CONTENT_TYPES[requests.format],
        **requests.headers,
    }
    if requests.auth is not None:
        headers[requests.auth.header] = requests.auth.header_value(secret)
    client = httpx.Client(
        headers=headers,
        timeout=requests.timeout,
        follow_redirects=False,
        # Without TLS, the certificates of authorities would be read for nothing.
        verify=uri.startswith("https:"),
    )
    with client:
        yield EndpointClient(uri, requests, waits, secret or "", client)
