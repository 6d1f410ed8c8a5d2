"""What a dataset and a run should come to, in plain Polars; shares no code with the engine."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

Rows = Callable[[pl.LazyFrame], pl.LazyFrame]


def dataset(
    objects: Mapping[str, bytes], hive: Mapping[str, pl.DataType] | None = None
) -> pl.DataFrame:
    """All objects by key, one below the other; what an object lacks is null, Hive columns last."""
    hive = hive or {}
    frames = [with_hive(pl.read_parquet(io.BytesIO(objects[k])), k, hive) for k in sorted(objects)]
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    stored = [name for name in names if name not in hive]
    return pl.concat(frames, how="diagonal").select(*stored, *hive)


def with_hive(frame: pl.DataFrame, key: str, hive: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """An object's frame with the values that its folders say."""
    said = dict(folder.split("=", 1) for folder in key.split("/") if "=" in folder)

    def value(text: str, dtype: pl.DataType) -> pl.Expr:
        if text == "__HIVE_DEFAULT_PARTITION__":
            return pl.lit(None, dtype)
        return pl.lit(text).str.to_date() if dtype == pl.Date else pl.lit(text).cast(dtype)

    return frame.with_columns(value(said[n], dtype).alias(n) for n, dtype in hive.items())


def mapped(pieces: Sequence[pl.DataFrame], rows: Rows) -> pl.DataFrame:
    """A function applied to each piece alone, the results one below the other."""
    return pl.concat([rows(piece.lazy()).collect() for piece in pieces])


def published(output: Path) -> pl.DataFrame:
    """What a plain glob over an output folder sees, in the order of its names."""
    files = sorted(output.rglob("*.parquet"), key=lambda path: path.name)
    return pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in files])
