"""Give all-null columns of a chunk the types that they have in other chunks.

A column that is all null in a chunk may have the type Null, List(Null) or the like, and the file
another schema than those of other chunks. Casting nulls loses nothing, so such a chunk is mapped
again, with the other chunks' types.
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

MAX_TEXT: Final = 16 << 10
"""Maximum characters of types sent with each batch; the others are cast after all are mapped."""

Types = dict[str, pl.DataType]
"""Types by name of the column."""


# -- on a worker ------------------------------------------------------------------------------


@lru_cache(64)
def types_of_text(text: str) -> Types:
    """Parse the types that come with a batch; skip unknown ones."""
    types = {name: parse_dtype(kind) for name, kind in (json.loads(text) if text else {}).items()}
    return {name: kind for name, kind in types.items() if kind is not None}


def types_by_output(text: str) -> dict[str, Types]:
    """Parse the types that come with a batch, by the name of the output; the first has none."""
    values = json.loads(text) if text else {}
    if not any(isinstance(value, dict) for value in values.values()):
        return {"": types_of_text(text)}
    return {name: types_of_text(json.dumps(types)) for name, types in values.items()}


def fill_types(
    frame: pl.DataFrame, types: Mapping[str, pl.DataType]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Cast all-null columns; return the frame, and the names of the columns that were cast.

    Args:
        frame: Result of a chunk.
        types: Known types of its columns.
    """
    if not types:  # As nearly always.
        return frame, ()
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
    """Find the types of columns that are all null in some of these frames."""
    types: Types = {}
    open_ = {name for frame in frames for name, k in frame.schema.items() if has_nulls(str(k))}
    for name in open_:
        kinds = [frame.schema[name] for frame in frames if name in frame.schema]
        both: pl.DataType | None = kinds[0]
        for kind in kinds[1:]:
            both = None if both is None else merge_dtypes(both, kind)
        if both is not None:
            types[name] = both
    return types


# -- in the driver ----------------------------------------------------------------------------


def agreed_types(progress: Progress, known: Mapping[str, str] | None = None) -> Columns:
    """Find the types of the columns that are all null in some chunks.

    Types from the chunks' own values come first, then those that some columns were cast to, then
    those of the output. All readers of the same ledger find the same types.

    Args:
        progress: Progress of the run.
        known: Types of the output's columns.
    """
    kinds = list(_kinds(progress)) if _is_any_open(progress) else []
    open_ = {n for columns, filled in kinds for n in {*filled, *_open_columns(columns)}}
    agreed: Columns = {}
    for name in sorted(open_):
        own = ["Null" if name in filled else c[name] for c, filled in kinds if name in c]
        both = reduce(_merged_or_none, own[1:], own[0] if own else None)
        if both is None:
            continue  # The types differ in more than nulls: publishing raises an error.
        cast = [c[name] for c, filled in kinds if name in filled and name in c]
        for kind in (*cast, (known or {}).get(name, "Null")):
            both = merge_types(both, kind) or both
        agreed[name] = both
    return agreed


def _merged_or_none(one: str | None, other: str) -> str | None:
    return None if one is None else merge_types(one, other)


def _open_columns(columns: Mapping[str, str]) -> Iterator[str]:
    """Return the names of the columns whose type contains Null."""
    return (name for name, kind in columns.items() if has_nulls(kind))


def _is_any_open(progress: Progress) -> bool:
    is_given = bool(progress.completions["filled"].list.len().sum())
    return is_given or any(map(has_nulls, progress.schemas.values()))


def _kinds(progress: Progress) -> Iterator[tuple[Columns, list[str]]]:
    """Yield the columns of completions, and which of these were cast; each pair once."""
    done = progress.completions
    pairs = done.select("schema", "filled").unique(maintain_order=True)
    for digest, filled in pairs.iter_rows():
        yield json.loads(progress.schemas.get(digest, "{}")), filled


def open_chunks(progress: Progress, known: Mapping[str, str]) -> set[int]:
    """Find the chunks with columns whose type contains Null, unless the output's does too."""
    open_schemas = [
        digest
        for digest in progress.completions["schema"].unique()
        if any(
            columns[name] != known.get(name)
            for columns in [json.loads(progress.schemas.get(digest, "{}"))]
            for name in _open_columns(columns)
        )
    ]
    rows = progress.completions.filter(pl.col("schema").is_in(open_schemas))
    return set(rows["index"].to_list())


def odd_attempts(progress: Progress, agreed: Mapping[str, str]) -> pl.DataFrame:
    """Select completions and duplicates with columns that could be cast to the agreed types.

    The chunks of a partial count together.
    """
    completions = pl.concat([progress.completions, progress.duplicates])
    if not agreed:
        return completions.head(0)
    pairs = completions.select("schema", "filled").unique(maintain_order=True)
    odd = [
        (digest, filled)
        for digest, filled in pairs.iter_rows()
        if _is_odd(json.loads(progress.schemas.get(digest, "{}")), filled, agreed)
    ]
    rows = completions.join(
        pl.DataFrame(odd, schema=pairs.schema, orient="row"), on=["schema", "filled"], how="semi"
    )
    uris = rows.filter(pl.col("upload") == PARTIAL)["uri"].unique()
    return completions.filter(
        pl.col("attempt").is_in(rows["attempt"].implode()) | pl.col("uri").is_in(uris.implode())
    )


def _is_odd(columns: Columns, filled: Collection[str], agreed: Mapping[str, str]) -> bool:
    for name, wanted in agreed.items():
        kind = columns.get(name)
        if kind is not None and kind != wanted:
            both = merge_types("Null" if name in filled else kind, wanted)
            if both is not None and both != kind:
                return True
    return False
