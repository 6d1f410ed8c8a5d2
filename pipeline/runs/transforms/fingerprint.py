"""Fingerprint the code that a function reaches, with a versioned scheme.

A fingerprint is `v2-` and 16 hex digits over what `reach` found, the parameters, and the version of
Polars. It is the same in every process and every checkout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pipeline.config.job import date_to_json
from pipeline.runs.transforms.reach import Reached

SCHEME = "v2"
OLD_SCHEME = "v1"
"""Scheme of earlier releases: whole modules, without a prefix."""
MAX_NAMES = 5
"""Maximum number of changed definitions to name."""
LIBRARIES = ("polars",)
"""Libraries whose versions are part of a fingerprint, since results depend on them."""


def fingerprint(name: str, reached: Reached, params: Mapping[str, Any]) -> str:
    """Compute the fingerprint of a function with parameters."""
    return _hash([name, reached.code, params, _versions()])


def join_fingerprints(fingerprints: Sequence[str]) -> str:
    """Join the fingerprints of several functions, in this order; a single one stays as it is."""
    return fingerprints[0] if len(fingerprints) == 1 else _hash(list(fingerprints))


def scheme_of(value: str) -> str:
    """Return the scheme of a fingerprint."""
    scheme, dash, _ = value.partition("-")
    return scheme if dash else OLD_SCHEME


def explain_difference(what: str, then: str, now: str, names: Sequence[str] = ()) -> str:
    """Explain the difference between the fingerprint of a run's code and the current one.

    Args:
        what: The transform.
        then: Fingerprint of the run's code.
        now: Fingerprint of the current code.
        names: Definitions that have changed (see `changed_names`).
    """
    if scheme_of(then) != scheme_of(now):
        return (
            f"its code was fingerprinted by scheme {scheme_of(then)} ({then}), but this version of "
            f"chunkmap uses scheme {scheme_of(now)} ({now}) and cannot tell whether {what} has "
            "changed since"
        )
    if names:
        shown = ", ".join(f"`{name}`" for name in names[:MAX_NAMES])
        rest = len(names) - MAX_NAMES
        return f"the code has changed since (in {shown}{f' and {rest} more' if rest > 0 else ''})"
    return f"{what} has changed since (fingerprint {then}, now {now})"


def changed_names(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """List the definitions that changed, appeared or vanished, with the shortest clear names.

    Args:
        then: Result of `job_definitions` when a run was planned; empty if unknown.
        now: The same for the current code.
    """
    if not then:
        return []
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    short = [name.rpartition(":")[2] for name in changed]
    pairs = zip(changed, short, strict=True)
    return [name if short.count(brief) > 1 else brief for name, brief in pairs]


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that are part of a fingerprint, by `library NAME`."""
    return {f"library:{name}": number for name, number in _versions().items()}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=date_to_json)
    return f"{SCHEME}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@lru_cache(1)
def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
