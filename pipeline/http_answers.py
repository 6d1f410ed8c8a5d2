"""What answers and errors of HTTP servers mean: whether and when a request is made again."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import count
from typing import Any

import httpx
import stamina

from pipeline.errors import Transient

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""
DENIED_STATUSES = frozenset({401, 403})
"""Statuses of servers that refuse the credentials, or require some."""
THROTTLED_FACTOR = 4
"""How many times more often than after a failure a request is retried that the server throttles."""
_NO_NAME = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds between two attempts at a request: doubled after each, with jitter."""

    first: float = 0.5
    most: float = 30.0


class PassingFailure(Transient):
    """A request failed, and may succeed if it is made again. Mixed into errors.

    Attributes:
        wait: Seconds that the server asks to wait; None if it does not say.
        throttled: Whether it answers that it gets too many requests.
    """

    wait: float | None = None
    throttled: bool = False


def attempts(retries: int, waits: Waits, pause: Callable[[float], None] | None = None) -> Any:
    """Return the attempts at a request, for `for` or `async for`: until one succeeds.

    They end with the error of the last one, if it is no `PassingFailure`, or there were enough.

    Args:
        retries: Number of retries after failures; `THROTTLED_FACTOR` times as many while the server
            throttles.
        waits: Waits between two attempts, unless the server says how long.
        pause: Called with the seconds that the server asks to wait, if somebody else waits them.
    """
    failed, throttled = count(1), count(1)

    def is_retried(error: Exception) -> bool | float:
        if not isinstance(error, PassingFailure):
            return False
        again = (
            next(throttled) <= retries * THROTTLED_FACTOR
            if error.throttled
            else next(failed) <= retries
        )
        if not again or error.wait is None:
            return again
        if pause is None:
            return error.wait
        pause(error.wait)
        return 0.0

    return stamina.retry_context(
        on=is_retried,
        attempts=None,
        timeout=None,
        wait_initial=waits.first,
        wait_max=waits.most,
        wait_jitter=waits.first,
    )


def is_retried_status(status: int, wait: float | None) -> bool:
    """Whether the same request may succeed later; one that is denied, if the server says when.

    Args:
        status: Status of the answer.
        wait: Seconds of its Retry-After header.
    """
    return status in RETRIED_STATUSES or (status in DENIED_STATUSES and wait is not None)


def is_throttled(status: int, wait: float | None) -> bool:
    """Whether a server that answers so gets too many requests."""
    return status == 429 or wait is not None


def too_long(wait: float | None, most: float, key: str) -> str:
    """Return the end of a message about a wait beyond the limit; empty for a shorter wait."""
    if wait is None or wait <= most:
        return ""
    return f" and asks to wait {wait:,.0f} s, longer than the {most:,.0f} s of {key}"


_is_muted: ContextVar[bool] = ContextVar("is_muted", default=False)


def _is_logged(record: logging.LogRecord) -> bool:
    """Whether a line of httpx is not of our requests."""
    return not _is_muted.get()


for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(_is_logged)


@contextmanager
def muted_httpx() -> Iterator[None]:
    """Keep httpx from logging the requests of the block, which may have a secret."""
    token = _is_muted.set(True)
    try:
        yield
    finally:
        _is_muted.reset(token)


def ssl_context() -> ssl.SSLContext:
    """Return what checks certificates; reading the authorities takes longer than a request."""
    return _ssl_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _ssl_context(file: str | None, folder: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()


def url_of(text: str) -> httpx.URL:
    """Return an address that a server names; an empty one if it is none."""
    try:
        return httpx.URL(text)
    except httpx.InvalidURL:
        return httpx.URL("")


def retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number, or the date at which to come back."""
    if text is None:
        return None
    text = text.strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and all errors that it came from."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        cause = left.pop()
        if cause is None or cause in found:
            continue
        found.append(cause)
        left += [cause.__cause__, cause.__context__, *getattr(cause, "exceptions", ())]
    return found


def certificate_problem(error: BaseException) -> str | None:
    """Return why a server's certificate was not accepted; None if that was not the problem."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
    return None


def is_unknown_host(error: BaseException) -> bool:
    """Whether a server's name was not found."""
    return any(isinstance(c, socket.gaierror) and c.errno in _NO_NAME for c in causes(error))


def lasting_problem(error: BaseException, url: str, key: str) -> tuple[str, str] | None:
    """Return message and hint for a connection that fails each time; None if it may succeed later.

    Args:
        error: Error of the connection.
        url: Address of the server.
        key: Key that has the address, for the hint.
    """
    why = certificate_problem(error)
    if why is not None:
        return (
            f"the server's certificate is not accepted: {why}",
            f"check the host in {key}; for an authority of your own, set SSL_CERT_FILE to its "
            "certificate",
        )
    if is_unknown_host(error):
        host = httpx.URL(url).host
        return f"there is no host {host!r}", f"check {key}, and the DNS of this machine"
    return None
