"""What a result is, in a few numbers that do not depend on the order of rows or on files.

Rows; for numbers and times their sums; for all that is exact a hash over whole rows, so that
values which change places between rows are seen too. Whoever wrote a result does not get to say
what is in it: it is read again, here, from where it was written.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import polars as pl

from pipeline.storage import Storage

AT_ONCE = 4
"""Files read at a time."""
ROWS_AT_ONCE = 8_000_000
"""Rows decoded at a time: some engines write all rows of a workload into one file."""
TOLERANCE = 1e-9
"""Relative, of sums of floats: engines add in another order."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A result in numbers; digests of parts add up to the digest of the whole."""

    rows: int = 0
    exact: int = 0
    """Sum, modulo 2^64, of a hash over each row's exact columns."""
    sums: Mapping[str, float] = field(default_factory=dict)
    """Sum of each column of floats."""

    def __add__(self, other: Digest) -> Digest:
        names = self.sums.keys() | other.sums.keys()
        return Digest(
            self.rows + other.rows,
            (self.exact + other.exact) % 2**64,
            {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in sorted(names)},
        )

    def difference(self, expected: Digest) -> str:
        """How this differs from what was expected, in words; empty if it does not."""
        if self.rows != expected.rows:
            return f"{self.rows:,} rows, expected {expected.rows:,}"
        if self.exact != expected.exact:
            return f"the rows' exact columns hash to {self.exact:x}, expected {expected.exact:x}"
        for name, value in expected.sums.items():
            found = self.sums.get(name, math.nan)
            if not math.isclose(found, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                return f"column {name} sums to {found!r}, expected {value!r}"
        return ""


def digest(frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> Digest:
    """The digest of a frame that is brought to a schema first.

    Engines choose other widths for the same values (Spark's 32-bit lengths), which is no error.

    Raises:
        ValueError: a column is missing or does not convert.
    """
    missing = [name for name in schema if name not in frame.columns]
    if missing:
        raise ValueError(f"the result has no column {', '.join(missing)}; it has {frame.columns}")
    try:
        frame = frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"the result does not convert to the schema: {error}") from error
    exact = [name for name, dtype in schema.items() if not dtype.is_float()]
    floats = [name for name, dtype in schema.items() if dtype.is_float()]
    low = 2**32
    hashes = frame.select(exact).hash_rows(seed=1) if exact else pl.Series(dtype=pl.UInt64)
    # In halves, since a sum of 64-bit hashes would overflow.
    total = int((hashes % low).sum()) + low * int((hashes // low).sum())
    sums = {name: float(frame[name].sum()) for name in floats}
    return Digest(frame.height, total % 2**64, sums)


def digest_of(storage: Storage, prefix: str, schema: Mapping[str, pl.DataType]) -> Digest:
    """The digest of every Parquet file below a prefix.

    Raises:
        ValueError: there is none, or one does not have the columns.
    """
    found = [info for info in storage.objects(prefix) if info.uri.endswith(".parquet")]
    if not found:
        raise ValueError(f"there is no Parquet file under {prefix}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return total(pool.map(lambda info: _digest_of_file(storage, info.uri, schema), found))


def _digest_of_file(storage: Storage, uri: str, schema: Mapping[str, pl.DataType]) -> Digest:
    lf = pl.scan_parquet(io.BytesIO(storage.get(uri).data))
    rows = lf.select(pl.len()).collect().item()
    parts = (lf.slice(start, ROWS_AT_ONCE) for start in range(0, rows or 1, ROWS_AT_ONCE))
    return total(digest(_with_partitions(part.collect(), uri), schema) for part in parts)


def read(storage: Storage, uri: str) -> pl.DataFrame:
    """A Parquet object, with the values of its Hive partitions as text columns."""
    return _with_partitions(pl.read_parquet(io.BytesIO(storage.get(uri).data)), uri)


def _with_partitions(frame: pl.DataFrame, uri: str) -> pl.DataFrame:
    for part in uri.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name not in frame.columns:
            frame = frame.with_columns(pl.lit(value).alias(name))
    return frame


def total(digests: Iterable[Digest]) -> Digest:
    """The digest of all parts together."""
    whole = Digest()
    for digest in digests:
        whole += digest
    return whole
