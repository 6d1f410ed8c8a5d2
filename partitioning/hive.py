"""Hive partition values: `name=value` directories below the prefix, typed over the dataset."""

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
"""Types that a Hive column can be declared to have."""

Convert = Callable[[str], PartitionValue]
"""From a decoded text to a value."""


@dataclass(frozen=True, slots=True)
class Hive:
    """The partition columns of a listing."""

    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    """As declared; else date32, int64 or string: the narrowest that all values have."""
    columns: tuple[list[PartitionValue], ...]
    """A value per object for each name."""
    raws: tuple[list[str], ...]
    """The raw text of each value: what tells partitions apart."""

    def fields(self) -> list[pa.Field]:
        """Return the Arrow fields, to be appended to the files' columns."""
        return [pa.field(n, t) for n, t in zip(self.names, self.types, strict=True)]

    def take(self, order: Sequence[int]) -> Hive:
        """Return the values of some objects, in this order."""
        columns = tuple([column[i] for i in order] for column in self.columns)
        return Hive(
            self.names, self.types, columns, tuple([raws[i] for i in order] for raws in self.raws)
        )


def parse(
    directories: Sequence[str],
    uris: Sequence[str],
    *,
    lenient: bool,
    others: Iterable[str] = (),
    declared: Mapping[str, str] | None = None,
) -> Hive:
    """Parse the objects' directories (below the prefix).

    Percent-decoding is for values only, as writers encode them; a key is never decoded. Unless
    its type is declared, a column is of integers if all its values are (leading zeros allowed, as
    in `month=01`), of dates if all are `YYYY-MM-DD`, else of text.

    Args:
        directories: a path per object.
        uris: the objects, for messages.
        lenient: a name that an object lacks is null instead of an error.
        others: directories of objects that are left out, whose values decide types all the same:
            the same column has the same type whichever windows of a dataset are planned.
        declared: the type (of `HIVE_TYPES`) of some columns, by name.

    Raises:
        SchemaMismatchError: some objects lack a partition column that others have.
        HiveTypeError: a type is declared for what is no partition column, or a value is not of its
            column's declared type.
    """
    declared = declared or {}
    distinct = {d: dict(raw_values(d)) for d in set(directories)}
    outside = [dict(raw_values(d)) for d in others]
    names = _ordered_names(distinct)
    if not lenient:
        _check(directories, distinct, uris, names)
    _check_declared(declared, names)
    types, columns, spelled = [], [], []
    for name in names:
        own = {d: values.get(name, NULL_VALUE) for d, values in distinct.items()}
        texts = {raw: unquote(raw) for raw in own.values() if raw != NULL_VALUE}
        if name in declared:
            kind, convert = _as_declared(
                name, declared[name], texts, places=(own, directories, uris)
            )
        else:
            further = {raws.get(name, NULL_VALUE) for raws in outside} - {NULL_VALUE}
            kind, convert = _kind([*texts.values(), *map(unquote, further)])
        values = {raw: convert(text) for raw, text in texts.items()}
        types.append(kind)
        columns.append([values.get(own[d]) for d in directories])
        spelled.append([own[d] for d in directories])
    return Hive(tuple(names), tuple(types), tuple(columns), tuple(spelled))


def _ordered_names(distinct: Mapping[str, Mapping[str, str]]) -> list[str]:
    names: dict[str, None] = {}
    # Sorted, so that the order of a listing decides nothing.
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
        f"partition column {name!r} is in the key of {other} and not in that of {example} "
        "(schema: union reads it as null)"
    )


def _check_declared(declared: Mapping[str, str], names: Sequence[str]) -> None:
    for name, kind in declared.items():
        if kind not in _TYPES:
            raise HiveTypeError(
                f"{kind!r} is no type of a Hive column; there are {', '.join(HIVE_TYPES)}"
            )
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            have = ", ".join(names) or "none"
            raise HiveTypeError(
                f"a type is declared for {name!r}, which is no Hive column of the input; "
                + (f"did you mean {near[0]!r}?" if near else f"it has {have}")
            )


def _as_declared(
    name: str,
    declared: str,
    texts: Mapping[str, str],
    places: tuple[Mapping[str, str], Sequence[str], Sequence[str]],
) -> tuple[pa.DataType, Convert]:
    """Return a column's declared type, and what makes a value of it.

    Args:
        name: of the column.
        declared: its type.
        texts: each raw text, decoded.
        places: raw text by directory, and directory and URI of each object, for messages.
    """
    kind = _TYPES[declared]
    fits, convert = _converter(kind)
    for raw, text in sorted(texts.items()):
        if not fits(text):
            own, directories, uris = places
            example = min(u for d, u in zip(directories, uris, strict=True) if own[d] == raw)
            raise HiveTypeError(
                f"Hive column {name!r} is declared as {declared}, and {text!r} is none: {example}"
            )
    return kind, convert


def _kind(texts: Sequence[str]) -> tuple[pa.DataType, Convert]:
    for kind in (pa.int64(), pa.date32()):
        fits, convert = _converter(kind)
        if texts and all(map(fits, texts)):
            return kind, convert
    return pa.string(), str


def _converter(kind: pa.DataType) -> tuple[Callable[[str], bool], Convert]:
    """Return what tells whether a text is of a type, and what makes a value of it."""
    if pa.types.is_integer(kind):
        most = 2 ** (kind.bit_width - 1)
        return lambda text: bool(_INTEGER.fullmatch(text)) and -most <= int(text) < most, int
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
