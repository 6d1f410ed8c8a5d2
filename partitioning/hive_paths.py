"""Read raw Hive values from paths: `name=value` folders, whose text identifies a partition.

`month=01` and `month=1` are two partitions, although both may be read as the number 1. Partitions
are written, replaced and looked up by the text of their folders, as the writer spelled it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

NULL_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"
"""Raw text of a null."""


def raw_values(directory: str) -> tuple[tuple[str, str], ...]:
    """Return the (name, raw value) pairs of a path, in order; the last value of a name wins."""
    values: dict[str, str] = {}
    for segment in directory.split("/"):
        name, equals, value = segment.partition("=")
        if equals and name:
            values[name] = value
    return tuple(values.items())


def raw_of_object(uri: str) -> dict[str, str]:
    """Return the raw Hive values of all folders above an object."""
    return dict(raw_values(uri.rpartition("/")[0]))


_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")


def quote_value(text: str) -> str:
    """Percent-encode a text as the value of a folder, so that all usual readers get it back.

    Of ASCII, all but letters, digits and `_.-~` is encoded. Other characters stay as they are:
    Spark would decode each of their bytes as a character of its own.
    """
    return "".join(c if c in _PLAIN or c > "\x7f" else f"%{ord(c):02X}" for c in text)


def default_raw(value: object) -> str:
    """Return the default raw text of a value, if no writer has chosen another."""
    return NULL_VALUE if value is None else quote(str(value), safe="")
