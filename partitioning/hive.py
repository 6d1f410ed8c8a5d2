"""Parse Hive partition values: `name=value` directories, with one type per column."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final
from urllib.parse import unquote

import pyarrow as pa

from partitioning.errors import HiveTypeError, SchemaMismatchError
from partitioning.hive_paths import NULL_VALUE, raw_values
from partitioning.model import PartitionValue

_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_TYPES: Final[Mapping[str, pa.DataType]] = {
    "string": pa.string(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "date": pa.date32(),
}
HIVE_TYPES: Final = tuple(_TYPES)
"""Types that can be declared for a Hive column."""

Convert = Callable[[str], PartitionValue]
"""Function from a decoded text to a value."""


@dataclass(frozen=True, slots=True)
class Hive:
    """The partition columns of a listing."""

    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    """Types as declared; else int64, date32 or string, the narrowest that fits all values."""
    columns: tuple[list[PartitionValue], ...]
    """Values of all objects, for each name."""
    raws: tuple[list[str], ...]
    """Raw texts of the values, which identify partitions."""
    missing: tuple[list[bool], ...]
    """Whether a column is not in the path of an object, which is then null."""

    def fields(self) -> list[pa.Field]:
        """Return the Arrow fields, which follow the files' columns."""
        return [pa.field(n, t) for n, t in zip(self.names, self.types, strict=True)]

    def take(self, order: Sequence[int]) -> Hive:
        """Return the values of some objects, in this order."""
        columns = tuple([column[i] for i in order] for column in self.columns)
        raws = tuple([own[i] for i in order] for own in self.raws)
        missing = tuple([own[i] for i in order] for own in self.missing)
        return Hive(self.names, self.types, columns, raws, missing)


def parse(
    directories: Sequence[str],
    uris: Sequence[str],
    *,
    lenient: bool,
    others: Iterable[str] = (),
    declared: Mapping[str, str] | None = None,
) -> Hive:
    """Parse the objects' directories (below the prefix).

    Only values are percent-decoded, as writers encode them; a key is never decoded. Without a
    declared type, a column has integers if all its values are integers (leading zeros allowed, as
    in `month=01`), dates if all are `YYYY-MM-DD`, else text.

    Args:
        directories: Directory of each object.
        uris: URIs of the objects, for messages.
        lenient: A missing column is null instead of an error.
        others: Directories of objects that are left out. Their values affect types too, so that
            types do not depend on the windows that are planned.
        declared: Declared types (of `HIVE_TYPES`) of some columns, by name.

    Raises:
        SchemaMismatchError: Some objects lack a partition column that others have.
        HiveTypeError: A declared column is not a partition column, or a value does not fit its
            column's declared type.
    """
    declared = declared or {}
    distinct = {d: dict(raw_values(d)) for d in set(directories)}
    outside = [dict(raw_values(d)) for d in others]
    names = _ordered_names(distinct)
    if not lenient:
        _check(directories, distinct, uris, names)
    _check_declared(declared, names)
    types, columns, raw_columns, missing = [], [], [], []
    for name in names:
        raws = {d: values.get(name, NULL_VALUE) for d, values in distinct.items()}
        texts = {raw: unquote(raw) for raw in raws.values() if raw != NULL_VALUE}
        if name in declared:
            kind, convert = _declared_type(
                name, declared[name], texts, places=(raws, directories, uris)
            )
        else:
            others = {values.get(name, NULL_VALUE) for values in outside} - {NULL_VALUE}
            kind, convert = _infer_type([*texts.values(), *map(unquote, others)])
        values = {raw: convert(text) for raw, text in texts.items()}
        types.append(kind)
        columns.append([values.get(raws[d]) for d in directories])
        raw_columns.append([raws[d] for d in directories])
        missing.append([name not in distinct[d] for d in directories])
    return Hive(tuple(names), tuple(types), tuple(columns), tuple(raw_columns), tuple(missing))


def _ordered_names(distinct: Mapping[str, Mapping[str, str]]) -> list[str]:
    names: dict[str, None] = {}
    # Sorted, so that the result does not depend on the order of the listing.
    for directory in sorted(distinct):
        names.update(dict.fromkeys(distinct[directory]))
    return list(names)


def _check(
    directories: Sequence[str],
    distinct: Mapping[str, Mapping[str, str]],
    uris: Sequence[str],
    names: list[str],
) -> None:
    lacking = {d for d, values in distinct.items() if len(values) != len(names)}
    if not lacking:
        return
    example, directory = min((u, d) for d, u in zip(directories, uris, strict=True) if d in lacking)
    name = next(n for n in names if n not in distinct[directory])
    other = min(u for d, u in zip(directories, uris, strict=True) if name in distinct[d])
    raise SchemaMismatchError(
        f"partition column {name!r} is in the key of {other}, but not in that of {example} "
        "(schema: union reads it as null)"
    )


def _check_declared(declared: Mapping[str, str], names: Sequence[str]) -> None:
    for name, kind in declared.items():
        if kind not in _TYPES:
            raise HiveTypeError(
                f"{kind!r} is not a type of Hive columns; use one of {', '.join(HIVE_TYPES)}"
            )
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            have = ", ".join(names) or "none"
            raise HiveTypeError(
                f"a type is declared for {name!r}, which is not a Hive column of the input; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {have}")
            )


def _declared_type(
    name: str,
    declared: str,
    texts: Mapping[str, str],
    places: tuple[Mapping[str, str], Sequence[str], Sequence[str]],
) -> tuple[pa.DataType, Convert]:
    """Return a column's declared type, and the function that converts texts to it.

    Args:
        name: Name of the column.
        declared: Declared type.
        texts: Decoded texts, by raw text.
        places: Raw text by directory, and directory and URI of each object, for messages.
    """
    kind = _TYPES[declared]
    fits, convert = _converter(kind)
    for raw, text in sorted(texts.items()):
        if not fits(text):
            raws, directories, uris = places
            example = min(u for d, u in zip(directories, uris, strict=True) if raws[d] == raw)
            raise HiveTypeError(
                f"Hive column {name!r} is declared as {declared}, but has the value {text!r}: "
                f"{example}"
            )
    return kind, convert


def _infer_type(texts: Sequence[str]) -> tuple[pa.DataType, Convert]:
    for kind in (pa.int64(), pa.date32()):
        fits, convert = _converter(kind)
        if texts and all(map(fits, texts)):
            return kind, convert
    return pa.string(), str


def _converter(kind: pa.DataType) -> tuple[Callable[[str], bool], Convert]:
    """Return two functions of a text: whether it fits a type, and its value."""
    if pa.types.is_integer(kind):
        limit = 2 ** (kind.bit_width - 1)
        return lambda text: bool(_INTEGER.fullmatch(text)) and -limit <= int(text) < limit, int
    if pa.types.is_date(kind):
        return _is_date, date.fromisoformat
    return lambda _: True, str


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
