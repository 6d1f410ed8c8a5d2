"""Fingerprint code: one scheme, with a version, for what a function reaches.

A fingerprint is `v2-` and 16 hex digits over what `reach` found, the parameters, and the version of
Polars. It is the same in every process and every checkout. Functions that are shipped by value
would be hashed here as well, from a `Reached` of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pipeline.runs.transforms.reach import Reached

SCHEME = "v2"
OLD_SCHEME = "v1"
"""Whole modules; its fingerprints had no prefix."""
LIBRARIES = ("polars",)
"""Libraries whose version is part of a fingerprint: their results are ours."""


def fingerprint(name: str, reached: Reached, params: Mapping[str, Any]) -> str:
    """The fingerprint of a function with parameters."""
    return _hash([name, reached.code, params, _versions()])


def joined(fingerprints: Sequence[str]) -> str:
    """One fingerprint for several functions, in this order; of a single one, that."""
    return fingerprints[0] if len(fingerprints) == 1 else _hash(list(fingerprints))


def scheme_of(value: str) -> str:
    """The scheme that made a fingerprint."""
    scheme, dash, _ = value.partition("-")
    return scheme if dash else OLD_SCHEME


def explain_difference(what: str, then: str, now: str) -> str:
    """Say how the code of a run differs from today's; only for fingerprints that differ."""
    if scheme_of(then) != scheme_of(now):
        return (
            f"its code was fingerprinted by scheme {scheme_of(then)} ({then}), and this version of "
            f"chunkmap uses scheme {scheme_of(now)} ({now}): whether {what} has changed since "
            "cannot be told"
        )
    return f"{what} has changed since (fingerprint {then}, now {now})"


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return f"{SCHEME}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@lru_cache(1)
def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
