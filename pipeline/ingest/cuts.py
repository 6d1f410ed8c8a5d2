"""Find where records end in a part of a CSV file, or lines in one of JSON. Pure: bytes in.

Whether the part begins inside quotes is not known until the quotes before it are counted, so each
answer is for one of both cases. A quote that is doubled inside quotes ends them and begins them
again, which changes nothing.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES: Final = 1 << 20
"""Maximum bytes of the first record of a CSV file that is cut."""
_QUOTE, _LF, _CR = b'"\n\r'
_BOM: Final = b"\xef\xbb\xbf"
_BLOCK: Final = 4 << 20
"""Bytes whose quotes are looked at together."""
# Possessive, so that a part without an end costs few passes; not the group, which Python before
# 3.11.5 matches wrongly (gh-106052). Given back, it is followed by a quote, never by a line's end.
_RECORD: Final = rb'[^"\n]*+(?:"[^"]*+"[^"\n]*+)*\n'
_OUTSIDE: Final = re.compile(_RECORD)
_INSIDE: Final = re.compile(rb'[^"]*+"' + _RECORD)
_HEADER: Final = re.compile(rb"(?:\r?\n)*(?!\r?\n)" + _RECORD)


def record_end(data: bytes, at: int, end: int, *, inside: bool) -> int | None:
    """Return the offset after the first record that ends at or after an offset; None if none does.

    Args:
        data: Part of a CSV file.
        at: Offset in it.
        end: Offset at which to give up.
        inside: Whether `at` is inside quotes.
    """
    found = (_INSIDE if inside else _OUTSIDE).match(data, at, end)
    return None if found is None else found.end()


def line_end(data: bytes, at: int, end: int) -> int | None:
    """Return the offset after the first line that ends at or after an offset; None if none does."""
    found = data.find(b"\n", at, end)
    return None if found < 0 else found + 1


def header_end(data: bytes) -> int | None:
    """Return the offset after the first record of a CSV file that is not an empty line."""
    found = _HEADER.match(data)
    return None if found is None else found.end()


def quotes_fit(data: bytes, at: int, end: int, separator: str, *, is_start: bool) -> list[bool]:
    """Whether quotes begin and end values, if `at` is outside quotes, and if it is inside.

    Where they do not, a quote is part of a value without quotes, and does not tell where records
    end.

    Args:
        data: Part of a CSV file, with the bytes before and after what is asked about, if any.
        at: Offset of the first byte.
        end: Offset after the last byte.
        separator: Character between values.
        is_start: Whether the data are the beginning of the file.
    """
    if data.find(b'"', at, end) < 0:
        return [True, True]
    octets = np.frombuffer(data, np.uint8)
    between = separator.encode()[0]
    may_open, may_close = _table(between, _LF, _QUOTE), _table(between, _LF, _QUOTE)
    first = len(_BOM) if data.startswith(_BOM) else 0
    fits, count = [True, True], 0
    for start in range(at, end, _BLOCK):
        quotes = np.flatnonzero(octets[start : min(end, start + _BLOCK)] == _QUOTE) + start
        if not len(quotes):
            continue
        opens = may_open[octets[quotes - 1]]
        if is_start and quotes[0] == first:
            opens[0] = True
        closes = _closes(octets, quotes, may_close)
        for inside in (0, 1):
            odd = (count + inside) % 2
            fits[inside] &= bool(opens[odd::2].all() and closes[1 - odd :: 2].all())
        count += len(quotes)
    return fits


def _table(*octets: int) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[list(octets)] = True
    return table


def _closes(
    octets: NDArray[np.uint8], quotes: NDArray[np.int64], may_close: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether each quote may end a value: before the next, the end of the line, or of the file."""
    last = len(octets) - 1
    following = octets[np.minimum(quotes + 1, last)]
    returns = (following == _CR) & (octets[np.minimum(quotes + 2, last)] == _LF)
    closes: NDArray[np.bool_] = may_close[following] | returns | (quotes == last)
    return closes
