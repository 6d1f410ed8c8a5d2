"""Read the Link header of an answer, as RFC 8288 has it."""

from __future__ import annotations

import re

# Possessive, so that a hostile header takes linear time.
_TARGET = re.compile(r"[\s,]*+<([^<>]*+)>")
_PARAMETER = re.compile(
    r"""\s*+;\s*+([^\s=;,"<>]++)(?:\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;,"]*+)))?"""
)
_SEPARATOR = re.compile(r"[\s;]*+(,|$)")


def next_link(header: str) -> str | None:
    """Return the target of a header's link to the next page; None if it has no such link.

    Raises:
        ValueError: The header is not valid, so it may have one.
    """
    at, found = 0, None
    while header[at:].strip(" \t,"):
        target = _TARGET.match(header, at)
        if target is None:
            raise ValueError(f"no link begins at character {at + 1}")
        relations, at = _relations(header, target.end())
        if found is None and "next" in relations:
            found = target[1]
    return found


def _relations(header: str, at: int) -> tuple[list[str], int]:
    """Return the relation types of a link, in lower case, and where the link ends."""
    relations: str | None = None
    while parameter := _PARAMETER.match(header, at):
        name, quoted, plain = parameter.groups()
        if name.lower() == "rel" and relations is None:  # Later ones do not count.
            relations = plain or re.sub(r"\\(.)", r"\1", quoted or "")
        at = parameter.end()
    end = _SEPARATOR.match(header, at)
    if end is None:
        raise ValueError(f"character {at + 1} is not the end of a link")
    return (relations or "").lower().split(), end.end()
