"""Download files from URLs into the state of an ingest, each once, in one version.

Requests carry no credentials, so redirects are followed. A file is read in the version that its
server named first, by ETag, or by date and size; where it names none, what was downloaded is it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import httpx

from partitioning import ObjectInfo
from pipeline.concurrency import map_concurrently
from pipeline.config.ingest import Files, is_url
from pipeline.errors import InputError, ObjectMissingError
from pipeline.http_answers import (
    DENIED_STATUSES,
    Waits,
    attempts,
    is_retried_status,
    is_throttled,
    lasting_problem,
    muted_httpx,
    retry_after,
    ssl_context,
)
from pipeline.ingest.errors import SourceDeniedError, SourceError, SourceUnavailableError
from pipeline.ingest.store import IngestStore, SourceFile
from pipeline.masking import mask_text

T = TypeVar("T")

AT_ONCE: Final = 4
"""Number of files that are downloaded at the same time; each is in memory."""
LARGE: Final = 64 << 20
"""Bytes of a file that is downloaded alone."""
RETRIES: Final = 5
"""Number of retries of a request after a passing failure (see `attempts`)."""
TIMEOUT: Final = 30.0
"""Seconds to wait for the next bytes."""
MAX_WAIT: Final = 300.0
"""Maximum seconds that a server may ask to wait."""
MAX_REDIRECTS: Final = 5
_LATER: Final = "give the command again when the server answers: what was downloaded is kept"


@dataclass(frozen=True, slots=True)
class Downloads:
    """Downloads files."""

    files: Files
    waits: Waits

    def find(self, url: str) -> SourceFile:
        """Ask for a file; return its version, without its content.

        Raises:
            InputError: There is none.
            SourceError: The server refuses, or answers something that is no file.
        """

        def ask(client: httpx.Client) -> SourceFile:
            with client.stream("GET", url) as response:
                _check(response, url)
                return _source(response, url)

        return self._retry(url, ask)

    def store(self, store: IngestStore, sources: Sequence[SourceFile]) -> dict[str, ObjectInfo]:
        """Download the files that are not stored yet; return where all of them are, by URL.

        Raises:
            SourceError: A file has changed since it was found, is too large, or is refused.
        """
        numbered = [(n, source) for n, source in enumerate(sources) if is_url(source.uri)]
        # Servers that name no length may send a large file.
        small = [pair for pair in numbered if 0 < pair[1].size <= LARGE]
        large = [pair for pair in numbered if pair not in small]
        infos = map_concurrently(lambda pair: self._stored(store, *pair), small, AT_ONCE)
        infos += [self._stored(store, *pair) for pair in large]
        return {source.uri: info for (_, source), info in zip(small + large, infos, strict=True)}

    def _stored(self, store: IngestStore, number: int, source: SourceFile) -> ObjectInfo:
        try:
            return store.download(number)
        except ObjectMissingError:
            hint = store.begin_again
            data = self._retry(source.uri, lambda client: self._read(client, source, hint))
            store.put_download(number, data)
            return store.download(number)

    def _read(self, client: httpx.Client, source: SourceFile, begin_again: str) -> bytes:
        url, limit = source.uri, self.files.max_bytes
        with client.stream("GET", url) as response:
            _check(response, url)
            found = _source(response, url)
            if found.etag != source.etag:
                raise SourceError(f"{url} changed after it was found", hint=begin_again)
            body = bytearray()
            # Raw: what is compressed for the way is decompressed within the limit, as files are.
            for part in response.iter_raw():
                body += part
                if len(body) > limit:
                    raise SourceError(
                        f"{url} has more than {limit:,} bytes (files.max_bytes)",
                        hint="raise files.max_bytes, if that fits in memory; or copy the file to "
                        "S3, where it can be read in pieces",
                    )
        return bytes(body)

    def _retry(self, url: str, work: Callable[[httpx.Client], T]) -> T:
        for attempt in attempts(RETRIES, self.waits):
            with attempt, _client(url) as client:
                return work(client)
        raise AssertionError("stamina returns or raises")


@contextmanager
def _client(url: str) -> Iterator[httpx.Client]:
    try:
        with (
            muted_httpx(),
            httpx.Client(
                headers={"User-Agent": "chunkmap", "Accept-Encoding": "identity"},
                verify=ssl_context(),
                timeout=TIMEOUT,
                follow_redirects=True,
                max_redirects=MAX_REDIRECTS,
            ) as client,
        ):
            yield client
    except httpx.TooManyRedirects:
        raise SourceError(f"{url} redirects more than {MAX_REDIRECTS} times") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.DecodingError) as error:
        raise SourceError(f"{url}: {mask_text(str(error))}") from None
    except httpx.TimeoutException:
        raise SourceUnavailableError(
            f"{url}: the server has sent nothing for {TIMEOUT:g} s", hint=_LATER
        ) from None
    except httpx.HTTPError as error:
        lasting = lasting_problem(error, url, "files.uri")
        if lasting is not None:
            raise SourceError(f"{url}: {lasting[0]}", hint=lasting[1]) from None
        text = mask_text(str(error)) or type(error).__name__
        raise SourceUnavailableError(f"{url}: {text}", hint=_LATER) from None


def _check(response: httpx.Response, url: str) -> None:
    status = response.status_code
    said = f"{url} answers {status} {response.reason_phrase}".strip()
    hops = [*response.history, response]
    if url.startswith("https:") and any(hop.url.scheme != "https" for hop in hops):
        raise SourceError(f"{url} redirects to an address without TLS")
    if status in (404, 410):
        raise InputError(f"no file at {url} (files.uri): the server answers {status}")
    wait = retry_after(response.headers.get("retry-after"))
    if is_retried_status(status, wait) or status == httpx.codes.ACCEPTED:
        if wait is not None and wait > MAX_WAIT:
            raise SourceError(
                f"{said} and asks to wait {wait:,.0f} s", hint="give the command again later"
            )
        error = SourceUnavailableError(said, hint=_LATER)
        error.wait, error.throttled = wait, is_throttled(status, wait)
        raise error
    if status in DENIED_STATUSES:
        raise SourceDeniedError(
            said, hint="files are read without credentials: copy it to S3, and read it there"
        )
    if status not in (200, 203):
        raise SourceError(said, hint="check the address (files.uri)")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise SourceError(
            f"{url} answers a web page ({kind}), no file",
            hint="use the address that the page's download link leads to",
        )


def _source(response: httpx.Response, url: str) -> SourceFile:
    """Return the version that a server names; none if it names none."""
    headers = response.headers
    length = headers.get("content-length", "")
    etag, date = headers.get("etag", ""), headers.get("last-modified", "")
    version = etag or (f"{date} {length}" if date else "")
    return SourceFile(uri=url, etag=version[:500], size=int(length) if length.isdigit() else 0)
