"""Match object keys with globs: `*` and `?` match within a segment, `**` across segments."""

from __future__ import annotations

import re
from functools import lru_cache

from partitioning.errors import NoParquetError

_MAGIC = re.compile(r"[*?[]")


def has_magic(text: str) -> bool:
    """Whether a text can be read as a glob."""
    return _MAGIC.search(text) is not None


def literal_prefix(pattern: str) -> str:
    """Return the part before the first wildcard."""
    match = _MAGIC.search(pattern)
    return pattern[: match.start()] if match else pattern


@lru_cache(256)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """Return the regular expression (for `fullmatch`) of a glob.

    `**/` matches any number of whole segments, `[!a]` any character but a. A `[` without `]` is
    literal.

    Raises:
        NoParquetError: A range of characters is reversed, as in `[z-a]`.
    """
    out: list[str] = []
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if pattern.startswith("**/", i) and (i == 0 or pattern[i - 1] == "/"):
            out.append("(?:[^/]*/)*")
            i += 3
            continue
        if pattern.startswith("**", i):
            out.append(".*")
            i += 2
            continue
        end = pattern.find("]", i + 3 if pattern.startswith("[!", i) else i + 2)
        if char == "[" and end > 0:
            body = pattern[i + 1 : end]
            negated = body.startswith("!")
            inner = body[negated:].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            inner = re.sub(r"([&~|])", r"\\\1", inner)
            out.append(f"[{'^/' if negated else ''}{inner}]")
            i = end + 1
            continue
        out.append({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)))
        i += 1
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error as error:
        raise NoParquetError(f"no object can match the glob {pattern!r}: {error.msg}") from None


def matches_any(patterns: tuple[str, ...], path: str) -> bool:
    """Whether a key below the prefix, or its last segment for globs without a slash, matches."""
    name = path.rsplit("/", 1)[-1]
    return any(compile_glob(p).fullmatch(path if "/" in p else name) for p in patterns)
