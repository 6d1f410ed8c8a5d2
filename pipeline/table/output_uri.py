"""Compare URIs of outputs name by name, and refuse those that could be taken for others."""

from __future__ import annotations

import os
from collections.abc import Sequence

from partitioning.globs import has_magic
from pipeline.errors import UsageError
from pipeline.uris import STATE_SUFFIX, parse


def refuse_ambiguous_output(output: str) -> None:
    """Refuse an output in the state of another, or that some services take for another prefix."""
    at = parse(output)
    folder = state_folder(segments(output))
    if folder:
        raise UsageError(
            f"output {output} lies in {folder}, the state folder of another output",
            hint="choose an output outside of it",
        )
    names = at.key.rstrip("/").split("/")
    if at.scheme == "s3" and any(name in ("", ".", "..") for name in names):
        raise UsageError(
            f"output {output} contains an empty segment, `.` or `..`, which some S3 services "
            "take for another prefix",
            hint=f"write s3://{at.bucket}/{'/'.join(_resolved(names))}/",
        )


def state_folder(names: Sequence[str]) -> str | None:
    """Return the first segment that is the name of an output's state folder."""
    ends = (s for s in names if s.endswith(STATE_SUFFIX) and s != STATE_SUFFIX)
    return next(ends, None)


def segments(uri: str, *, glob: bool = False) -> list[str]:
    """Split a URI into scheme, bucket and names; resolve links, empty names, `.` and `..`.

    Args:
        uri: URI of an object or a prefix.
        glob: Whether the URI may be a glob; links are resolved up to its first wildcard.
    """
    at = parse(uri)
    names = at.key.split("/")
    if at.scheme == "file":
        fixed = next((n for n, name in enumerate(names) if glob and has_magic(name)), len(names))
        real = os.path.realpath("/" + "/".join(names[:fixed]))
        names = [*real.split("/"), *names[fixed:]]
    return [at.scheme, at.bucket, *_resolved(names)]


def _resolved(names: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for name in names:
        if name == "..":
            del kept[-1:]
        elif name not in ("", "."):
            kept.append(name)
    return kept
