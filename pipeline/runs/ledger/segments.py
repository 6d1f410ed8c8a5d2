"""Pack and unpack segments, which workers append to a ledger, and bases, compacted from many."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import orjson
import polars as pl
import pyarrow as pa
import zstandard

from partitioning.table_file import TableFile, pack_tables
from pipeline.runs.ledger.checks import join_problems, note
from pipeline.runs.ledger.records import (
    COMPLETIONS,
    FAILURES,
    Completion,
    Failure,
    Problems,
    Segment,
    digest_of,
)
from pipeline.storage.documents import problem_of

MAX_PACKED: Final = 16 << 20
"""Maximum stored bytes of a segment. One of 500 completions has about 150 KB."""
MAX_TEXT: Final = 64 << 20
"""Maximum bytes of an uncompressed segment: 32 KB can hold a gigabyte of zeros."""
MAX_LINE: Final = 1 << 20
"""Maximum bytes of an entry: that of an upload of 10,000 parts has 400 KB."""
MAX_COMPLETION: Final = MAX_LINE - (64 << 10)
"""Maximum bytes of a completion once its chunk is staged: a flush may still add to it."""
BLOCK_TEXT: Final = 8 << 20
"""Maximum bytes of entries that are Python objects at the same time; hostile ones take 20 times as
much memory. A frame per segment would take a millisecond each; a frame of all entries of a large
run would take gigabytes."""
MIN_LINE: Final = 200
"""Bytes that are added to each line's length, for the memory of an empty entry."""

EMPTY = Segment(COMPLETIONS.to_frame(), FAILURES.to_frame(), {})

_ARROW: dict[pl.DataType | type[pl.DataType], pa.DataType] = {
    pl.String: pa.large_string(),
    pl.Int64: pa.int64(),
    pl.Float64: pa.float64(),
    pl.Boolean: pa.bool_(),
    pl.List(pl.String): pa.large_list(pa.large_string()),
}


def pack_segment(entries: Sequence[Completion | Failure], schemas: Iterable[str] = ()) -> bytes:
    """Pack completions and failures as lines of JSON, compressed, with a checksum.

    Args:
        entries: Completions and failures.
        schemas: Schemas of the completions' outputs, as JSON.

    Raises:
        ValueError: readers would refuse the segment, or a line of it.
    """
    lines = [*map(schema_line, schemas), *map(entry_line, entries)]
    text = b"\n".join(lines)
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    longest = max(map(len, lines), default=0)
    if longest >= MAX_LINE or len(text) > MAX_TEXT or len(packed) > MAX_PACKED:
        raise ValueError(f"readers refuse {len(text):,} bytes, or a line of {longest:,}")
    return packed


def entry_line(entry: Completion | Failure) -> bytes:
    """Return the line of a segment with a completion or a failure."""
    # `asdict` would needlessly deep-copy each value.
    values = {name: getattr(entry, name) for name in entry.__slots__}
    return orjson.dumps({"kind": type(entry).__name__.lower(), **values})


def schema_line(schema: str) -> bytes:
    """Return the line of a segment with a schema; with its end, it may have MAX_LINE bytes."""
    return orjson.dumps({"kind": "schema", "columns": schema})


def unpack_segments(
    packed: Iterable[tuple[str, bytes]], check: Callable[[Segment], Segment] = lambda some: some
) -> Segment:
    """Unpack some segments into one. Unreadable ones are counted as problems, never raised.

    Args:
        packed: Name and bytes of each segment.
        check: Removes invalid entries, some entries at a time.
    """
    return _Unpacking(check).of(packed)


def unpack_text(data: bytes) -> bytes:
    """Decompress a segment, after checking its declared size.

    Raises:
        ValueError: it is too large, damaged, or cut short.
    """
    if len(data) > MAX_PACKED:
        raise ValueError(f"it has {len(data):,} bytes")
    try:
        size = zstandard.frame_content_size(data)
        # Require a declared size, so that memory is bounded; segments of ours have one.
        if not 0 <= size <= MAX_TEXT:
            raise ValueError(f"it would grow to {size:,} bytes" if size >= 0 else "it has no size")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


Rows = dict[str, list[dict[str, Any]]]
"""Entries parsed from JSON, by kind."""


def _no_rows() -> Rows:
    return {"completion": [], "failure": [], "schema": []}


