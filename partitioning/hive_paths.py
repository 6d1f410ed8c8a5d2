"""Hive values in paths: `name=value` folders. Their raw text is what identifies a partition.

`month=01` and `month=1` are two partitions, though both may be read as the number 1: what is
written, replaced and looked up goes by the text of the folder, as some writer has spelled it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

NULL_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"
"""Raw text of a null."""


def raw_values(directory: str) -> tuple[tuple[str, str], ...]:
    """Return the (name, raw value) pairs of a directory's path, in order; the last wins."""
    found: dict[str, str] = {}
    for segment in directory.split("/"):
        name, equals, value = segment.partition("=")
        if equals and name:
            found[name] = value
    return tuple(found.items())


def raw_of_object(uri: str) -> dict[str, str]:
    """Return the raw Hive values of all folders above an object."""
    return dict(raw_values(uri.rpartition("/")[0]))


def spelled_out(value: object) -> str:
    """Return the raw text of a value for which no writer has chosen one."""
    return NULL_VALUE if value is None else quote(str(value), safe="")
