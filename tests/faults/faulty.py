"""Transforms that misbehave. Workers and drivers of the fault suite import them from here."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import dataframely as dy
import polars as pl

NO_EXCEPTIONS: dict[str, type[BaseException]] = {
    "panic": pl.exceptions.PanicException,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
}


def doubled(frame: pl.LazyFrame) -> pl.LazyFrame:
    """All rows as they are, and a column of our own."""
    return frame.with_columns(doubled=pl.col("value") * 2)


def added(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The column alone, for files that keep the others."""
    return doubled(frame).select("doubled")


def parted(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The same, and a column to partition by."""
    return doubled(frame).with_columns(part=pl.col("id") % 3)


def keeps_rules() -> pl.Expr:
    """What `Kept` asks of a row."""
    return pl.col("id") % 50 != 3


class Kept(dy.Schema):  # type: ignore[misc]
    """A schema that some rows of each chunk break."""

    id = dy.Int64()

    @dy.rule()
    def not_three(cls) -> pl.Expr:
        return keeps_rules()


def joined(frames: list[pl.LazyFrame]) -> pl.LazyFrame:
    """A reduce that keeps all rows."""
    return pl.concat(frames)


def _holds(frame: pl.LazyFrame, row: int) -> bool:
    return row in frame.select("id").collect()["id"]


def raising(frame: pl.LazyFrame, row: int) -> pl.LazyFrame:
    """Raises on the chunk that holds a row."""
    if _holds(frame, row):
        raise ZeroDivisionError(f"row {row} is bad")
    return doubled(frame)


def leaving(frame: pl.LazyFrame, row: int, kind: str) -> pl.LazyFrame:
    """Raises what is no Exception on the chunk that holds a row."""
    if _holds(frame, row):
        raise NO_EXCEPTIONS[kind]("enough")
    return doubled(frame)


def hanging(frame: pl.LazyFrame, row: int) -> pl.LazyFrame:
    """Never ends on the chunk that holds a row."""
    while _holds(frame, row):
        time.sleep(60)
    return doubled(frame)


def killing(frame: pl.LazyFrame, row: int) -> pl.LazyFrame:
    """Ends its process on the chunk that holds a row."""
    if _holds(frame, row):
        os.kill(os.getpid(), signal.SIGKILL)
    return doubled(frame)


def greedy(frame: pl.LazyFrame, row: int, step: int = 32 << 20) -> pl.LazyFrame:
    """Takes more and more memory (bytes a step) on the chunk that holds a row."""
    held = []
    while _holds(frame, row):
        held.append(os.urandom(step))
        time.sleep(0.02)
    return doubled(frame)


def slow(frame: pl.LazyFrame, seconds: float) -> pl.LazyFrame:
    """Takes its time on each chunk."""
    time.sleep(seconds)
    return doubled(frame)


def fickle(frame: pl.LazyFrame, row: int) -> pl.LazyFrame:
    """Returns another type on the chunk that holds a row."""
    kind = pl.String if _holds(frame, row) else pl.Int64
    return frame.with_columns(doubled=(pl.col("value") * 2).cast(kind))


def gated(frame: pl.LazyFrame, row: int, folder: str) -> pl.LazyFrame:
    """The first one that meets a row says its process id and waits until it is let through.

    The folder holds two FIFOs: `arrived` and `gate`.
    """
    if _holds(frame, row):
        with suppress(FileExistsError):
            (Path(folder) / "taken").touch(exist_ok=False)
            (Path(folder) / "arrived").write_text(str(os.getpid()))
            (Path(folder) / "gate").read_text()
    return doubled(frame)


def swollen(frame: pl.LazyFrame, factor: int) -> pl.LazyFrame:
    """Makes output that is much larger than the input."""
    wide = frame.select(pl.all().repeat_by(factor).explode())
    return doubled(wide)
