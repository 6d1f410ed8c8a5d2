"""Find the backfill that a command names."""

from __future__ import annotations

from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.runs.admin.known_outputs import named_outputs
from pipeline.runs.backfill.listing import LAST
from pipeline.runs.backfill.store import BackfillStore, backfills_of, find_backfill
from pipeline.runs.driver.preflight import explain_unreachable_s3
from pipeline.storage import open_storage


def find(backfill: str, output: str | None, settings: Settings) -> BackfillStore:
    """Find a backfill of the known outputs by the first letters of its id, or the newest.

    Raises:
        UsageError: No backfill matches, or several do.
    """
    outputs = named_outputs(settings.state_dir, output)
    with explain_unreachable_s3(settings):
        storage = open_storage(settings)
        if backfill != LAST:
            return find_backfill(storage, outputs, backfill)
        records = [record for uri in outputs for record in backfills_of(storage, uri)]
        if not records:
            raise UsageError(f"there is no backfill of {', '.join(outputs)}")
        newest = max(records, key=lambda record: record.created)
        return BackfillStore(storage, newest.output, newest.backfill)
