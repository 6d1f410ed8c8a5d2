"""Name the files of an output, and the copies that are kept next to it.

A key is never reused: a new attempt at a chunk writes a new key, and a rollback copies a replaced
file to a new key. So a DELETE that arrives late, or a process that was suspended for hours, can
only affect files that are no longer current. S3 offers no other protection, since a DELETE cannot
depend on the state of another object.
"""

from __future__ import annotations

import hashlib
import re

from pipeline.uris import parse

MAX_KEY_BYTES = 1024
"""Maximum length of an S3 key, in bytes of UTF-8."""
MAX_OUTPUT_KEY_BYTES = MAX_KEY_BYTES - 16
"""Maximum length of an output file's key; a rollback makes it longer (see `restored_key`)."""

_RESTORED = re.compile(r"\.r(\d+)(?=\.(?:parquet|parq|pq)$)", re.IGNORECASE)
_RUN = re.compile(r"part-\d+-([0-9a-f]{16})(?:-[0-9a-f]{8})?(?:\.r\d+)?\.parquet")


def original_key(key: str) -> str:
    """Return the key under which a file was first published, before rollbacks renamed it."""
    return _RESTORED.sub("", key)


def restored_key(key: str, manifest: int) -> str:
    """Return the key that a rollback, in this manifest, gives to a replaced file."""
    stem, _, suffix = original_key(key).rpartition(".")
    return f"{stem}.r{manifest}.{suffix}"


def restoring_manifest(key: str) -> int | None:
    """Return the number of the manifest whose rollback gave a file its key; None if none did."""
    match = _RESTORED.search(key)
    return int(match[1]) if match else None


def run_of_key(key: str) -> str | None:
    """Return the id of the run that wrote a file; None if chunkmap does not make such names."""
    match = _RUN.fullmatch(key.rpartition("/")[2])
    return match.group(1) if match else None


def kept_uri(folder: str, key: str) -> str:
    """Return the URI of the kept copy of an output's file.

    Args:
        folder: URI of the folder of copies, with a slash at its end.
        key: Key of the file, relative to the output.

    Returns:
        The key below the folder; if that is longer than S3 allows, a digest of the key.
    """
    plain = folder + key
    if len(parse(plain).key.encode()) <= MAX_KEY_BYTES:
        return plain
    return f"{folder}~{hashlib.sha256(key.encode()).hexdigest()}.parquet"
