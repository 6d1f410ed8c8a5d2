"""Encode a result as Parquet: choose each column's encoding by encoding a sample of it.

A writer's defaults fit few columns: a dictionary of a sorted key costs time and saves nothing, and
floats that hardly compress take most of the time at zstd's usual level. The choice depends on the
frame alone, so every attempt at a chunk writes the same bytes.

Candidates are encodings that the usual readers support. BYTE_STREAM_SPLIT would be smaller for
floats, but Spark 3.5 refuses it; DELTA_BINARY_PACKED is tried for narrow ranges only, because
fastparquet decodes wide differences to wrong values.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.job import Output
from pipeline.errors import TransformError

Codec = Literal["zstd", "snappy", "lz4", "gzip", "brotli", "uncompressed"]
Encoding = Literal["dictionary", "plain", "delta"]

MIN_ROWS = 32_768
"""Frames with fewer rows are written with the writer's encodings: to choose would take longer than
to write them."""
SAMPLE_BLOCKS = 2
BLOCK_ROWS = 4_096
"""Consecutive rows per block of the sample, in which orders and repetitions show."""
SAMPLE_ROWS = SAMPLE_BLOCKS * BLOCK_ROWS
SPREAD_ROWS = 2_048
"""Rows spread over a frame from which its distinct values are estimated."""
BYTE_NANOSECONDS = 14.0
"""Nanoseconds of encoding that saving one byte of output is worth: it is uploaded and stored."""
MAX_DISTINCT_SHARE = 0.25
"""Share of distinct values of a column above which no dictionary is tried."""
MAX_DICTIONARY_BYTES = 1_000_000
"""Size at which the writer gives up a dictionary (its page has 1 MiB)."""
CACHED_DICTIONARY_BYTES = 32 << 10
"""Size of a dictionary up to which looking values up in it takes the least time."""
MAX_DELTA_RANGE = 1 << 30
"""Range of a column's values, in a row group, below which each difference fits in 32 bits."""
OLDEST = pl.CompatLevel.oldest()
"""Arrow without string views, which pyarrow's writer does not take."""
DEFAULT_ROW_GROUP_ROWS = 1 << 18
"""Rows per row group, as Polars writes them."""
MAX_ROW_GROUP_ROWS = 1 << 20
"""Maximum rows of a row group of a size in bytes, unless the job names a number."""
PAGE_OPTIONS: Mapping[str, int] = {
    "max_rows_per_page": DEFAULT_ROW_GROUP_ROWS,
    "data_page_size": 8 * DEFAULT_ROW_GROUP_ROWS,
}
"""Pages without an index: a row group's numbers in one, of 2 MiB. With pyarrow's 20,000 rows,
encoding takes a twentieth more time, and nothing reads less: pages are skipped by an index."""

MAX_TEXT = 1_000
"""Characters of the description of a choice."""


class ColumnEncoding(NamedTuple):
    """How a column is written."""

    encoding: Encoding
    level: int | None
    """Level of the codec; None: the codec's own."""

    def __str__(self) -> str:
        return self.encoding if self.level is None else f"{self.encoding}:{self.level}"


