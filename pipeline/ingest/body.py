"""Read the body of an answer within a limit, which counts before its bytes are in memory."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

ACCEPTED: Final = "gzip"
"""Value of Accept-Encoding: what can be decompressed piece by piece, within a limit."""
_PLAIN: Final = frozenset({"", "identity"})
_GZIP: Final = frozenset({"gzip", "x-gzip"})


class BodyError(Exception):
    """A body cannot be decompressed."""


def is_readable(headers: Mapping[str, str]) -> bool:
    """Whether a body is compressed as it was asked for, or not at all."""
    return _encoding(headers) in _PLAIN | _GZIP


def _encoding(headers: Mapping[str, str]) -> str:
    return headers.get("content-encoding", "").strip().lower()


async def read_body(
    pieces: AsyncIterator[bytes], headers: Mapping[str, str], limit: int
) -> tuple[bytes, bool]:
    """Read a body, decompressed.

    Args:
        pieces: The bytes as they are sent.
        headers: Headers of the answer, which is readable.
        limit: Maximum bytes that are read.

    Returns:
        The body, or its first `limit` bytes; and whether there is more.

    Raises:
        BodyError: It is damaged, or ends too early.
    """
    read = _plain if _encoding(headers) in _PLAIN else _gunzip
    return await read(pieces, limit)


async def _plain(pieces: AsyncIterator[bytes], limit: int) -> tuple[bytes, bool]:
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > limit:
            return bytes(body[:limit]), True
    return bytes(body), False


async def _gunzip(pieces: AsyncIterator[bytes], limit: int) -> tuple[bytes, bool]:
    body = bytearray()
    stream, is_begun = _stream(), False
    async for piece in pieces:
        left = piece
        while left:
            if stream.eof:  # Members of gzip may follow each other.
                stream = _stream()
            try:
                body += stream.decompress(left, limit + 1 - len(body))
            except zlib.error as error:
                raise BodyError(str(error)) from None
            if len(body) > limit:
                return bytes(body[:limit]), True
            is_begun, left = True, stream.unused_data
    if is_begun and not stream.eof:
        raise BodyError("it ends too early")
    return bytes(body), False


def _stream() -> zlib._Decompress:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
