"""URIs of objects and prefixes: `s3://bucket/key` and `file:///path`, in one normal form.

Keys are raw, never percent-quoted. `parse(uri).uri` is the form under which a URI is stored and
compared: `s3a://` is `s3://`, a local path is absolute and has neither `..` nor `//` in it. Keys in
S3 stay as they are, because to S3 `a//b` and `a/b` are two objects.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pipeline.errors import InvalidUriError

STATE_SUFFIX = ".chunkmap"
"""Ends the name of the folder next to an output that holds its state."""

_S3 = re.compile(r"s3a?://([A-Za-z0-9][A-Za-z0-9._-]*)(?:/([^\x00-\x1f\x7f\ud800-\udfff]*))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_USERINFO = re.compile(r"://.*@", re.DOTALL)


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
        """The URI in its normal form, which `parse` reads back to this location."""
        return f"s3://{self.bucket}/{self.key}" if self.scheme == "s3" else f"file://{self.key}"


def parse(uri: str) -> Location:
    """Split a URI; a path without a scheme is a local file.

    Raises:
        InvalidUriError: the scheme is neither `s3` nor `file`, the bucket is missing or is not a
            bucket's name, credentials are in the URI, or a control character is.
    """
    match = _S3.fullmatch(uri)
    if match is not None:
        return Location("s3", match[1], match[2] or "")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return Location("file", "", _path(uri, rest if separator else os.path.abspath(uri)))
    raise _refusal(uri, scheme, rest)


def _path(uri: str, path: str) -> str:
    if "\0" in path:
        raise InvalidUriError(f"{uri!r} contains a control character (U+0000)")
    if not path.startswith("/"):
        raise InvalidUriError(
            f"{redacted(uri)!r} names no absolute path", hint="write file:///folder/, or a path"
        )
    folder = uri.endswith(("/", "/.", "/..")) or uri in (".", "..")
    if "//" in path or "/." in path:
        path = "/" + os.path.normpath(path).lstrip("/")
    return path + "/" if folder and not path.endswith("/") else path


def _refusal(uri: str, scheme: str, rest: str) -> InvalidUriError:
    """Why a URI is none of ours. What may be a secret is not repeated."""
    bucket = rest.partition("/")[0]
    if scheme not in ("s3", "s3a"):
        return InvalidUriError(
            f"{redacted(uri)!r} has the scheme {scheme!r}", hint="use s3:// or file://"
        )
    if not bucket:
        return InvalidUriError(
            f"{redacted(uri)!r} names no bucket", hint="write s3://bucket/prefix/"
        )
    if "@" in bucket or ":" in bucket:
        return InvalidUriError(
            "a URI with credentials in it is not accepted: it would be stored and shown",
            hint="write s3://bucket/prefix/, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE",
        )
    found = _CONTROL.search(uri)
    if found is not None:
        return InvalidUriError(
            f"{redacted(uri)!r} contains a control character (U+{ord(found[0]):04X})",
            hint="no key with such a character can be read or written; rename the object",
        )
    return InvalidUriError(
        f"{redacted(uri)!r}: {bucket!r} is not a bucket's name", hint="write s3://bucket/prefix/"
    )


def redacted(uri: str) -> str:
    """A URI for messages: without what stands before an `@`, and without a query."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return uri
    shown = _USERINFO.sub("://***@", uri) if scheme != "file" else uri
    return shown.partition("?")[0] if scheme in ("http", "https") else shown


def same_place(one: str, other: str) -> bool:
    """Whether two prefixes are the same; a local folder may go by several names."""
    if one == other:
        return True
    if not (one.startswith("file://") and other.startswith("file://")):
        return False
    return os.path.realpath(parse(one).key) == os.path.realpath(parse(other).key)


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
    """Where the state of an output lives: next to it, never in it."""
    return output_uri.rstrip("/") + STATE_SUFFIX + "/"
