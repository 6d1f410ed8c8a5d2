"""Compare a job, and its input, with those of an earlier run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from partitioning import Plan, PlanningError, PlanRequest
from partitioning.listing import list_objects
from pipeline.config.job import Job
from pipeline.errors import InputError, JobError, ObjectMissingError, StateError, UsageError
from pipeline.report.humanize import plural
from pipeline.runs.driver.overlap import normalize_uris
from pipeline.runs.driver.tables import pinned_request
from pipeline.runs.ledger.check_files import checks_identity
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, StorageReader, parse

log = logging.getLogger(__name__)

FREE_KEYS = (
    *("retries", "rounds", "max_failures", "chunk_timeout", "concurrency", "resources"),
    *("name", "checks"),
)
"""Keys of a job that may change when a run is resumed, as may those of FREE_NESTED_KEYS.
Of checks, what they need of each chunk may not."""
FREE_NESTED_KEYS = {"input": {"changed_only", "max_quarantined"}, "output": {"schema_"}}
UNREADABLE = (StateError, JobError, ObjectMissingError)
"""Errors for a stored job that is damaged or missing."""
_SELECTING_KEYS = {"uri", "table", "include", "exclude"}
"""Keys of `input` that say which objects there are."""
_READING_KEYS = {
    *("version", "schema_", "types", "hive_types", "int96"),
    *("on_bad_object", "verify_checksums"),
}
"""Keys of `input` that say how objects are read."""
_ROWS_ELSEWHERE: dict[str, Any] = {
    **dict.fromkeys((*FREE_KEYS, "chunks", "tables", "window", "output", "outputs"), True),
    "input": FREE_NESTED_KEYS["input"] | _SELECTING_KEYS | _READING_KEYS,
}
"""Keys of a job that do not choose the rows that it makes of an object."""


def has_same_job(ledger: Ledger, job: Job, is_same: Callable[[Job, Job], bool]) -> bool:
    """Whether a run has the same job; False if its stored job is damaged or missing.

    Args:
        ledger: Ledger of the run.
        job: The job.
        is_same: Compares a stored job with it.
    """
    try:
        return is_same(ledger.job(), job)
    except UNREADABLE as error:
        log.warning("run %s is ignored: %s", ledger.run, error)
        return False


def stored_job(ledger: Ledger) -> Job | None:
    """Return the job of a run; None if it is damaged or missing."""
    try:
        return ledger.job()
    except UNREADABLE:
        return None


def may_have_same_rows(ledger: Ledger, job: Job) -> bool:
    """Whether a run may have made the rows that a job makes (see `has_same_rows`).

    It may if its stored job is damaged or missing; an ingest, which is no run, has not.
    """
    stored = stored_job(ledger)
    if stored is not None:
        return has_same_rows(stored, job)
    try:
        ledger.record()
    except UsageError:
        return False
    except StateError:
        pass
    return True


def is_same_job(stored: Job, job: Job) -> bool:
    """Whether two jobs differ only in keys that may change when a run is resumed."""
    return _identity(stored) == _identity(job)


def appends_same_rows(stored: Job, job: Job) -> bool:
    """Whether what one job has published need not be appended by another.

    They make the same rows of the same objects, for the same outputs.
    """
    return has_same_rows(stored, job) and _places(stored) == _places(job)


def has_same_rows(stored: Job, job: Job) -> bool:
    """Whether two jobs make the same rows of an object that both read.

    How its rows are cut, written, checked and published does not matter.
    """
    then, now = (each.model_dump(exclude=_ROWS_ELSEWHERE) for each in (stored, job))
    return then == now


def differing_keys(stored: Job, job: Job) -> list[str]:
    """List the keys, dotted, in which two jobs differ, without those that may change."""
    then, now = _flat(_identity(stored)), _flat(_identity(job))
    return sorted(key for key in {*then, *now} if then.get(key) != now.get(key))


def _identity(job: Job) -> dict[str, Any]:
    exclude: Any = {**FREE_NESTED_KEYS, **dict.fromkeys(FREE_KEYS, True)}
    if job.outputs:
        exclude["outputs"] = {name: FREE_NESTED_KEYS["output"] for name in job.outputs}
    checks = checks_identity(job.checks)
    return normalize_uris(job).model_dump(exclude=exclude) | ({"checks": checks} if checks else {})


def reads_alike(stored: Job, job: Job) -> bool:
    """Whether two jobs read objects alike, so that both fail at the same ones, or skip them."""
    then, now = (each.input.model_dump(include=_READING_KEYS) for each in (stored, job))
    return then == now


def _places(job: Job) -> tuple[dict[str, Any], dict[str, str]]:
    """Return which objects a job reads, and the URIs of its outputs by name."""
    job = normalize_uris(job)
    outputs = {name: output.uri for name, output in job.all_outputs.items()}
    return job.input.model_dump(include=_SELECTING_KEYS), outputs


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = above + key.removesuffix("_")
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def input_changes(storage: Storage, job: Job, plan: Plan) -> str | None:
    """Compare a plan with a listing of the input; describe the changes, None if there are none."""
    request = PlanRequest(
        uri=tuple(parse(uri).uri for uri in job.input.uri),
        include=job.input.include,
        exclude=job.input.exclude,
    )
    try:
        request = pinned_request(storage, job, request)
        listed = list_objects(request, StorageReader(storage)).objects
    except (PlanningError, InputError, StateError) as error:
        return f"the input cannot be listed any more ({error})"
    now = {info.uri: (info.etag.strip('"'), info.size) for info in listed}
    objects = plan.table("objects").select(["uri", "etag", "size"]).to_pylist()
    then = {row["uri"]: (row["etag"].strip('"'), row["size"]) for row in objects}
    added, removed = len(now.keys() - then.keys()), len(then.keys() - now.keys())
    changed = sum(now[uri] != then[uri] for uri in now.keys() & then.keys())
    if not (added or removed or changed):
        return None
    return (
        f"the input has changed since: {plural(added, 'object')} added, {removed:,} removed, "
        f"{changed:,} changed"
    )
