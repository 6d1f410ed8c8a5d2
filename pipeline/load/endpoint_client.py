"""Send batches to an HTTP endpoint: retried with the same key, paced, and without shown secrets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx

from pipeline.config.load_file import LoadRequests
from pipeline.config.secret import Secret
from pipeline.errors import ChunkmapError
from pipeline.http_answers import (
    DENIED_STATUSES,
    PassingFailure,
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
from pipeline.load.errors import DestinationError, DestinationUnavailableError, LoadFailedError
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
    _secret: Secret
    _httpx: httpx.Client
    _next: float = 0.0

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
        for attempt in attempts(self.requests.retries, self.waits):
            with attempt:
                return self._once(batch)
        raise AssertionError("stamina returns or raises")

    def _once(self, batch: Batch) -> None:
        self._pace()
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
            failure = self._translate(error)
        # Not in its block: the context of an error is pickled with it, and holds the headers.
        raise failure

    def _pace(self) -> None:
        if self.requests.requests_per_second is not None:
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + 1.0 / self.requests.requests_per_second

    # -- errors -----------------------------------------------------------------------------------

    def _refusal(self, answer: httpx.Response, batch: Batch) -> ChunkmapError:
        status = answer.status_code
        wait = retry_after(answer.headers.get("retry-after"))
        reason = self._secret.masked(answer.reason_phrase)[:MAX_EXCERPT]
        message = f"{self.where} answers {status} {reason}".strip()
        rows = f"rows {batch.first + 1:,} to {batch.end:,}"
        if is_retried_status(status, wait) or status == _IN_PROGRESS:
            return self._failure(message, wait, throttled=is_throttled(status, wait))
        if status in DENIED_STATUSES:
            return DestinationError(message, hint=self._auth_hint(status))
        if answer.is_redirect:
            target = url_of(answer.headers.get("location", ""))
            host = self._secret.masked(target.host)
            to = f" to {target.scheme}://{host}" if host else ""
            return DestinationError(
                f"{message}: it redirects{to}, which is not followed, since another host must not "
                "get the rows and the credentials",
                hint="set into.uri to the address that it redirects to",
            )
        if status == 413:
            return LoadFailedError(
                f"{message} to a body of {len(batch.body):,} bytes",
                hint="send smaller batches: into.http.max_bytes, into.http.rows",
            )
        excerpt = self._excerpt(answer)
        return LoadFailedError(
            f"{message} to {rows}" + (f": {excerpt}" if excerpt else ""),
            hint="check into.uri and into.http against the documentation of the endpoint, or fix "
            "the rows in the transform",
        )

    def _failure(
        self, message: str, wait: float | None = None, *, throttled: bool = False
    ) -> ChunkmapError:
        if beyond := too_long(wait, self.requests.max_wait, "into.http.max_wait"):
            message += beyond
            hint = (
                "load again later, raise into.http.max_wait, or set into.http.requests_per_second"
            )
            return DestinationUnavailableError(message, hint=hint)
        error = _Failure(message, hint=_AGAIN)
        error.wait, error.throttled = wait, throttled
        return error

    def _auth_hint(self, status: int) -> str:
        auth = self.requests.auth
        if auth is None:
            return "the endpoint requires credentials: name where they are in into.http.auth"
        if status == 403:
            return f"give the token in the {auth.where} the right to write, or use another one"
        return f"the token in the {auth.where} is wrong or has expired: replace it, and load again"

    def _translate(self, error: httpx.HTTPError) -> ChunkmapError:
        lasting = lasting_problem(error, self.uri, "into.uri")
        if lasting is not None:
            return DestinationError(f"{self.where}: {lasting[0]}", hint=lasting[1])
        if isinstance(error, httpx.TimeoutException):
            return self._failure(
                f"{self.where} has not answered for {self.requests.timeout:g} s (into.http.timeout)"
            )
        text = self._secret.masked(str(error)) or type(error).__name__
        if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            # It fails in the same way each time.
            return DestinationError(f"{self.where}: {text}", hint="check into.uri and into.http")
        return self._failure(f"{self.where}: {text}")

    def _excerpt(self, answer: httpx.Response) -> str:
        """Return the beginning of an answer's text; nothing of a compressed one."""
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            return ""
        body = _read(answer, MAX_READ)
        text = body.decode("utf-8", "replace")
        if len(body) >= MAX_READ:
            text = text[: -4 * len(self._secret.text) or None]  # A secret may be cut at the end.
        text = self._secret.masked(" ".join(text.split()))
        return text if len(text) <= MAX_EXCERPT else text[:MAX_EXCERPT] + " …"


class _Failure(DestinationUnavailableError, PassingFailure):
    """A request that may succeed if it is made again."""


def _read(answer: httpx.Response, most: int) -> bytes:
    body = bytearray()
    for piece in answer.iter_raw():  # As it is sent: a small body may decompress to a large one.
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
    # Names are the same in any case, so that those of the file replace ours.
    headers = httpx.Headers(
        {
            "User-Agent": "chunkmap",
            "Content-Type": _CONTENT_TYPES[requests.format],
            "Accept-Encoding": "identity",
        }
    )
    headers.update(requests.headers)
    if requests.auth is not None:
        headers[requests.auth.header] = requests.auth.header_value(secret)
    client = httpx.Client(
        headers=headers,
        timeout=requests.timeout,
        follow_redirects=False,
        # Without TLS, the certificates of authorities would be read for nothing.
        verify=uri.startswith("https:"),
    )
    with muted_httpx(), client:
        yield EndpointClient(uri, requests, waits, Secret(secret or ""), client)
