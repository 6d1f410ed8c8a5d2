"""Find the backfill that a command names."""

from __future__ import annotations

from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.runs.admin.known_outputs import known_outputs
from pipeline.runs.backfill.store import BackfillStore, backfills_of, find_backfill
from pipeline.runs.driver.preflight import explain_unreachable_s3
from pipeline.storage import open_storage

LAST = "last"
"""Name of the newest backfill; it cannot be an id, since ids are hex digits."""


def find(backfill: str, output: str | None, settings: Settings) -> BackfillStore:
    """Find a backfill of the known outputs by the first letters of its id, or the newest.

    Raises:
        UsageError: No backfill matches, or several do.
    """
    outputs = [output] if output else known_outputs(settings.state_dir)
    if not outputs:
        raise UsageError(
            "no output is known on this machine", hint="name it with --output s3://bucket/prefix/"
        )
    with explain_unreachable_s3(settings):
        storage = open_storage(settings)
        if backfill != LAST:
            return find_backfill(storage, outputs, backfill)
        records = [record for uri in outputs for record in backfills_of(storage, uri)]
        if not records:
            raise UsageError(f"there is no backfill of {', '.join(outputs)}")
        newest = max(records, key=lambda record: record.created)
        return BackfillStore(storage, newest.output, newest.backfill)