@dataclass(frozen=True, slots=True)
class Compression:
    """Codec and level of a Parquet file."""

    codec: Codec
    level: int | None = None

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Parse e.g. `zstd` or `zstd:3`."""
        codec, _, level = text.partition(":")
        return cls(codec, int(level) if level else None)  # type: ignore[arg-type]

    @property
    def arrow_codec(self) -> str:
        """Name of the codec in pyarrow."""
        return "none" if self.codec == "uncompressed" else self.codec

    @property
    def levels(self) -> tuple[int | None, ...]:
        """Levels to choose from: zstd's first pays for bytes that hardly compress."""
        return (1, 3) if self.codec == "zstd" and self.level is None else (self.level,)


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How Parquet files are written."""

    compression: Compression
    chooses: bool = True
    """Whether an encoding is chosen for each column of large, flat frames."""
    row_group_rows: int | None = None
    """Maximum rows of a row group; None: the writer's."""
    row_group_bytes: int | None = None
    """Target bytes of a row group in memory; None: no target."""
    dictionary: tuple[str, ...] | None = None
    """Columns with a dictionary; None: as chosen, or the writer's."""
    page_index: bool = False

    @classmethod
    def of(cls, output: Output) -> FileFormat:
        """Return the format of an output's files."""
        return cls(
            Compression.parse(output.compression),
            output.encoding == "auto",
            output.row_group_rows,
            output.row_group_bytes,
            output.dictionary,
            output.page_index,
        )

    @property
    def needs_arrow(self) -> bool:
        """Whether Polars' own writer lacks a setting of it."""
        return self.page_index or self.dictionary is not None

    def group_rows(self, frame: pl.DataFrame) -> int | None:
        """Return the rows of a row group; the same for equal frames."""
        if self.row_group_bytes is None or not frame.height:
            return self.row_group_rows
        rows = max(1, int(self.row_group_bytes * frame.height / max(1, bytes_of(frame))))
        return min(rows, self.row_group_rows or MAX_ROW_GROUP_ROWS)

    def plain_compression(self, frame: pl.DataFrame) -> Compression:
        """Return the codec and level of a frame for which nothing is chosen.

        At zstd's usual level, a small frame takes nearly twice the time of the first, for bytes
        that are worth a tenth of it (see BYTE_NANOSECONDS).
        """
        if not self.chooses or frame.height >= MIN_ROWS:
            return self.compression
        return replace(self.compression, level=self.compression.levels[0])

    def choose(self, frame: pl.DataFrame) -> dict[str, ColumnEncoding]:
        """Choose how each column is written; nothing where the writer's defaults are used."""
        if not (self.chooses and can_choose(frame)):
            return {}
        chosen = choose_encodings(frame, self.compression)
        if self.dictionary is None:
            return chosen
        return {name: self._told(name, how) for name, how in chosen.items()}

    def _told(self, name: str, how: ColumnEncoding) -> ColumnEncoding:
        assert self.dictionary is not None, "only a list of columns tells"
        if name in self.dictionary:
            return how._replace(encoding="dictionary")
        return how._replace(encoding="plain") if how.encoding == "dictionary" else how

    def arrow_options(self, chosen: dict[str, ColumnEncoding]) -> dict[str, Any]:
        """Return pyarrow's arguments."""
        pages = {"write_page_index": True} if self.page_index else PAGE_OPTIONS
        if chosen:
            return {**_options(chosen, self.compression), **pages}
        return {
            "compression": self.compression.arrow_codec,
            "compression_level": self.compression.level,
            "use_dictionary": True if self.dictionary is None else list(self.dictionary),
            **pages,
        }


def bytes_of(frame: pl.DataFrame) -> int:
    """Return the bytes of a frame's rows in memory; the same for equal frames.

    Unlike `estimated_size`, which depends on how the frame was made.
    """
    size: int = frame.to_arrow(compat_level=OLDEST).nbytes
    return size


def write_parquet(
    frame: pl.DataFrame, how: FileFormat
) -> tuple[memoryview, dict[str, ColumnEncoding]]:
    """Encode a frame as the bytes of a Parquet file.

    Returns:
        The file, and the encodings chosen for its columns; none where the frame is small or has
        nested or other types for which nothing is chosen.
    """
    chosen, rows = how.choose(frame), how.group_rows(frame)
    if not chosen and not how.needs_arrow:
        return _write_with_polars(frame, how.plain_compression(frame), rows), {}
    sink = io.BytesIO()
    pq.write_table(
        frame.to_arrow(compat_level=OLDEST),
        sink,
        row_group_size=rows or DEFAULT_ROW_GROUP_ROWS,
        **how.arrow_options(chosen),
    )
    return sink.getbuffer(), chosen


