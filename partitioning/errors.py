"""Everything that planning can refuse.

    PlanningError
    ├── NoParquetError       nothing to plan was found
    ├── BadObjectsError      objects that are not readable Parquet, all of them
    ├── SchemaMismatchError  objects whose columns differ
    ├── HiveTypeError        a declared type that values of a Hive column are not of
    ├── TargetError          a chunking that cannot be
    ├── FilterError          a filter term that cannot be evaluated
    ├── TableFormatError     a Delta, Iceberg or Hudi table, whose folder is no plain Parquet
    ├── ColumnError          a column that the dataset does not have
    ├── WindowError          windows that cannot be, or that the data does not have
    └── PlanFormatError      bytes that are not a plan of a known version

All are terminal: planning again the same input fails again.
"""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 20


class PlanningError(Exception):
    """The dataset cannot be planned as asked."""


class NoParquetError(PlanningError):
    """The input names no Parquet object."""


class BadObjectsError(PlanningError):
    """Some objects are not readable Parquet.

    Attributes:
        objects: (uri, offset in bytes of what is wrong, reason) of every bad object.
    """

    def __init__(self, objects: Sequence[tuple[str, int, str]]) -> None:
        self.objects = tuple(objects)
        super().__init__(self.objects)

    def __str__(self) -> str:
        lines = [f"{uri}: at byte {offset}: {reason}" for uri, offset, reason in self.objects]
        shown = lines[:_SHOWN]
        if len(lines) > _SHOWN:
            shown.append(f"… and {len(lines) - _SHOWN} more")
        noun = "object is" if len(lines) == 1 else "objects are"
        return "\n  ".join([f"{len(lines)} {noun} not readable Parquet:", *shown])


class SchemaMismatchError(PlanningError):
    """The objects' columns differ in a way that the chosen schema rule does not allow."""


class TableFormatError(PlanningError):
    """The input lies in the folder of a Delta Lake, Iceberg or Hudi table."""


class HiveTypeError(PlanningError):
    """The declared type of a Hive column is none, or is not that of all its values."""


class TargetError(PlanningError):
    """The chunking asked for is impossible or contradicts itself."""


class FilterError(PlanningError):
    """A filter term has an unknown column, an unknown operator or a value of the wrong type."""


class ColumnError(PlanningError):
    """A column to read is not in the dataset."""


class WindowError(PlanningError):
    """A window, a range of them or the column's values do not fit the grain."""


class PlanFormatError(PlanningError):
    """The bytes are not a plan, or one of a version that this release does not read."""
