"""What answers and errors of HTTP servers mean: whether and when a request is made again."""

from __future__ import annotations

import re
import socket
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

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
