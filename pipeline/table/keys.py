"""Names of the files of an output, and of the copies that are kept beside it.

A key is named by current manifests during one stretch of the output's history and never again: a
new attempt at a chunk writes a key of its own, and a rollback copies a replaced file to a new key.
So a DELETE that arrives late, or a process that wakes up after hours, can only touch what is not
current any more. S3 has no other way to tell them apart: a DELETE cannot depend on another object.
"""

from __future__ import annotations

import hashlib
import re

from pipeline.uris import parse

MAX_KEY_BYTES = 1024
"""Longest key that S3 takes, in bytes of UTF-8."""
MAX_OUTPUT_KEY_BYTES = MAX_KEY_BYTES - 16
"""Longest key of an output's file: a rollback must be able to lengthen it (see `restored_key`)."""

_RESTORED = re.compile(r"\.r\d+(?=\.parquet$)")
_RUN = re.compile(r"part-\d+-([0-9a-f]{16})(?:-[0-9a-f]{8})?(?:\.r\d+)?\.parquet")


def original_key(key: str) -> str:
    """The key under which a file was first published, whatever rollbacks have renamed it since."""
    return _RESTORED.sub("", key)


def restored_key(key: str, manifest: int) -> str:
    """The key that a rollback, in this manifest, gives to a file that had been replaced."""
    return f"{original_key(key).removesuffix('.parquet')}.r{manifest}.parquet"


def run_of_key(key: str) -> str | None:
    """The id of the run that wrote a file; None where the name is not one of ours."""
    found = _RUN.fullmatch(key.rpartition("/")[2])
    return found.group(1) if found else None


def kept_uri(folder: str, key: str) -> str:
    """Where the copy of an output's file is kept.

    Args:
        folder: URI of the folder of copies, with a slash at its end.
        key: Key of the file, relative to the output.

    Returns:
        The key below the folder; where that would be longer than S3 allows, a digest of the key.
    """
    plain = folder + key
    if len(parse(plain).key.encode()) <= MAX_KEY_BYTES:
        return plain
    return f"{folder}~{hashlib.sha256(key.encode()).hexdigest()}.parquet"
