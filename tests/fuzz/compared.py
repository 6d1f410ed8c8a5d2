"""Read one Parquet file with chunkmap, Polars, pyarrow and DuckDB, and compare what they say."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from partitioning import Chunk, Plan, PlanningError, PlanRequest, plan_dataset
from partitioning.filters import Filter
from pipeline.config.settings import load_settings
from pipeline.errors import ChunkmapError
from pipeline.runs.worker.chunk_source import ChunkSource
from pipeline.storage import StorageReader, open_storage

_MOST_COMPARED: Final = 200_000
"""Values of a column that are compared one by one, where two readers have two types for it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that a reader does not read."""

    reason: str


def plan_file(path: str, filters: Filter = ()) -> Plan | Refused:
    """Plan one file."""
    request = PlanRequest(f"file://{path}", include=("**",), filter=filters)
    try:
        return plan_dataset(request, StorageReader(open_storage(load_settings()))).plan
    except PlanningError as error:
        return Refused(_line(error))


def read_planned(plan: Plan) -> pl.DataFrame | Refused:
    """Read the rows of a plan."""
    try:
        frames = [_read_chunk(plan, chunk) for chunk in plan.chunks()]
    except Exception as error:
        named = _named(error)
        if named is None:
            raise
        return Refused(_line(named))
    return pl.concat(frames) if frames else plan.dtypes.to_frame()


def _read_chunk(plan: Plan, chunk: Chunk) -> pl.DataFrame:
    source = ChunkSource(open_storage(load_settings()), chunk, plan.dtypes)
    try:
        return source.scan().collect()
    finally:
        source.close()


def _named(error: BaseException | None) -> ChunkmapError | None:
    """Return the error of ours that Polars has wrapped."""
    while error is not None and not isinstance(error, ChunkmapError):
        error = error.__cause__ or error.__context__
    return error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]


# -- Other readers -----------------------------------------------------------------------------


def _polars(path: str) -> pl.DataFrame:
    return pl.read_parquet(path, glob=False, hive_partitioning=False)


def _pyarrow(path: str) -> pl.DataFrame:
    with pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
        table = file.read(use_threads=False)
    return pl.DataFrame(pl.from_arrow(table))


def _duckdb(path: str) -> pl.DataFrame:
    import duckdb

    quoted = path.replace("'", "''")
    found: pa.Table = duckdb.sql(f"select * from read_parquet('{quoted}')").arrow()
    return pl.DataFrame(pl.from_arrow(found))


READERS: Final[dict[str, Callable[[str], pl.DataFrame]]] = {
    "polars": _polars,
    "pyarrow": _pyarrow,
    "duckdb": _duckdb,
}


def known_readers() -> list[str]:
    """Return the readers that are installed: DuckDB need not be."""
    return [name for name in READERS if importlib.util.find_spec(name) is not None]


def read_by(name: str, path: str) -> pl.DataFrame | Refused:
    """Read a file with another reader; whatever it raises counts as a refusal."""
    try:
        return READERS[name](path)
    except BaseException as error:  # Polars' panics are no `Exception`.
        if isinstance(error, KeyboardInterrupt):
            raise
        return Refused(_line(error))


# -- Comparison --------------------------------------------------------------------------------


def difference(one: pl.DataFrame, other: pl.DataFrame) -> str | None:
    """Return what differs between two frames, or None: NaN equals NaN, and types count not.

    A value that comes as its storage type equals itself: text its bytes, a category its text, a
    time the same time of another unit.
    """
    if one.columns != other.columns:
        return f"columns {one.columns} and {other.columns}"
    if one.width and one.height != other.height:
        return f"{one.height} and {other.height} rows"
    for name in one.columns:
        found = _column_difference(one[name], other[name])
        if found is not None:
            return f"column {name!r} ({one[name].dtype}, {other[name].dtype}): {found}"
    return None


def _column_difference(one: pl.Series, other: pl.Series) -> str | None:
    if one.dtype == other.dtype and one.equals(other, null_equal=True):
        return None
    for row, (mine, theirs) in enumerate(zip(_values(one), _values(other), strict=True)):
        if mine != theirs:
            return f"row {row} is {mine!r:.80} and {theirs!r:.80}"
    return None


def _values(series: pl.Series) -> list[Any]:
    series = series.head(_MOST_COMPARED)
    dtype: Any = series.dtype
    if isinstance(dtype, pl.Datetime):  # Python's times have no nanoseconds.
        per = {"ms": 10**6, "us": 10**3, "ns": 1}[dtype.time_unit]
        return [None if v is None else v * per for v in series.to_physical().to_list()]
    return [_plain(value) for value in series.to_list()]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Decimal):
        return value.normalize() if value.is_finite() else str(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | pl.Series):
        return [_plain(item) for item in value]
    return value
