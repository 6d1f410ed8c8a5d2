"""The merge plan of a run: which rows of which partial results make up each file of its output.

Stored once, in the run's state, when all chunks are done. If partial results are lost later, their
chunks are mapped again and another plan, with a higher number, takes its place. In a backfill,
plans are made of the windows that are complete, and each file has rows of one window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import polars as pl

from partitioning.errors import PlanFormatError
from partitioning.table_file import TableFile, pack_tables
from pipeline.runs.ledger.keys import file_uri
from pipeline.runs.ledger.records import MERGE

_PARTIALS: dict[str, Any] = {
    "attempt": pl.String,
    "uri": pl.String,
    "etag": pl.String,
    "size": pl.Int64,
}
_FILES: dict[str, Any] = {
    "folder": pl.String,
    "bytes": pl.Int64,
    "rows": pl.Int64,
    "folder_rows": pl.Int64,
    "is_first": pl.Boolean,
    "is_last": pl.Boolean,
}
_SOURCES: dict[str, Any] = {
    "file": pl.Int64,
    "partial": pl.Int64,
    "offset": pl.Int64,
    "length": pl.Int64,
    "sha256": pl.String,
    "skip": pl.Int64,
    "take": pl.Int64,
}
PARTIALS: Final = pl.Schema(_PARTIALS)
"""One partial result per chunk, in the plan's order, with the attempt that made it; in a backfill
also `window`, the label of its window."""
FILES: Final = pl.Schema(_FILES)
"""Files in order. `bytes` is that of their sources. Where sorted partitions are cut, also `low` and
`high`: a file has the rows with low <= key < high; the first file of its folder has also those
below and the nulls, the last those above. Then `rows` counts what all sources have.
`folder_rows` are those of all files of its folder; in a backfill, of its window, whose label is
`window`."""
SOURCES: Final = pl.Schema(_SOURCES)
"""Slices of each file, in order: `take` rows after the first `skip` rows."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge plan."""

    number: int
    """Number of the plan within its run, from 1."""
    digest: str
    """Digest of its stored bytes."""
    partials: pl.DataFrame
    files: pl.DataFrame
    sources: pl.DataFrame
    schema: str
    """Schema of the chunks' results, as JSON."""

    @staticmethod
    def pack(
        partials: pl.DataFrame, files: pl.DataFrame, sources: pl.DataFrame, schema: str
    ) -> bytes:
        """Return the bytes to store; equal tables give equal bytes."""
        tables = {
            "partials": partials.to_arrow(),
            "files": files.to_arrow(),
            "sources": sources.to_arrow(),
        }
        return pack_tables(tables, {"schema": schema})

    @classmethod
    def unpack(cls, data: bytes, number: int) -> Self:
        """Read the bytes that `pack` returned.

        Raises:
            PlanFormatError: they are damaged.
        """
        file = TableFile(data)
        frames: list[pl.DataFrame] = []
        for name, schema in (("partials", PARTIALS), ("files", FILES), ("sources", SOURCES)):
            frame = pl.DataFrame(pl.from_arrow(file.table(name)))
            if any(frame.schema.get(column) != kind for column, kind in schema.items()):
                raise PlanFormatError(f"damaged merge plan: its {name} have other columns")
            frames.append(frame)
        digest = hashlib.sha256(data).hexdigest()
        partials, files, sources = frames
        return cls(number, digest, partials, files, sources, str(file.meta["schema"]))

    def id_of(self, index: int) -> str:
        """Return the id of a file, by which its completions name it."""
        text = f"{self.digest}/{index}"
        return f"merge/{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def ids(self) -> list[str]:
        """Return the ids of all files, in order."""
        return [self.id_of(index) for index in range(self.files.height)]

    def parts(self) -> list[MergePart]:
        """Return its parts: one for each window, or one for the whole run."""
        if "window" not in self.partials.columns:
            attempts = self.partials["attempt"].to_list()
            return [MergePart(self, None, frozenset(attempts), range(self.files.height))]
        files: dict[str, list[int]] = {}
        for index, label in enumerate(self.files["window"]):
            files.setdefault(label, []).append(index)
        by_window = self.partials.group_by("window", maintain_order=True).agg("attempt")
        return [
            MergePart(self, label, frozenset(attempts), files.get(label, []))
            for label, attempts in by_window.iter_rows()
        ]

    def done(self, merged: pl.DataFrame, output: str, run: str) -> pl.DataFrame:
        """Choose one completion per file that is merged, in the order of files.

        Args:
            merged: Completions of files (see `Progress.merged`).
            output: URI of the output prefix, with a slash at its end.
            run: Id of the run.
        """
        planned = pl.DataFrame(
            {
                "chunk": self.ids(),
                "index": range(self.files.height),
                "start": [
                    file_uri(output, folder, index, run, "").removesuffix(".parquet")
                    for index, folder in enumerate(self.files["folder"])
                ],
            },
            schema={"chunk": pl.String, "index": pl.Int64, "start": pl.String},
        )
        mine = merged.join(planned, on=["chunk", "index"], how="inner")
        mine = mine.filter(pl.col("uri").str.starts_with(pl.col("start"))).drop("start")
        return mine.sort("index", "attempt").unique("index", keep="first", maintain_order=True)


@dataclass(frozen=True, slots=True)
class MergePart:
    """The files of a merge plan that are published together."""

    plan: MergePlan
    label: str | None
    """Label of their window; None: the whole run."""
    attempts: frozenset[str]
    """Attempts that made the partial results of which they are merged."""
    indices: Sequence[int]
    """Numbers of the files in the plan."""

    def ids(self) -> list[str]:
        """Return the ids of its files."""
        return [self.plan.id_of(index) for index in self.indices]

    def done(self, merged: pl.DataFrame, output: str, run: str) -> pl.DataFrame:
        """Choose one completion per file that is merged (see `MergePlan.done`)."""
        done = self.plan.done(merged, output, run)
        return done if self.label is None else done.filter(pl.col("index").is_in(self.indices))


def number_of(batch: str) -> int | None:
    """Return the number of the merge plan whose files a batch merges; None if it maps chunks."""
    if not batch.startswith(MERGE):
        return None
    number = batch.removeprefix(MERGE).partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else None


def batch_prefix(number: int, text: str) -> str:
    """Return the start of the names of batches that merge files of a plan."""
    return f"{MERGE}{number:04d}-{text}"
