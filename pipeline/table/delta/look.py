"""Look at the Delta table of an output, without writing anything."""

from __future__ import annotations

from pipeline.errors import AccessDeniedError, ChunkmapError, is_transient
from pipeline.report.humanize import plural
from pipeline.table.delta.log import DeltaLog
from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest


def table_versions(table_log: TableLog) -> dict[int, int]:
    """Return the version of an output's table for each manifest that it has had.

    Versions whose log has expired are left out.

    Raises:
        DamagedTableError: The Delta log cannot be read.
    """
    log = DeltaLog(table_log.storage, table_log.output)
    return {} if table_log.storage.retrying(log.read) is None else log.manifests()


def table_problems(table_log: TableLog, manifest: Manifest) -> list[str]:
    """Describe how the table of an output differs from its manifest; empty if it does not.

    Raises:
        TransientStorageError, AccessDeniedError: The Delta log cannot be reached.
    """
    log = DeltaLog(table_log.storage, table_log.output)
    try:
        state = table_log.storage.retrying(log.read)
    except ChunkmapError as error:
        if is_transient(error) or isinstance(error, AccessDeniedError):
            raise
        return [str(error)]
    files = table_log.snapshot(manifest)
    if state is None:
        lacks = f"{table_log.output} lacks its Delta log; {_NEXT}"
        return [lacks] if files.height else []
    if state.manifest != manifest.number:
        has = "no manifest" if state.manifest is None else f"manifest {state.manifest}"
        return [f"the Delta log has {has}, the output manifest {manifest.number}; {_NEXT}"]
    named = {key: (rows, size) for key, rows, size in files.select("key", "rows", "bytes").rows()}
    table = log.figures()
    differing = [key for key in named.keys() & table.keys() if named[key] != table[key]]
    counts = (
        (len(named.keys() - table.keys()), "removed from the table by another writer"),
        (len(table.keys() - named.keys()), "added to the table by another writer"),
        (len(differing), "recorded with other rows or bytes in the Delta log"),
    )
    return [f"{plural(count, 'file')} {what}" for count, what in counts if count]


_NEXT = "the next run, or `chunkmap vacuum`, commits what is missing"
