"""Hive partition values: `name=value` directories below the prefix, typed over the dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final
from urllib.parse import unquote

import pyarrow as pa

from partitioning.errors import SchemaMismatchError
from partitioning.model import PartitionValue

NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


def raw_values(directory: str) -> tuple[tuple[str, str], ...]:
    """Return the (name, raw value) pairs of a directory's path, in order; the last wins."""
    found: dict[str, str] = {}
    for segment in directory.split("/"):
        name, equals, value = segment.partition("=")
        if equals and name:
            found[name] = value
    return tuple(found.items())


@dataclass(frozen=True, slots=True)
class Hive:
    """The partition columns of a listing."""

    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    """date32, int64 or string: the narrowest that all values have."""
    columns: tuple[list[PartitionValue], ...]
    """A value per object for each name."""

    def fields(self) -> list[pa.Field]:
        """Return the Arrow fields, to be appended to the files' columns."""
        return [pa.field(n, t) for n, t in zip(self.names, self.types, strict=True)]


def parse(
    directories: Sequence[str],
    uris: Sequence[str],
    *,
    lenient: bool,
    others: Iterable[str] = (),
) -> Hive:
    """Parse the objects' directories (below the prefix).

    Percent-decoding is for values only, as writers encode them; a key is never decoded. A
    column is of integers if all its values are (leading zeros allowed, as in `month=01`), of
    dates if all are `YYYY-MM-DD`, else of text.

    Args:
        directories: a path per object.
        uris: the objects, for messages.
        lenient: a name that an object lacks is null instead of an error.
        others: directories of objects that are left out, whose values decide types all the same:
            the same column has the same type whichever windows of a dataset are planned.

    Raises:
        SchemaMismatchError: some objects lack a partition column that others have.
    """
    distinct, others = {d: raw_values(d) for d in set(directories)}, tuple(others)
    names = _ordered_names(directories, distinct)
    if not lenient:
        _check(directories, distinct, uris, names)
    types, columns = [], []
    for name in names:
        raws = {d: dict(pairs).get(name) for d, pairs in distinct.items()}
        texts = {d: None if r is None or r == NULL else unquote(r) for d, r in raws.items()}
        further = (dict(raw_values(d)).get(name) for d in others)
        kind, convert = _kind(
            [t for t in texts.values() if t is not None]
            + [unquote(r) for r in further if r is not None and r != NULL]
        )
        values = {d: None if t is None else convert(t) for d, t in texts.items()}
        types.append(kind)
        columns.append([values[d] for d in directories])
    return Hive(tuple(names), tuple(types), tuple(columns))


def _ordered_names(
    directories: Sequence[str], distinct: dict[str, tuple[tuple[str, str], ...]]
) -> list[str]:
    names: dict[str, None] = {}
    # Sorted, so that the order of a listing decides nothing.
    for directory in sorted(distinct):
        names.update(dict.fromkeys(name for name, _ in distinct[directory]))
    return list(names)


def _check(
    directories: Sequence[str],
    distinct: dict[str, tuple[tuple[str, str], ...]],
    uris: Sequence[str],
    names: list[str],
) -> None:
    lacking = {d for d, pairs in distinct.items() if len(pairs) != len(names)}
    if not lacking:
        return
    example = min(u for d, u in zip(directories, uris, strict=True) if d in lacking)
    has = {name for name, _ in distinct[next(
        d for d, u in zip(directories, uris, strict=True) if u == example)]}  # fmt: skip
    name = next(n for n in names if n not in has)
    other = min(u for d, u in zip(directories, uris, strict=True) if name in dict(distinct[d]))
    raise SchemaMismatchError(
        f"partition column {name!r} is in the key of {other} and not in that of {example} "
        "(schema: union reads it as null)"
    )


def _kind(texts: Iterable[str]) -> tuple[pa.DataType, Callable[[str], PartitionValue]]:
    found = list(texts)
    if found and all(_INTEGER.fullmatch(t) and -(2**63) <= int(t) < 2**63 for t in found):
        return pa.int64(), int
    if found and all(_is_date(t) for t in found):
        return pa.date32(), date.fromisoformat
    return pa.string(), str


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