def write_frames(
    frames: Iterable[pl.DataFrame], how: FileFormat
) -> tuple[memoryview, dict[str, ColumnEncoding]]:
    """Encode frames, one after the other, as one file; returns as `write_parquet` does.

    Of flat frames, one row group is in memory at a time, and encodings are those that the first row
    group chooses (see `write_groups`).
    """
    groups = _row_groups(frames, how)
    first, second = next(groups), next(groups, None)
    if second is None or not all(map(_is_flat, first.dtypes)):
        rest = [] if second is None else [second, *groups]
        return write_parquet(pl.concat([first, *rest], rechunk=True), how)
    sink, chosen = write_groups(
        chain((first, second), groups), first.schema, how, how.choose(first)
    )
    return sink.getbuffer(), chosen


def write_groups(
    groups: Iterable[pl.DataFrame],
    schema: pl.Schema,
    how: FileFormat,
    chosen: dict[str, ColumnEncoding],
) -> tuple[io.BytesIO, dict[str, ColumnEncoding]]:
    """Write row groups, one after the other, as one file.

    A writer has one encoding per column. If the range of a later row group is too wide for delta,
    those before it are written again, with plain values.

    Args:
        groups: The row groups.
        schema: Schema of all of them.
        how: How they are written.
        chosen: Encodings that the first row groups choose.

    Returns:
        The file, and the encodings of its columns.
    """
    arrow = pl.DataFrame(schema=schema).to_arrow(compat_level=OLDEST).schema
    left = iter(groups)
    while True:
        wide, sink = list[str](), io.BytesIO()
        with pq.ParquetWriter(sink, arrow, **how.arrow_options(chosen)) as writer:
            for group in left:
                wide = _wide_columns(group, _columns(chosen, "delta"))
                if wide:
                    left = chain(_read_groups(sink), (group,), left)
                    break
                table = group.to_arrow(compat_level=OLDEST)
                writer.write_table(table, row_group_size=max(1, group.height))
        if not wide:
            return sink, chosen
        chosen = chosen | {name: chosen[name]._replace(encoding="plain") for name in wide}


def _read_groups(file: io.BytesIO) -> Iterator[pl.DataFrame]:
    """Yield the row groups of a file."""
    stored = pq.ParquetFile(file)
    for number in range(stored.num_row_groups):
        yield pl.DataFrame(pl.from_arrow(stored.read_row_group(number)))


def _row_groups(frames: Iterable[pl.DataFrame], how: FileFormat) -> Iterator[pl.DataFrame]:
    """Regroup frames into whole row groups; the last may be smaller."""
    held: list[pl.DataFrame] = []
    rows, count = 0, 0
    for frame in frames:
        held.append(frame)
        count += frame.height
        rows = rows or how.group_rows(frame) or DEFAULT_ROW_GROUP_ROWS
        if count < rows:
            continue
        whole = pl.concat(held, rechunk=True)
        ends = range(rows, count + 1, rows)
        yield from (whole[end - rows : end] for end in ends)
        held, count = [whole[ends[-1] :]], count - ends[-1]
    if count or not rows:
        yield pl.concat(held, rechunk=True)


def encodings_text(chosen: dict[str, ColumnEncoding]) -> str:
    """Describe a choice: the columns by encoding, at most MAX_TEXT characters."""
    columns: dict[str, list[str]] = {}
    for name, how in chosen.items():
        columns.setdefault(str(how), []).append(name)
    text = "; ".join(f"{how}: {', '.join(names)}" for how, names in sorted(columns.items()))
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 2] + " …"


def _write_with_polars(
    frame: pl.DataFrame, compression: Compression, row_group_rows: int | None
) -> memoryview:
    sink = io.BytesIO()
    frame.write_parquet(
        sink,
        compression=compression.codec,
        compression_level=compression.level,
        row_group_size=row_group_rows,
    )
    return sink.getbuffer()


def refuse_objects(schema: pl.Schema) -> None:
    """Raise TransformError if a result has a column of Python objects."""
    for name, kind in schema.items():
        if pl.Object in leaf_types(kind):  # Arrow would get the addresses of the objects.
            raise TransformError(f"column {name!r} has Python objects, not a type of Parquet")


