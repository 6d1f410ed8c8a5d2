"""Probe whether a service honours conditions on writes, on which every publish depends.

Only If-None-Match and If-Match keep apart two drivers that publish to one output. A service that
ignores them returns 200 to both, and one driver's files end up in no manifest.
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
from pipeline.storage.storage import Storage
from pipeline.uris import join, parse, state_prefix

PROBE_FILE = "probe.json"
"""Name of the object in an output's state that lists the services that passed."""
MAX_SERVICES = 20
"""Maximum number of addresses in that object: one service may have several."""


def require_conditional_writes(storage: Storage, output: str) -> None:
    """Check that conditional writes to an output work, once per process, output and service.

    With `s3.conditional_writes: single-writer` it does nothing.

    Args:
        storage: Storage of the output.
        output: URI of the output prefix.

    Raises:
        UsageError: They do not work.
    """
    if parse(output).scheme != "s3":
        return
    from pipeline.storage.s3_objects import S3Objects

    backend = storage.backend(output)
    if not isinstance(backend, S3Objects) or not backend.conditional:
        return
    location, service = parse(output), backend.service
    state, bucket = state_prefix(location.uri), location.bucket
    if bucket in backend.proven_buckets:
        return
    record = storage.get_or_none(join(state, PROBE_FILE))
    passed = [] if record is None else _read_passed(record.data)
    if service in passed:
        backend.proven_buckets.add(bucket)
        return
    problem = find_condition_problem(storage, join(state, "probe"))
    if problem is not None:
        raise UsageError(
            f"{service} {problem}: two drivers could both publish to {output}, and the rows of "
            "one would be lost",
            hint="use a service with conditional writes; or, if only one driver at a time ever "
            "works on this output, set s3.conditional_writes to single-writer "
            "(docs/guides/cluster.md)",
        )
    backend.proven_buckets.add(bucket)
    passed = [*passed, service][-MAX_SERVICES:]
    storage.put(join(state, PROBE_FILE), json.dumps({"version": 1, "passed": passed}).encode())


def _read_passed(data: bytes) -> list[str]:
    """Return the services that passed; none if the data cannot be parsed."""
    try:
        passed = json.loads(data)["passed"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(service) for service in passed] if isinstance(passed, list) else []


def find_condition_problem(storage: Storage, folder: str) -> str | None:
    """Write to a scratch object under true and false conditions.

    Args:
        storage: Storage of the folder.
        folder: URI of a folder for the scratch object, which is deleted if that is allowed.

    Returns:
        The misbehaviour of the service, or None.
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
    etag = storage.head(scratch).etag
    storage.put_if(scratch, b"third", etag)
    try:
        storage.put_if(scratch, b"fourth, which must be refused", etag)
    except PreconditionFailedError:
        return None
    return "ignores If-Match"
