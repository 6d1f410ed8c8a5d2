"""Read an output's commits as a stream of Arrow batches in constant memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.settings import Settings
from pipeline.errors import ChunkmapError, ObjectMissingError, StorageError, UsageError
from pipeline.load.column_types import Column
from pipeline.load.errors import LoadFailedError
from pipeline.load.plan import CommitFiles, Version, digest_of_keys
from pipeline.storage import Storage
from pipeline.table.keys import original_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest
from pipeline.table.scan import VersionScan

BATCH_ROWS = 65_536
"""Number of rows of a batch."""


@dataclass(frozen=True, slots=True)
class OutputVersion:
    """A version of an output that can be read."""

    version: Version
    scan: VersionScan

    @classmethod
    def of(
        cls, settings: Settings, storage: Storage, output: str, number: int | None
    ) -> OutputVersion:
        """Pin a version of an output; default the current.

        Raises:
            UsageError: The output has no published files in that version.
            FilesMissingError: The version is no longer kept, or its files were deleted.
        """
        table_log = TableLog(storage, output)
        manifest = table_log.manifest(number)
        files = table_log.snapshot(manifest)
        if files.is_empty():
            raise UsageError(
                f"{table_log.output} has no published files (manifest {manifest.number})",
                hint="check the URI: chunkmap history lists the versions of an output",
            )
        commits = tuple(
            CommitFiles(
                name=str(name),
                rows=int(group["rows"].sum()),
                keys=tuple(group["key"].to_list()),
                digest=digest_of_keys(map(original_key, group["key"].to_list())),
            )
            for (name,), group in files.group_by("commit", maintain_order=True)
        )
        names = _ancestors(table_log, manifest)
        version = Version(table_log.output, manifest.number, commits, names)
        return cls(version, VersionScan.of(settings, table_log, manifest))

    def schema(self) -> pl.Schema:
        """Return the columns of all files of the version."""
        with _reading(self.version.output):
            return self.scan.frame(self.scan.places).collect_schema()


def _ancestors(table_log: TableLog, manifest: Manifest) -> frozenset[str]:
    """Return the commits that a version was made from, without those that were rolled back."""
    names: set[str] = set()
    while True:
        names.update(entry.name for entry in manifest.commits)
        oldest = table_log.manifest(manifest.full) if manifest.full else manifest
        before = oldest.number - 1 if oldest.rollback_of is None else oldest.rollback_of
        if before < 1:
            return frozenset(names)
        try:
            manifest = table_log.manifest(before)
        except ObjectMissingError:
            return frozenset(names)


class _reading:
    """Turns Polars' errors into errors that name the output."""

    def __init__(self, output: str) -> None:
        self._output = output

    def __enter__(self) -> None:
        """Begin to read."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pl.exceptions.PolarsError | OSError):
            raise StorageError(
                f"the files of {self._output} cannot be read: {error}",
                hint=f"check them: chunkmap verify {self._output}",
            ) from error


@dataclass
class BatchStream:
    """The rows of some commits as Arrow batches; counts rows and sums while they pass.

    A database calls `reader` from C, where an error of Python is lost; it is kept in `error`.
    """

    source: OutputVersion
    columns: Sequence[Column]
    commits: Sequence[CommitFiles]
    progressed: Callable[[int], None] = lambda rows: None
    """Called with the number of rows of each batch."""
    skip: int = 0
    """Number of rows of the first commit that are not read."""
    with_sums: bool = False
    """Whether columns are summed."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows that were read so far, by commit."""
    sums: dict[str, dict[str, int | Decimal]] = field(default_factory=dict)
    """Exact sums of integers and decimals that were read so far, by commit and column."""
    error: BaseException | None = None

    @property
    def reader(self) -> pa.RecordBatchReader:
        """A reader of the batches, for one use."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    @property
    def schema(self) -> pa.Schema:
        """The schema of the batches."""
        return pa.schema([(column.name, column.type.arrow) for column in self.columns])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches, for one use."""
        skip = self.skip
        try:
            for commit in self.commits:
                yield from self._batches(commit, skip)
                skip = 0
        except BaseException as error:
            self.error = error
            raise

    def _batches(self, commit: CommitFiles, skip: int) -> Iterator[pa.RecordBatch]:
        self.rows[commit.name] = skip
        summed = [column.name for column in self.columns if self.with_sums and column.is_summed]
        sums: dict[str, int | Decimal] = dict.fromkeys(summed, 0)
        self.sums[commit.name] = sums
        with _reading(self.source.version.output):
            for frame in self._frames(commit, skip):
                for name in summed:
                    sums[name] = _add(sums[name], frame[name])
                yield self._batch(frame)
                self.rows[commit.name] += frame.height
                self.progressed(frame.height)
        if self.rows[commit.name] != commit.rows:
            raise LoadFailedError(
                f"the files of commit {commit.name} of {self.source.version.output} have "
                f"{self.rows[commit.name]:,} rows, and its record says {commit.rows:,}",
                hint=f"check the files: chunkmap verify {self.source.version.output}",
            )

    def _frames(self, commit: CommitFiles, skip: int) -> Iterable[pl.DataFrame]:
        frame = self.source.scan.frame(commit.keys)
        if skip:
            frame = frame.slice(skip)
        present = frame.collect_schema()
        selected = frame.select(
            pl.col(column.name).cast(column.dtype)
            if column.name in present
            else pl.lit(None, column.dtype).alias(column.name)
            for column in self.columns
        )
        return selected.collect_batches(
            chunk_size=BATCH_ROWS, maintain_order=True, lazy=True, engine="streaming"
        )

    def _batch(self, frame: pl.DataFrame) -> pa.RecordBatch:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        arrays = [_convert_values(table[column.name], column) for column in self.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _convert_values(values: Any, column: Column) -> pa.Array:
    """Convert the values of a batch to the type in which they are sent, or raise."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    wanted = column.type.arrow
    if column.type.is_json:
        return pa.ExtensionArray.from_storage(wanted, _json_texts(array, column))
    if array.type == wanted:
        return array
    try:
        return pc.cast(array, wanted, safe=True)
    except pa.ArrowInvalid as error:
        raise LoadFailedError(
            f"a value of column {column.name} ({column.dtype}) does not fit type "
            f"{column.type.sql}: {error}",
            hint="cast or round the column in the transform",
        ) from None


def _json_texts(array: pa.Array, column: Column) -> pa.Array:
    try:
        texts = [None if value is None else _json(value) for value in array.to_pylist()]
    except (ValueError, OverflowError) as error:  # Python's dates end with the year 9999.
        raise LoadFailedError(
            f"a value of column {column.name} ({column.dtype}) cannot be JSON: {error}",
            hint="replace NaN, infinities and dates outside of the years 1 to 9999 in nested "
            "columns by nulls in the transform",
        ) from None
    return pa.array(texts, pa.large_string())


def _json(value: object) -> str:
    # Decimals, dates and times become text: JSON has no such values.
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)


def total_of(sums: Iterable[int | Decimal]) -> Decimal:
    """Add exact sums. Python's own precision would round them to 28 digits."""
    with localcontext(prec=76):
        return sum(map(Decimal, sums), Decimal(0))


def _add(total: int | Decimal, values: pl.Series) -> int | Decimal:
    """Add a batch's exact sum to a total."""
    if isinstance(values.dtype, pl.Decimal):
        return total_of((total, Decimal(values.sum() or 0)))
    if values.dtype in (pl.Int64, pl.UInt64):
        # The sum of halves cannot overflow.
        high, low = values // 2**32, values % 2**32
        return int(total) + int(high.sum() or 0) * 2**32 + int(low.sum() or 0)
    return int(total) + int(values.cast(pl.Int64).sum() or 0)


def sums_text(sums: dict[str, int | Decimal]) -> dict[str, str]:
    """Return sums as text, for JSON."""
    return {name: str(value) for name, value in sums.items()}


def check_error(error: BaseException) -> None:
    """Raise an error of a stream if it is one that users know, or Ctrl-C."""
    if isinstance(error, ChunkmapError | KeyboardInterrupt):
        raise error
