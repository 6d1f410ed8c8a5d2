"""Find the backfill that a command names."""

from __future__ import annotations

from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.runs.admin.known_outputs import known_outputs
from pipeline.runs.backfill.store import BackfillStore, backfills_of, find_backfill
from pipeline.runs.driver.preflight import explain_unreachable_s3
from pipeline.storage import open_storage

LAST = "last"
"""Names the newest backfill: ids are hex digits."""


def find(backfill: str, output: str | None, settings: Settings) -> BackfillStore:
    """The backfill whose id begins so, or the newest, among those of the known outputs.

    Raises:
        UsageError: there is none, or several.
    """
    outputs = [output] if output else known_outputs(settings.state_dir)
    if not outputs:
        raise UsageError(
            "no output is known here", hint="name it with --output s3://bucket/prefix/"
        )
    with explain_unreachable_s3(settings):
        storage = open_storage(settings)
        if backfill != LAST:
            return find_backfill(storage, outputs, backfill)
        records = [one for uri in outputs for one in backfills_of(storage, uri)]
        if not records:
            raise UsageError(f"there is no backfill of {', '.join(outputs)}")
        newest = max(records, key=lambda one: one.created)
        return BackfillStore(storage, newest.output, newest.backfill)
