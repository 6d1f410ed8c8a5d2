"""Explain that a module is missing because an extra of chunkmap is not installed."""

from __future__ import annotations

import re
from importlib import metadata

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+).*\bextra == ['\"](\w+)['\"]")


def extra_of(module: str) -> str | None:
    """Return the extra that installs the package of a module; None if there is none."""
    try:
        requirements = metadata.requires("chunkmap") or []
    except metadata.PackageNotFoundError:
        return None
    wanted = _normalized(module.partition(".")[0])
    for requirement in requirements:
        found = _REQUIREMENT.match(requirement)
        if found and _normalized(found[1]) == wanted:
            return found[2]
    return None


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
