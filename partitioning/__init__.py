"""Plan chunks of a Parquet dataset: list, read footers, prune, pack.

Pure planning: it knows Parquet and object listings, and no execution engine.
Begin with `plan_dataset`.
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
from partitioning.explain import Distribution, Explain, PlanResult
from partitioning.filters import Filter, Term, filter_expr
from partitioning.fsspec_reader import FsspecReader
from partitioning.model import Chunk, Fragment, ObjectInfo, Plan, Skipped
from partitioning.planner import Mapper, Progress, plan_dataset
from partitioning.reader import Reader, Tail, TailRequest
from partitioning.request import PlanRequest
from partitioning.snapshot import Changes

__all__ = [
    "BadObjectsError",
    "Changes",
    "Chunk",
    "ColumnError",
    "Distribution",
    "Explain",
    "Filter",
    "FilterError",
    "Fragment",
    "FsspecReader",
    "Mapper",
    "NoParquetError",
    "ObjectInfo",
    "Plan",
    "PlanFormatError",
    "PlanRequest",
    "PlanResult",
    "PlanningError",
    "Progress",
    "Reader",
    "SchemaMismatchError",
    "Skipped",
    "Tail",
    "TailRequest",
    "TargetError",
    "Term",
    "filter_expr",
    "plan_dataset",
]
