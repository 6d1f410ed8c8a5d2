"""Parse and normalise the URIs of objects and prefixes: `s3://bucket/key` and `file:///path`.

Keys are raw, never percent-quoted. URIs are stored and compared as `parse(uri).uri`: `s3a://`
becomes `s3://`, a local path becomes absolute, without `..` and `//`. S3 keys are not changed,
because in S3 `a//b` and `a/b` are two objects.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache

from pipeline.errors import InvalidUriError

STATE_SUFFIX = ".chunkmap"
"""Suffix of the folder next to an output that holds its state."""

_S3 = re.compile(r"s3a?://([A-Za-z0-9][A-Za-z0-9._-]*)(?:/([^\x00-\x1f\x7f\ud800-\udfff]*))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_USERINFO = re.compile(r"://.*@", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Location:
    """Scheme, bucket and key of an object or a prefix."""

    scheme: str
    """Scheme: `s3` or `file`."""
    bucket: str
    """Bucket name; empty for `file`."""
    key: str
    """Raw S3 key, or absolute path for `file`."""

    @property
    def uri(self) -> str:
        """The URI in its normal form, which `parse` turns into this location."""
        return f"s3://{self.bucket}/{self.key}" if self.scheme == "s3" else f"file://{self.key}"


def parse(uri: str) -> Location:
    """Split a URI; a path without a scheme is a local file.

    Raises:
        InvalidUriError: The scheme is neither `s3` nor `file`, the bucket is missing or is not a
            bucket name, or the URI contains credentials or a control character.
    """
    in_s3 = _parse_s3(uri)
    if in_s3 is not None:
        return in_s3
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return Location("file", "", _path(uri, rest if separator else os.path.abspath(uri)))
    raise _refusal(uri, scheme, rest)


@lru_cache(maxsize=512)
def _parse_s3(uri: str) -> Location | None:
    """Split a URI in S3, which several steps of an operation do; None for any other."""
    match = _S3.fullmatch(uri)
    return None if match is None else Location("s3", match[1], match[2] or "")


def _path(uri: str, path: str) -> str:
    if "\0" in path:
        raise InvalidUriError(f"{uri!r} contains a control character (U+0000)")
    if not path.startswith("/"):
        raise InvalidUriError(
            f"{redacted(uri)!r} is not an absolute path", hint="write file:///folder/, or a path"
        )
    folder = uri.endswith(("/", "/.", "/..")) or uri in (".", "..")
    if "//" in path or "/." in path:
        path = "/" + os.path.normpath(path).lstrip("/")
    return path + "/" if folder and not path.endswith("/") else path


def _refusal(uri: str, scheme: str, rest: str) -> InvalidUriError:
    """Return the error for an unsupported URI. It repeats nothing that may be a secret."""
    bucket = rest.partition("/")[0]
    if scheme not in ("s3", "s3a"):
        return InvalidUriError(
            f"{redacted(uri)!r} has the scheme {scheme!r}", hint="use s3:// or file://"
        )
    if not bucket:
        return InvalidUriError(f"{redacted(uri)!r} has no bucket", hint="write s3://bucket/prefix/")
    if "@" in bucket or ":" in bucket:
        return InvalidUriError(
            "a URI with credentials in it is not accepted: it would be stored and shown",
            hint="write s3://bucket/prefix/, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE",
        )
    match = _CONTROL.search(uri)
    if match is not None:
        return InvalidUriError(
            f"{redacted(uri)!r} contains a control character (U+{ord(match[0]):04X})",
            hint="no key with such a character can be read or written; rename the object",
        )
    return InvalidUriError(
        f"{redacted(uri)!r}: {bucket!r} is not a bucket name", hint="write s3://bucket/prefix/"
    )


def redacted(uri: str) -> str:
    """Return a URI for messages: without the part before an `@`, and without a query."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return uri
    shown = _USERINFO.sub("://***@", uri) if scheme != "file" else uri
    return shown.partition("?")[0] if scheme in ("http", "https") else shown


def same_place(first: str, second: str) -> bool:
    """Whether two prefixes are the same; symbolic links of local folders are resolved."""
    if first == second:
        return True
    if not (first.startswith("file://") and second.startswith("file://")):
        return False
    return os.path.realpath(parse(first).key) == os.path.realpath(parse(second).key)


def link_target(prefix: str) -> str | None:
    """Return the folder that a local prefix is a symbolic link to; None if it is no link."""
    at = parse(prefix)
    path = at.key.rstrip("/")
    if at.scheme != "file" or not os.path.islink(path):
        return None
    return as_prefix(f"file://{os.path.realpath(path)}")


def as_prefix(uri: str) -> str:
    """Return the URI with exactly one slash at its end."""
    return uri.rstrip("/") + "/"


def join(prefix: str, *names: str) -> str:
    """Append names to a prefix."""
    return as_prefix(prefix) + "/".join(names)


def staged_area(output_uri: str) -> str:
    """Return the prefix of small outputs until they are published."""
    return state_prefix(output_uri) + "staged/"


def state_prefix(output_uri: str) -> str:
    """Return the prefix of an output's state: next to the output, never in it."""
    return output_uri.rstrip("/") + STATE_SUFFIX + "/"
