"""Plan chunks of a Parquet dataset: list, read footers, prune, pack.

Pure planning: it knows Parquet and object listings, and no execution engine.
"""

from partitioning.errors import (
    BadObjectsError,
    ColumnError,
    FilterError,
    NoParquetError,
    PlanFormatError,
    PlanningError,
    SchemaMismatchError,
    TargetError,
)
from partitioning.model import Chunk, Fragment, ObjectInfo, Plan, Skipped
from partitioning.reader import Reader, Tail, TailRequest

__all__ = [
    "BadObjectsError",
    "Chunk",
    "ColumnError",
    "FilterError",
    "Fragment",
    "NoParquetError",
    "ObjectInfo",
    "Plan",
    "PlanFormatError",
    "PlanningError",
    "Reader",
    "SchemaMismatchError",
    "Skipped",
    "Tail",
    "TailRequest",
    "TargetError",
]
