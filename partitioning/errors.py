"""Errors of planning.

    PlanningError
    ├── NoParquetError       no object to plan
    ├── MissingFilesError    files of a table version that are gone
    ├── BadObjectsError      objects that are not readable Parquet, all of them
    ├── SchemaMismatchError  objects with different columns
    ├── HiveTypeError        a declared type that does not fit the values of a Hive column
    ├── TargetError          an impossible chunking
    ├── FilterError          a filter term that cannot be evaluated
    ├── TableFormatError     the folder of a Delta, Iceberg or Hudi table
    ├── ColumnError          a column that the dataset does not have
    ├── WindowError          impossible windows, or windows that the data does not have
    └── PlanFormatError      bytes that are not a plan of a supported version

All are permanent: planning the same input again fails again.
"""

from __future__ import annotations

from collections.abc import Sequence

_MAX_SHOWN = 20


class PlanningError(Exception):
    """The dataset cannot be planned as requested."""


class NoParquetError(PlanningError):
    """The input has no Parquet object."""


class BadObjectsError(PlanningError):
    """Some objects are not readable Parquet.

    Attributes:
        objects: (uri, offset of the damage in bytes, reason) of every bad object.
    """

    def __init__(self, objects: Sequence[tuple[str, int, str]]) -> None:
        self.objects = tuple(objects)
        super().__init__(self.objects)

    def __str__(self) -> str:
        lines = [f"{uri}: at byte {offset}: {reason}" for uri, offset, reason in self.objects]
        shown = lines[:_MAX_SHOWN]
        if len(lines) > _MAX_SHOWN:
            shown.append(f"… and {len(lines) - _MAX_SHOWN} more")
        noun = "object is" if len(lines) == 1 else "objects are"
        return "\n  ".join([f"{len(lines)} {noun} not readable Parquet:", *shown])


class SchemaMismatchError(PlanningError):
    """The objects' columns differ in a way that the schema rule does not allow."""


class MissingFilesError(PlanningError):
    """Files that a table's log names do not exist, or are not the ones that it names."""


class TableFormatError(PlanningError):
    """The input is in the folder of a Delta Lake, Iceberg or Hudi table."""


class HiveTypeError(PlanningError):
    """The declared type of a Hive column is unknown, or does not fit all its values."""


class TargetError(PlanningError):
    """The requested chunking is impossible or contradicts itself."""


class FilterError(PlanningError):
    """A filter term has an unknown column, an unknown operator or a value of the wrong type."""


class ColumnError(PlanningError):
    """A requested column is not in the dataset."""


class WindowError(PlanningError):
    """A window, a range of windows or a column's values do not fit the grain."""


class PlanFormatError(PlanningError):
    """The bytes are not a plan, or have a version that this release does not read."""