def leaf_types(kind: Any) -> Iterator[Any]:
    """Yield the types of the values in lists, arrays and structs; of another type, itself."""
    if isinstance(kind, pl.List | pl.Array):
        yield from leaf_types(kind.inner)
    elif isinstance(kind, pl.Struct):
        for field in kind.fields:
            yield from leaf_types(field.dtype)
    else:
        yield kind


def can_choose(frame: pl.DataFrame) -> bool:
    """Whether encodings are chosen for a frame: it is large, and its types are flat."""
    return frame.height >= MIN_ROWS and all(map(_is_flat, frame.dtypes))


def _is_flat(dtype: pl.DataType) -> bool:
    if dtype.is_integer():
        return dtype not in (pl.Int128, pl.UInt128)
    flat = (pl.Float32, pl.Float64, pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Datetime)
    return dtype in flat


def choose_encodings(frame: pl.DataFrame, compression: Compression) -> dict[str, ColumnEncoding]:
    """Choose how each column of a frame is written (see `can_choose`)."""
    first, *levels = compression.levels
    sample = _sample(frame)
    dictionaries = _dictionaries(frame, sample)
    columns: dict[Encoding, list[str]] = {
        "plain": frame.columns,
        "dictionary": list(dictionaries),
        "delta": _narrow_columns(frame),
    }
    trials = _Trials(frame.height, sample.to_arrow(compat_level=OLDEST), dictionaries, compression)
    best: dict[str, tuple[float, ColumnEncoding]] = {}
    for encoding, names in columns.items():
        trials.improve(best, dict.fromkeys(names, ColumnEncoding(encoding, first)))
    for level in levels:
        # Other levels are tried with the best encoding only: they seldom change which it is.
        trials.improve(best, {name: how._replace(level=level) for name, (_, how) in best.items()})
    return {name: how for name, (_, how) in best.items()}


def _sample(frame: pl.DataFrame) -> pl.DataFrame:
    starts = np.linspace(0, frame.height - BLOCK_ROWS, SAMPLE_BLOCKS).astype(int).tolist()
    return pl.concat([frame.slice(start, BLOCK_ROWS) for start in starts], rechunk=True)


@dataclass(frozen=True, slots=True)
class _Trials:
    """Trials of encodings on a sample of a frame."""

    rows: int
    """Rows of the frame."""
    sample: pa.Table
    dictionaries: dict[str, float]
    """Size of each column's dictionary, as a multiple of the sample's."""
    compression: Compression

    def improve(
        self,
        best: dict[str, tuple[float, ColumnEncoding]],
        choice: dict[str, ColumnEncoding],
    ) -> None:
        """Encode some columns of the sample; keep what is cheaper than the best so far."""
        if not choice:
            return
        sink = io.BytesIO()
        pq.write_table(self.sample.select(list(choice)), sink, **_options(choice, self.compression))
        group = pq.read_metadata(sink).row_group(0)
        for index, (name, how) in enumerate(choice.items()):
            cost = self._cost(name, group.column(index), how)
            if name not in best or cost < best[name][0]:
                best[name] = cost, how

    def _cost(self, name: str, column: Any, how: ColumnEncoding) -> float:
        """Estimate nanoseconds per value: those of encoding, and what its bytes are worth."""
        stored: float = column.total_compressed_size
        dictionary = 0.0
        if column.dictionary_page_offset is not None:
            # A row group has one dictionary, larger than the sample's, for many more rows.
            page = column.data_page_offset - column.dictionary_page_offset
            share = SAMPLE_ROWS / min(self.rows, DEFAULT_ROW_GROUP_ROWS)
            dictionary = page * self.dictionaries[name]
            stored += dictionary * share - page
        per_value = stored / SAMPLE_ROWS
        return BYTE_NANOSECONDS * per_value + _nanoseconds(how, per_value, dictionary)


