"""URIs of objects: `s3://bucket/key` and `file:///path`, with raw keys (never percent-quoted)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipeline.errors import UsageError


@dataclass(frozen=True, slots=True)
class Location:
    """Where an object or a prefix is."""

    scheme: str
    """`s3` or `file`."""
    bucket: str
    """Empty for `file`."""
    key: str
    """Raw S3 key, or absolute path for `file`."""

    @property
    def uri(self) -> str:
        """The URI that `parse` reads back to this location."""
        return f"s3://{self.bucket}/{self.key}" if self.scheme == "s3" else f"file://{self.key}"


def parse(uri: str) -> Location:
    """Split a URI; a path without a scheme is a local file.

    Raises:
        UsageError: the scheme is neither `s3` nor `file`, or the bucket is missing.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Location("file", "", os.path.abspath(uri) + ("/" if uri.endswith("/") else ""))
    if scheme == "file":
        return Location("file", "", rest)
    if scheme in ("s3", "s3a"):
        bucket, _, key = rest.partition("/")
        if bucket:
            return Location("s3", bucket, key)
        raise UsageError(f"{uri!r} names no bucket", hint="write s3://bucket/prefix/")
    raise UsageError(f"{uri!r} has the scheme {scheme!r}", hint="use s3:// or file://")


def as_prefix(uri: str) -> str:
    """The URI with exactly one slash at its end."""
    return uri.rstrip("/") + "/"


def join(prefix: str, *names: str) -> str:
    """Names below a prefix."""
    return as_prefix(prefix) + "/".join(names)


def staged_area(output_uri: str) -> str:
    """Where small outputs lie until they are published."""
    return state_prefix(output_uri) + "staged/"


def state_prefix(output_uri: str) -> str:
    """Where the state of an output lives: beside it, never in it."""
    return output_uri.rstrip("/") + ".chunkmap/"


def same_place(one: str, other: str) -> bool:
    """Whether two prefixes are the same; a local folder may go by several names."""
    if one == other:
        return True
    if not (one.startswith("file://") and other.startswith("file://")):
        return False
    return os.path.realpath(parse(one).key) == os.path.realpath(parse(other).key)
