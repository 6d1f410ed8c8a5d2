"""Try whether a service honours conditions on writes, which every publish depends on.

Two drivers that publish to one output are kept apart by If-None-Match and If-Match alone. A service
that ignores them answers 200 to both, and one driver's files end up in no manifest.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress

from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    BucketMissingError,
    ChunkmapError,
    PreconditionFailedError,
    StorageError,
    Transient,
    UsageError,
)
from pipeline.storage.s3_objects import S3Objects
from pipeline.storage.storage import Storage
from pipeline.uris import join, parse, state_prefix

NOTE = "probe.json"
"""Name of the object in an output's state that says which service passed."""
MOST_SERVICES = 20
"""Addresses that a note holds: one store may be known by several."""


def require_conditional_writes(storage: Storage, output: str) -> None:
    """Make sure, once per output and service, that conditional writes to an output work.

    With `s3.conditional_writes: single-writer` nothing is tried.

    Args:
        storage: Where.
        output: URI of the output prefix.

    Raises:
        UsageError: they do not work.
    """
    backend = storage.backend(output)
    if not isinstance(backend, S3Objects) or not backend.conditional:
        return
    state, service = state_prefix(parse(output).uri), backend.service
    note = storage.get_or_none(join(state, NOTE))
    if note is not None and service in _passed(note.data):
        return
    problem = find_condition_problem(storage, join(state, "probe"))
    if problem is not None:
        raise UsageError(
            f"{service} {problem}: two drivers could both publish to {output}, and the rows of "
            "one would be lost",
            hint="use a service with conditional writes; or, if only one driver at a time ever "
            "works on this output, set s3.conditional_writes to single-writer (docs/cluster.md)",
        )
    passed = [*(_passed(note.data) if note else []), service][-MOST_SERVICES:]
    storage.put(join(state, NOTE), json.dumps({"version": 1, "passed": passed}).encode())


def _passed(data: bytes) -> list[str]:
    """Services that passed, as a note says; none if it says nothing that we understand."""
    try:
        passed = json.loads(data)["passed"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(one) for one in passed] if isinstance(passed, list) else []


def find_condition_problem(storage: Storage, folder: str) -> str | None:
    """Write to a scratch object under conditions that do and do not hold.

    Args:
        storage: Where.
        folder: URI of a folder for the scratch object, which is removed if that is allowed.

    Returns:
        What the service does wrong, or None.
    """
    scratch = join(folder, uuid.uuid4().hex)
    try:
        return _find_problem(storage, scratch)
    except (AccessDeniedError, BucketMissingError):
        raise
    except StorageError as error:
        if isinstance(error, Transient):
            raise
        return f"refuses conditional writes ({error})"
    finally:
        with suppress(ChunkmapError):
            storage.delete(scratch)


def _find_problem(storage: Storage, scratch: str) -> str | None:
    storage.put_new(scratch, b"first")
    try:
        storage.put_new(scratch, b"second, which must be refused")
    except AlreadyExistsError:
        pass
    else:
        return "ignores If-None-Match"
    before = storage.head(scratch).etag
    storage.put_if(scratch, b"third", before)
    try:
        storage.put_if(scratch, b"fourth, which must be refused", before)
    except PreconditionFailedError:
        return None
    return "ignores If-Match"
