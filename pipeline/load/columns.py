"""Decide the columns of a table: those of an output, and how those of an existing table fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.load.batches import OutputVersion
from pipeline.load.column_types import Column, Dialect, UnsupportedTypeError
from pipeline.load.destination import TableColumn
from pipeline.load.errors import TableMismatchError

MAX_NAMED = 8
"""Maximum number of columns that a message names."""


def columns_of(source: OutputVersion, dialect: Dialect, where: str) -> tuple[Column, ...]:
    """Return the columns of a version with their types in a destination.

    Args:
        source: The version.
        dialect: Types of the destination.
        where: The destination, for messages.

    Raises:
        TableMismatchError: A type has no counterpart, or a name cannot be that of a column.
    """
    columns: list[Column] = []
    problems: list[str] = []
    names: dict[str, str] = {}
    for name, dtype in source.schema().items():
        try:
            columns.append(Column(name, dtype, dialect.type_of(dtype)))
        except UnsupportedTypeError as error:
            problems.append(f"column {name} ({dtype}): {error}")
        other = names.setdefault(dialect.fold(name), name)
        if other != name:
            problems.append(f"columns {other} and {name} have the same name in {dialect.name}")
        if not name or "\0" in name:
            problems.append(f"column {name!r} has no name that {dialect.name} accepts")
        if dialect.max_name_bytes is not None and len(name.encode()) > dialect.max_name_bytes:
            problems.append(
                f"column {name} is longer than {dialect.max_name_bytes} bytes, and "
                f"{dialect.name} would cut its name"
            )
        if dialect.refused_in_names is not None and dialect.refused_in_names.search(name):
            problems.append(f"column {name!r} has a character that {dialect.name} refuses in names")
    if problems:
        raise TableMismatchError(
            f"{source.version.output} cannot be loaded into {where}: "
            + "; ".join(problems[:MAX_NAMED]),
            hint="rename, cast or drop these columns in the transform",
        )
    return tuple(columns)


@dataclass(frozen=True, slots=True)
class Differences:
    """How the columns of an existing table differ from those of an output."""

    lacking: tuple[Column, ...]
    """Columns that the table lacks."""
    unknown: tuple[str, ...]
    """Columns that the table alone has, and that have no default."""
    others: tuple[tuple[Column, str], ...]
    """Columns whose type in the table does not hold their values, with that type."""

    @classmethod
    def between(
        cls,
        columns: Sequence[Column],
        existing: Mapping[str, TableColumn],
        dialect: Dialect,
        spellings: Mapping[str, str],
    ) -> Differences:
        """Compare columns with those of a table.

        Args:
            columns: Columns of the output.
            existing: Columns of the table.
            dialect: Types of the destination.
            spellings: Type of each column of the output, by name, as existing tables spell it.
        """
        fold = dialect.fold
        has = {fold(name): column for name, column in existing.items()}
        wanted = {fold(column.name): column for column in columns}
        return cls(
            tuple(column for name, column in wanted.items() if name not in has),
            tuple(
                name
                for name, column in existing.items()
                if fold(name) not in wanted and not column.has_default
            ),
            tuple(
                (column, has[name].kind)
                for name, column in wanted.items()
                if name in has and not dialect.holds(spellings[column.name], has[name].kind)
            ),
        )

    def problems(self, *, widen: bool) -> list[str]:
        """Describe why rows cannot be loaded; columns that are lacking are none with `widen`."""
        problems = [
            f"{column.name} is {old} and must hold {column.type.sql}" for column, old in self.others
        ]
        if self.lacking and not widen:
            problems.append(f"it lacks {named([column.name for column in self.lacking])}")
        if self.unknown:
            problems.append(f"the output has no {named(self.unknown)}")
        return problems


def named(names: Sequence[str]) -> str:
    """Name some columns of many."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