def _dictionaries(frame: pl.DataFrame, sample: pl.DataFrame) -> dict[str, float]:
    """Estimate the size of dictionaries, as multiples of the sample's.

    Returns:
        The columns whose distinct values are few enough for a dictionary.
    """
    rows = np.linspace(0, frame.height - 1, SPREAD_ROWS).astype(np.int64)
    count = pl.exclude(pl.Boolean).n_unique()
    spread, blocks = _only_row(frame[rows].select(count)), _only_row(sample.select(count))
    sizes = {}
    for name, found in spread.items():
        distinct = _all_distinct(found, frame.height)
        size = distinct * sample[name].estimated_size() / SAMPLE_ROWS
        if size < MAX_DICTIONARY_BYTES and distinct < MAX_DISTINCT_SHARE * frame.height:
            sizes[name] = max(1.0, distinct / blocks[name])
    return sizes


def _narrow_columns(frame: pl.DataFrame) -> list[str]:
    """List the columns of signed integers, dates or times in a range of 30 bits."""
    kinds = cs.signed_integer() | cs.date() | cs.datetime()
    return [name for name, size in _ranges(frame.select(kinds)).items() if size < MAX_DELTA_RANGE]


def _wide_columns(frame: pl.DataFrame, names: list[str]) -> list[str]:
    """List those of some columns that have a wider range."""
    some = pl.DataFrame([frame[name] for name in names])
    return [name for name, size in _ranges(some).items() if size >= MAX_DELTA_RANGE]


def _ranges(frame: pl.DataFrame) -> dict[str, int]:
    """Return the range of each column's values, unless all are null."""
    values = pl.all().to_physical()
    least, greatest = (_only_row(frame.select(ends)) for ends in (values.min(), values.max()))
    return {name: greatest[name] - low for name, low in least.items() if low is not None}


def _only_row(frame: pl.DataFrame) -> dict[str, Any]:
    """Return the only row of a frame by its columns; nothing if it has no columns."""
    return {name: frame[name][0] for name in frame.columns}


def _all_distinct(found: int, rows: int) -> float:
    """Estimate a column's distinct values from those of SPREAD_ROWS rows spread over it.

    Of D values, n draws are expected to find D * (1 - exp(-n / D)).
    """
    low, high = float(found), float(rows)
    for _ in range(20):
        middle = math.sqrt(low * high)
        if middle * -math.expm1(-SPREAD_ROWS / middle) < found:
            low = middle
        else:
            high = middle
    return high


def _nanoseconds(how: ColumnEncoding, stored: float, dictionary: float) -> float:
    """Estimate the time to encode and compress a value, as measured on TPC-H's lineitem.

    Args:
        how: How it is written.
        stored: Bytes of a value in the file.
        dictionary: Bytes of the dictionary, if it has one.
    """
    if how.encoding == "plain":
        return 24.0 if how.level == 1 else 10.0 + 6.5 * stored
    if how.encoding == "delta":
        return 11.0 if how.level == 1 else 12.5
    # Each value is looked up in a hash table, more slowly where it does not fit in a core's cache.
    misses = 3.0 * math.log2(max(1.0, dictionary / CACHED_DICTIONARY_BYTES))
    return (13.0 if how.level == 1 else 14.5) + misses


def _options(chosen: dict[str, ColumnEncoding], compression: Compression) -> dict[str, Any]:
    """Return pyarrow's arguments for a choice."""
    names = {"plain": "PLAIN", "delta": "DELTA_BINARY_PACKED"}
    levels = {name: how.level for name, how in chosen.items() if how.level is not None}
    return {
        "compression": compression.arrow_codec,
        "compression_level": levels or None,
        "use_dictionary": _columns(chosen, "dictionary") or False,
        "column_encoding": {
            name: names[how.encoding] for name, how in chosen.items() if how.encoding in names
        }
        or None,
    }


def _columns(chosen: dict[str, ColumnEncoding], encoding: Encoding) -> list[str]:
    return [name for name, how in chosen.items() if how.encoding == encoding]
