"""Refuse options that an unfinished backfill, found by the same request, would ignore."""

from __future__ import annotations

from pipeline.config.job import Job
from pipeline.errors import UsageError
from pipeline.runs.backfill.records import BackfillRecord, Control, Options
from pipeline.runs.backfill.store import BackfillStore

EXECUTION_KEYS = (
    *("retries", "rounds", "max_failures", "chunk_timeout"),
    *("concurrency", "resources"),
)
"""Keys of a job that change how it is run, and not what is requested."""
_IDENTIFYING = {"reprocess", "idempotency_key"}
"""Options that are part of the request."""


def refuse_ignored(record: BackfillRecord, store: BackfillStore, job: Job, given: Options) -> None:
    """Raise UsageError if a request has options that its unfinished backfill would ignore.

    Options at their defaults count as not given.

    Args:
        record: Record of the backfill.
        store: The backfill.
        job: Job of the request.
        given: Options of the request.
    """
    options, stored = _differing_options(given, record.options, store.control()), store.job()
    flags = {name: "--" + name.replace("_", "-") for name in options}
    keys = [key for key in EXECUTION_KEYS if getattr(job, key) != getattr(stored, key)]
    ignored = [*flags.values(), *(f"`{key}` of the job" for key in keys)]
    if not ignored:
        return
    if not keys and set(options) <= Control.model_fields.keys():
        changes = " ".join(f"{flag} {getattr(given, name)}" for name, flag in flags.items())
        hint = f"change the backfill: chunkmap backfill set {record.backfill} {changes}"
    else:
        hint = (
            f"resume it as it is: chunkmap backfill resume {record.backfill}; or start over: "
            f"chunkmap backfill cancel {record.backfill}, then create it again"
        )
    raise UsageError(
        f"backfill {record.backfill} of this request is unfinished and keeps the options and the "
        f"job that it was created with: {', '.join(ignored)} would have no effect",
        hint=hint,
    )


def _differing_options(given: Options, stored: Options, control: Control) -> list[str]:
    """Select the given options that are neither those of the creation nor in effect since."""
    now = {**stored.model_dump(), **control.model_dump()}
    return [
        name
        for name, field in Options.model_fields.items()
        if name not in _IDENTIFYING
        and getattr(given, name) not in (field.default, getattr(stored, name), now[name])
    ]
