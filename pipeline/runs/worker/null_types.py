"""Columns of nothing but nulls: they have no type of their own, and take that of the others.

A chunk's column that holds only nulls may come out as Null, List(Null) and the like: nothing said
what it would hold. Beside chunks where something did, its file would be of another schema. To cast
nulls loses nothing, so such a chunk is mapped again, with the types of the others at hand.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache, reduce
from typing import Final

import polars as pl

from pipeline.runs.ledger.records import PARTIAL, Progress
from pipeline.table.column_types import has_nulls, merge_dtypes, merge_types, parse_dtype
from pipeline.table.columns import Columns

MOST_TEXT: Final = 16 << 10
"""Characters of types that go with each batch. Of more, chunks get theirs when all are mapped."""

Types = dict[str, pl.DataType]
"""Types by name of the column."""


# -- types as texts ---------------------------------------------------------------------------


# -- on a worker ------------------------------------------------------------------------------


@lru_cache(64)
def types_of_text(text: str) -> Types:
    """The types that come with a batch; without those that cannot be read."""
    found = {name: parse_dtype(kind) for name, kind in (json.loads(text) if text else {}).items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def fill_types(
    frame: pl.DataFrame, types: Mapping[str, pl.DataType]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Give columns of nothing but nulls a type; returns the frame, and the names of these.

    Args:
        frame: A chunk's result.
        types: What is known of its columns.
    """
    wanted = {}
    for name, kind in frame.schema.items():
        both = merge_dtypes(kind, types[name]) if name in types else None
        if both is not None and both != kind:
            wanted[name] = both
    if not wanted:
        return frame, ()
    columns = [
        column.cast(wanted[column.name]) if column.name in wanted else column for column in frame
    ]
    return pl.DataFrame(columns), tuple(wanted)


def types_of_frames(frames: Collection[pl.DataFrame]) -> Types:
    """What several results say of each other's columns, where some hold nothing but nulls."""
    found: Types = {}
    open_ = {name for frame in frames for name, k in frame.schema.items() if has_nulls(str(k))}
    for name in open_:
        kinds = [frame.schema[name] for frame in frames if name in frame.schema]
        both: pl.DataType | None = kinds[0]
        for kind in kinds[1:]:
            both = None if both is None else merge_dtypes(both, kind)
        if both is not None:
            found[name] = both
    return found


# -- in the driver ----------------------------------------------------------------------------


def agreed_types(progress: Progress, known: Mapping[str, str] | None = None) -> Columns:
    """The types of the columns that have none of their own in some chunks.

    What chunks have found themselves comes first, then what some were given, then what is known
    otherwise. So everybody who reads the same ledger says the same.

    Args:
        progress: What is done.
        known: Types that the output's columns have.
    """
    kinds = list(_kinds(progress)) if _is_any_open(progress) else []
    open_ = {n for columns, filled in kinds for n in {*filled, *_open_columns(columns)}}
    agreed: Columns = {}
    for name in sorted(open_):
        own = ["Null" if name in filled else c[name] for c, filled in kinds if name in c]
        both = reduce(_merged_or_none, own[1:], own[0] if own else None)
        if both is None:
            continue  # They differ in more than that: publishing says so.
        given = [c[name] for c, filled in kinds if name in filled and name in c]
        for kind in (*given, (known or {}).get(name, "Null")):
            both = merge_types(both, kind) or both
        agreed[name] = both
    return agreed


def _merged_or_none(one: str | None, other: str) -> str | None:
    return None if one is None else merge_types(one, other)


def _open_columns(columns: Mapping[str, str]) -> Iterator[str]:
    """Names of the columns whose type leaves something open."""
    return (name for name, kind in columns.items() if has_nulls(kind))


def _is_any_open(progress: Progress) -> bool:
    is_given = bool(progress.completions["filled"].list.len().sum())
    return is_given or any(map(has_nulls, progress.schemas.values()))


def _kinds(progress: Progress) -> Iterator[tuple[Columns, list[str]]]:
    """The columns of some completions and which of them were given their type; each pair once."""
    done = progress.completions
    pairs = done.select("schema", "filled").unique(maintain_order=True)
    for digest, filled in pairs.iter_rows():
        yield json.loads(progress.schemas.get(digest, "{}")), filled


def open_chunks(progress: Progress, known: Mapping[str, str]) -> set[int]:
    """Indices of chunks that have columns whose type is open, other than the output's are."""
    bad = [
        digest
        for digest in progress.completions["schema"].unique()
        if any(
            columns[name] != known.get(name)
            for columns in [json.loads(progress.schemas.get(digest, "{}"))]
            for name in _open_columns(columns)
        )
    ]
    rows = progress.completions.filter(pl.col("schema").is_in(bad))
    return set(rows["index"].to_list())


def odd_attempts(progress: Progress, agreed: Mapping[str, str]) -> pl.DataFrame:
    """Completions, duplicates too, whose columns have not the types that were agreed on, but could.

    A partial holds several chunks, which count together.
    """
    known = pl.concat([progress.completions, progress.duplicates])
    if not agreed:
        return known.head(0)
    pairs = known.select("schema", "filled").unique(maintain_order=True)
    odd = [
        (digest, filled)
        for digest, filled in pairs.iter_rows()
        if _is_odd(json.loads(progress.schemas.get(digest, "{}")), filled, agreed)
    ]
    found = known.join(
        pl.DataFrame(odd, schema=pairs.schema, orient="row"), on=["schema", "filled"], how="semi"
    )
    uris = found.filter(pl.col("upload") == PARTIAL)["uri"].unique()
    return known.filter(
        pl.col("attempt").is_in(found["attempt"].implode()) | pl.col("uri").is_in(uris.implode())
    )


def _is_odd(columns: Columns, filled: Collection[str], agreed: Mapping[str, str]) -> bool:
    for name, wanted in agreed.items():
        kind = columns.get(name)
        if kind is not None and kind != wanted:
            both = merge_types("Null" if name in filled else kind, wanted)
            if both is not None and both != kind:
                return True
    return False
