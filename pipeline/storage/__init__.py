"""Read, write and stage objects by URI, in S3 and on the local file system.

Only this package imports S3 clients. Other packages see only chunkmap's errors. Transient errors
are retried here, by one policy; the clients' own retries are off.
"""

from pipeline.storage.backend import Backend, Blob, StagedObject
from pipeline.storage.lookup_tables import Tables, changed_tables, read_table, replaced_tables
from pipeline.storage.planner_reader import StorageReader
from pipeline.storage.probe import find_condition_problem, require_conditional_writes
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.storage import (
    Storage,
    open_storage,
    own_storage,
    scan_arguments,
    scan_options,
)
from pipeline.uris import (
    as_prefix,
    join,
    parse,
    same_place,
    staged_area,
    state_prefix,
)

__all__ = [
    "Backend",
    "Blob",
    "RetryPolicy",
    "StagedObject",
    "Storage",
    "StorageReader",
    "Tables",
    "as_prefix",
    "changed_tables",
    "find_condition_problem",
    "join",
    "open_storage",
    "own_storage",
    "parse",
    "read_table",
    "replaced_tables",
    "require_conditional_writes",
    "same_place",
    "scan_arguments",
    "scan_options",
    "staged_area",
    "state_prefix",
]
