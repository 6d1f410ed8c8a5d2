"""Settle a manifest: what is left to do once the pointer names it."""

from __future__ import annotations

from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest
from pipeline.table.retention import move_replaced


def settle(table_log: TableLog, manifest: Manifest) -> None:
    """Move the files that a manifest replaced out of the output, or commit it to its table.

    Older versions of a table name its replaced files, so these stay until the table's own vacuum.
    Doing it twice changes nothing.

    Args:
        table_log: Table log of the output.
        manifest: The current manifest.
    """
    if not manifest.table:
        move_replaced(table_log, manifest)
        return
    if table_log.moved != manifest.number:
        # Only tables need their library.
        from pipeline.table.delta.commit import settle_table

        settle_table(table_log, manifest)
