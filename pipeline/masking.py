"""Mask secrets in all text that leaves a process: errors, logs, events, artifacts, reports.

`mask_text` is the one function for text, `mask` for structures. Errors of chunkmap mask their own
messages, and so do log lines and recorded failures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from json import dumps
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "********"
FROM_ENV = "from_env"
"""Key of what stands for the value of an environment variable: its name is no secret."""

_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)|pwd|secret|token|credential|authorization|signature"
    r"|(access|account|api|encryption|private|shared|signing)[-_. ]?key"
    r"|(?<![a-z])(auth|pass|sas|sig)(?![a-z])",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)"
    # A secret key may hold slashes; digits and a slash after a colon are a port.
    r"(?:[^\s/?#]*@|[^\s/?#@:]*:(?!\d*(?:[/\s]|$))[^\s@]*@)"
)
_QUOTED_PAIR = re.compile(r"""((["'])([\w.-]+)\2\s*[:=]\s*)(["'])(.*?)\4""")
_PARAMETER = re.compile(r"""([?&]([\w.-]+)=)([^\s&;,#"']+)""")
# Not after a slash: a folder `token=1` is a Hive partition.
_PAIR = re.compile(
    r"""(?<![\w./-])(-{0,2}([\w.-]+) ?=(?!=) ?)(?!\*{8})("[^"]*"|'[^']*'|[^\s&;"']+)"""
)
_HEADER = re.compile(
    r"""\b((?:(?:proxy-)?authorization|(?:set-)?cookie)\s*:\s*)([^\r\n"'}]+)""", re.IGNORECASE
)
# At the start of a line or of a mapping, since `bad token: expected text` is prose.
_LINE = re.compile(
    r"""((?:^|[{,]|\\n)[ \t]*(?:- )?([\w.-]+):[ \t]+)(?!\*{8})([^\s,{}"'][^\r\n,{}]*)""", re.M
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_PLACEHOLDERS = ("…", "$(", "${")
"""What stands for a value in a command that is to be typed."""
_ASSIGNMENT = re.compile(r"(-{0,2}([A-Za-z_][\w.-]*)=).*", re.DOTALL)
_hidden: list[tuple[str, ...]] = [()]
"""Secrets of this process, as texts may spell them; longer ones first."""


def hide(secret: str) -> None:
    """Mask a secret wherever a text has it from now on, also without a name that tells so.

    Args:
        secret: Text that is long enough to be nothing else.
    """
    quoted = (quote(secret), quote(secret, safe=""), quote_plus(secret))
    forms = {secret, dumps(secret)[1:-1], repr(secret)[1:-1], *quoted}
    _hidden[0] = tuple(sorted({*_hidden[0], *forms}, key=len, reverse=True))


def is_secret_name(name: object) -> bool:
    """Whether a value with this name is a secret."""
    return _SECRET_NAME.search(str(name)) is not None


def mask(value: Any, name: object = "") -> Any:
    """Return a copy of a value with its secrets masked, at any depth.

    It masks values of keys that name a secret, the value in `{name: TOKEN, value: …}`, assignments
    and options in lists (`TOKEN=…`, `--token …`), and everything that `mask_text` masks.

    Args:
        value: Text, a number, or lists and mappings of such.
        name: Name of the value, e.g. its key.
    """
    if value is None or isinstance(value, bool) or _is_reference(value):
        return value
    if is_secret_name(name) or hasattr(value, "get_secret_value"):
        return MASK
    if isinstance(value, Mapping):
        return _mask_mapping(value)
    if isinstance(value, str):
        assignment = _ASSIGNMENT.fullmatch(value)
        if assignment and is_secret_name(assignment[2]):
            return assignment[1] + MASK
        return mask_text(value)
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return _mask_items(list(value))
    return value if isinstance(value, int | float) else mask_text(str(value))


def _is_reference(value: object) -> bool:
    if not isinstance(value, Mapping) or set(value) != {FROM_ENV}:
        return False
    variable = value[FROM_ENV]
    return isinstance(variable, str) and variable.isidentifier()


def _mask_mapping(value: Mapping[Any, Any]) -> dict[Any, Any]:
    """Mask a mapping; Kubernetes and others write a pair as `{name: …, value: …}`."""
    masked = {key: mask(item, key) for key, item in value.items()}
    names = [item for key, item in value.items() if str(key).lower() in ("name", "key")]
    if any(is_secret_name(item) for item in names if isinstance(item, str)):
        masked |= {key: MASK for key in value if str(key).lower() == "value"}
    return masked


def _mask_items(items: list[Any]) -> list[Any]:
    masked = []
    is_value = False
    for item in items:
        masked.append(MASK if is_value and isinstance(item, str) else mask(item))
        is_option = isinstance(item, str) and item.startswith("-") and "=" not in item
        is_value = is_option and is_secret_name(item)
    return masked


def mask_text(text: str) -> str:
    """Mask users and passwords of URLs, assignments of secrets, headers and the like in a text.

    To mask it twice changes nothing. Folders of Hive partitions are kept.

    >>> mask_text("tcp://me:pw@host:80/a?token=x&b=1")
    'tcp://********@host:80/a?token=********&b=1'
    >>> mask_text("password=x: s3://b/token=3/a.parquet is missing")
    'password=******** s3://b/token=3/a.parquet is missing'
    """
    for secret in _hidden[0]:
        text = text.replace(secret, MASK)
    if not any(sign in text for sign in "=:") and "earer" not in text and "asic" not in text:
        return text  # Most texts: nothing in them can match.
    text = _USER_IN_URL.sub(rf"\1{MASK}@", text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _QUOTED_PAIR.sub(_quoted_pair, text)
    text = _PARAMETER.sub(_pair, text)
    text = _PAIR.sub(_pair, text)
    text = _LINE.sub(_pair, text)
    return _BEARER.sub(rf"\1 {MASK}", text)


def names_user(uri: str) -> bool:
    """Whether a URI has a user, a password or keys before its host or bucket."""
    return _USER_IN_URL.match(uri) is not None


def _quoted_pair(match: re.Match[str]) -> str:
    return f"{match[1]}{match[4]}{MASK}{match[4]}" if is_secret_name(match[3]) else match[0]


def _pair(match: re.Match[str]) -> str:
    is_secret = is_secret_name(match[2]) and not match[3].startswith(_PLACEHOLDERS)
    return match[1] + MASK if is_secret else match[0]