@dataclass(slots=True)
class _Unpacking:
    """Unpacks segments into frames, a bounded number of entries at a time.

    Of a damaged segment, the entries before the first invalid line count.
    """

    check: Callable[[Segment], Segment]
    waiting: list[tuple[str, Rows]] = field(default_factory=list)
    """Names and entries of segments that are not in frames yet."""
    size: int = 0
    """Bytes of the waiting entries."""
    frames: list[Segment] = field(default_factory=list)
    problems: Problems = field(default_factory=dict)

    def of(self, packed: Iterable[tuple[str, bytes]]) -> Segment:
        for name, data in packed:
            try:
                self._add(name, unpack_text(data))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._refuse(name, error)
        self._flush()
        return join(self.frames)

    def _refuse(self, name: str, error: Exception) -> None:
        note(self.problems, "a segment cannot be read", 1, f"{name}: {problem_of(error)}")

    def _add(self, name: str, text: bytes) -> None:
        rows = _no_rows()
        self.waiting.append((name, rows))
        for line in io.BytesIO(text):
            if len(line) > MAX_LINE:
                raise ValueError(f"a line of {len(line):,} bytes")
            entry = orjson.loads(line)
            rows[entry.pop("kind")].append(entry)
            self.size += len(line) + MIN_LINE
            if self.size > BLOCK_TEXT:
                self._flush()
                rows = _no_rows()
                self.waiting.append((name, rows))

    def _flush(self) -> None:
        together = _no_rows()
        for _, rows in self.waiting:
            for kind, some in rows.items():
                together[kind] += some
        try:
            self._keep(together)
        except _UNREADABLE:
            # Retry one by one, so that a bad segment does not affect the others.
            for name, rows in self.waiting:
                try:
                    self._keep(rows)
                except _UNREADABLE as error:
                    self._refuse(name, error)
        self.frames.append(Segment(EMPTY.completions, EMPTY.failures, {}, self.problems))
        self.waiting, self.size, self.problems = [], 0, {}

    def _keep(self, rows: Rows) -> None:
        columns = [row["columns"] for row in rows["schema"]]
        if not all(map(_is_schema, columns)):
            raise ValueError("a schema is not one")
        some = Segment(
            _frame(rows["completion"], COMPLETIONS),
            _frame(rows["failure"], FAILURES),
            {digest_of(schema): schema for schema in columns},
        )
        self.frames.append(self.check(some))


_UNREADABLE = (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, OverflowError)


def _frame(rows: list[dict[str, Any]], schema: pl.Schema) -> pl.DataFrame:
    """Make a frame from rows, with Arrow.

    Polars alone makes each list a series, which takes 3 times as long for 200 rows, 6 times for
    2,000.
    """
    fields = pa.schema([(name, _ARROW[dtype]) for name, dtype in schema.items()])
    return _conformed(pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=fields))))


_LATER: Final[dict[str, Any]] = {
    "left_out": [],
    "filled": [],
    **dict.fromkeys(("encode_seconds", "reads", "writes", "retries", "memory"), 0),
    "encodings": "",
    **dict.fromkeys(("throttled", "request_limit"), 0),
    "checked": "",
    "copied": 0,
    "rewritten": "",
}
"""Columns of completions that earlier releases did not write, and what stands for them."""


def _conformed(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the columns that earlier releases did not write."""
    if "sha256" not in frame.columns:
        return _conformed_failures(frame)
    absent = [name for name in _LATER if name not in frame.columns]
    if absent:
        frame = frame.with_columns(pl.lit(_LATER[n], COMPLETIONS[n]).alias(n) for n in absent)
    if any(frame[name].null_count() for name in _LATER):
        frame = frame.with_columns(pl.col(name).fill_null(none) for name, none in _LATER.items())
    return frame.select(list(COMPLETIONS)) if absent else frame


_LATER_OF_FAILURES: Final = ("where", "line")
"""Texts of failures that earlier releases did not write."""


def _conformed_failures(frame: pl.DataFrame) -> pl.DataFrame:
    absent = [name for name in _LATER_OF_FAILURES if name not in frame.columns]
    frame = frame.with_columns(pl.lit("").alias(name) for name in absent)
    return frame.with_columns(pl.col(_LATER_OF_FAILURES).fill_null(""))


@lru_cache(256)
def _is_schema(columns: object) -> bool:
    """Whether a text is a schema as JSON."""
    value = orjson.loads(columns) if isinstance(columns, str) else None
    return isinstance(value, dict) and all(isinstance(kind, str) for kind in value.values())


def join(segments: Sequence[Segment]) -> Segment:
    """Join several segments into one."""
    return Segment(
        pl.concat([segment.completions for segment in segments]),
        pl.concat([segment.failures for segment in segments]),
        {digest: text for segment in segments for digest, text in segment.schemas.items()},
        join_problems([segment.problems for segment in segments]),
    )


def pack_base(whole: Segment, names: Iterable[str]) -> bytes:
    """Pack a base: the entries of the segments with these names."""
    tables = {
        "completions": whole.completions.to_arrow(),
        "failures": whole.failures.to_arrow(),
        "segments": pl.DataFrame({"name": list(names)}, schema={"name": pl.String}).to_arrow(),
    }
    return pack_tables(tables, {"schemas": whole.schemas, "problems": whole.problems})


def unpack_base(data: bytes) -> tuple[Segment, frozenset[str]]:
    """Unpack a base: its entries, and the names of the segments that it was compacted from.

    Raises:
        PlanFormatError: the base is damaged.
    """
    file = TableFile(data)
    completions, failures = (
        _conformed(pl.DataFrame(pl.from_arrow(file.table(part)))).cast(dict(schema))  # type: ignore[arg-type]
        for part, schema in (("completions", COMPLETIONS), ("failures", FAILURES))
    )
    names = frozenset(file.table("segments")["name"].to_pylist())
    problems = {
        reason: (count, example) for reason, (count, example) in file.meta["problems"].items()
    }
    return Segment(completions, failures, file.meta["schemas"], problems), names
