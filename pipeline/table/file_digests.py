"""Digests of an output's files, as commits name them."""

from __future__ import annotations

import hashlib
import re
from typing import Final

_DIGEST: Final = re.compile(r"([0-9a-f]{64})(?:@(\d{1,18}))?")


def digest_of_end(data: memoryview, start: int) -> str:
    """Return the digest of a file of which only the end is known here.

    The store has copied the bytes before it from a pinned version of another object.

    Args:
        data: The bytes from `start` on.
        start: Position of the first of them.

    Returns:
        SHA-256 in hexadecimal digits, then `@<start>`.
    """
    return f"{hashlib.sha256(data).hexdigest()}@{start}"


def has_digest(data: bytes, digest: str) -> bool:
    """Whether a file has a digest: that of all its bytes, or of its end."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        return False
    return hashlib.sha256(memoryview(data)[int(match[2] or 0) :]).hexdigest() == match[1]
