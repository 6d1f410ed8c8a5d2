"""Plan chunks of a Parquet dataset: list, read footers, prune, pack.

The package only plans: it knows Parquet and object listings, but no execution.
Begin with `plan_dataset`.
"""

from partitioning.errors import (
    BadObjectsError,
    ColumnError,
    FilterError,
    HiveTypeError,
    MissingFilesError,
    NoParquetError,
    PlanFormatError,
    PlanningError,
    SchemaMismatchError,
    TableFormatError,
    TargetError,
    WindowError,
)
from partitioning.explain import Distribution, Explain, PlanResult
from partitioning.filters import Filter, Term, filter_expr
from partitioning.fsspec_reader import FsspecReader
from partitioning.model import Chunk, Fragment, ObjectInfo, Plan, Skipped
from partitioning.planner import MapStage, Progress, plan_dataset
from partitioning.reader import Reader, Tail, TailRequest
from partitioning.request import PinnedFiles, PlanRequest
from partitioning.snapshot import Changes
from partitioning.window_inputs import (
    WindowInput,
    inputs_digest,
    inputs_of_listing,
    inputs_of_plan,
    windows_of_plan,
)
from partitioning.windows import Grain, Window, WindowFilter, Windowing

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
    "Grain",
    "HiveTypeError",
    "MapStage",
    "MissingFilesError",
    "NoParquetError",
    "ObjectInfo",
    "PinnedFiles",
    "Plan",
    "PlanFormatError",
    "PlanRequest",
    "PlanResult",
    "PlanningError",
    "Progress",
    "Reader",
    "SchemaMismatchError",
    "Skipped",
    "TableFormatError",
    "Tail",
    "TailRequest",
    "TargetError",
    "Term",
    "Window",
    "WindowError",
    "WindowFilter",
    "WindowInput",
    "Windowing",
    "filter_expr",
    "inputs_digest",
    "inputs_of_listing",
    "inputs_of_plan",
    "plan_dataset",
    "windows_of_plan",
]
