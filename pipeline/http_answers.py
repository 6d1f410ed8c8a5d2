"""What answers and errors of HTTP servers mean: whether and when a request is made again."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache

import httpx

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""
THROTTLED_FACTOR = 4
"""How many times more often than after a failure a request is retried that the server throttles."""
_NO_NAME = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds between two attempts at a request: doubled after each, with jitter."""

    first: float = 0.5
    most: float = 30.0


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
    except (ValueError, TypeError):
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
