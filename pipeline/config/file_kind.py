"""Tell which kind of file a YAML file is meant to be, by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

FileKind = Literal["job", "ingest", "load", "pipeline"]
_SOURCES = ("http", "files", "sql", "source")
"""Keys that only an ingest has, one of them."""


def file_kind(data: Mapping[str, Any]) -> FileKind:
    """Return the kind of a file with these keys; `job` if it looks like none of the others."""
    if "pipeline" in data:
        return "pipeline"
    if "transform" in data:
        return "job"
    if "into" in data:
        return "load"
    return "ingest" if any(key in data for key in _SOURCES) else "job"
