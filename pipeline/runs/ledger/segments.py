"""Segments, which workers append to a ledger, and bases, which hold many: bytes and frames."""

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
from pipeline.runs.ledger.checks import joined_problems, note
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

MOST_PACKED: Final = 16 << 20
"""Bytes of a segment as it is stored. One of 200 completions has some 60 KB."""
MOST_TEXT: Final = 64 << 20
"""Bytes that a segment may grow to: 32 KB can hold a gigabyte of zeros."""
MOST_LINE: Final = 1 << 20
"""Bytes of an entry: one of an upload of 10,000 parts has 400 KB."""
BLOCK_TEXT: Final = 8 << 20
"""Bytes of entries that are Python's objects at the same time: of hostile ones these take twenty
times as much. One frame for each segment would take a millisecond; all entries of a large run at
once would take gigabytes."""
LEAST_LINE: Final = 200
"""Bytes that the shortest line counts for: an entry takes that much even if it says nothing."""

EMPTY = Segment(COMPLETIONS.to_frame(), FAILURES.to_frame(), {})

_ARROW: dict[pl.DataType | type[pl.DataType], pa.DataType] = {
    pl.String: pa.large_string(),
    pl.Int64: pa.int64(),
    pl.Float64: pa.float64(),
    pl.Boolean: pa.bool_(),
    pl.List(pl.String): pa.large_list(pa.large_string()),
}


def pack_segment(entries: Sequence[Completion | Failure], schemas: Iterable[str] = ()) -> bytes:
    """Completions and failures as lines of JSON, compressed, with a checksum.

    Args:
        entries: Completions and failures.
        schemas: Of the completions' outputs, as JSON.
    """
    lines = [{"kind": "schema", "columns": schema} for schema in schemas]
    lines += [_line(entry) for entry in entries]
    packer = zstandard.ZstdCompressor(write_checksum=True)
    return packer.compress(b"\n".join(map(orjson.dumps, lines)))


def unpack_segments(
    packed: Iterable[tuple[str, bytes]], check: Callable[[Segment], Segment] = lambda some: some
) -> Segment:
    """What some segments hold, as one. What cannot be read is counted as a problem, never raised.

    Args:
        packed: Name and bytes of each.
        check: Takes away what does not count, of some entries at a time.
    """
    return _Unpacking(check).of(packed)


def unpack_text(data: bytes) -> bytes:
    """Decompress a segment, which says itself how long it will be.

    Raises:
        ValueError: it is too large, damaged, or cut short.
    """
    if len(data) > MOST_PACKED:
        raise ValueError(f"it has {len(data):,} bytes")
    try:
        size = zstandard.frame_content_size(data)
        # Without a length it would have to be believed while it grows; ours have one.
        if not 0 <= size <= MOST_TEXT:
            raise ValueError(f"it would grow to {size:,} bytes" if size >= 0 else "it has no size")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


Rows = dict[str, list[dict[str, Any]]]
"""Entries as JSON has them, by their kind."""


def _no_rows() -> Rows:
    return {"completion": [], "failure": [], "schema": []}


@dataclass(slots=True)
class _Unpacking:
    """Some segments becoming frames: a bounded number of entries at a time.

    A segment is believed to its first line that is no entry of ours.
    """

    check: Callable[[Segment], Segment]
    waiting: list[tuple[str, Rows]] = field(default_factory=list)
    """Name and entries of segments that are not frames yet."""
    size: int = 0
    """Bytes of these entries."""
    frames: list[Segment] = field(default_factory=list)
    problems: Problems = field(default_factory=dict)

    def of(self, packed: Iterable[tuple[str, bytes]]) -> Segment:
        for name, data in packed:
            try:
                self._add(name, unpack_text(data))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._refuse(name, error)
        self._flush()
        return joined(self.frames)

    def _refuse(self, name: str, error: Exception) -> None:
        note(self.problems, "a segment cannot be read", 1, f"{name}: {problem_of(error)}")

    def _add(self, name: str, text: bytes) -> None:
        rows = _no_rows()
        self.waiting.append((name, rows))
        for line in io.BytesIO(text):
            if len(line) > MOST_LINE:
                raise ValueError(f"a line of {len(line):,} bytes")
            entry = orjson.loads(line)
            rows[entry.pop("kind")].append(entry)
            self.size += len(line) + LEAST_LINE
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
            # One by one, lest a bad one takes the others with it.
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
            {digest_of(one): one for one in columns},
        )
        self.frames.append(self.check(some))


_UNREADABLE = (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, OverflowError)


def _frame(rows: list[dict[str, Any]], schema: pl.Schema) -> pl.DataFrame:
    """Rows as a frame, by way of Arrow.

    Polars by itself makes each list a series: 200 rows take three times as long, 2,000 six times.
    """
    fields = pa.schema([(name, _ARROW[dtype]) for name, dtype in schema.items()])
    return _conformed(pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=fields))))


_LATER: Final = ("left_out", "filled")
"""Lists of completions that those of earlier releases do not have."""


def _conformed(frame: pl.DataFrame) -> pl.DataFrame:
    """Entries of earlier releases with what they do not say."""
    if "sha256" not in frame.columns:
        return frame
    none = pl.lit([], pl.List(pl.String))
    absent = [name for name in _LATER if name not in frame.columns]
    if absent:
        frame = frame.with_columns(none.alias(name) for name in absent)
    if any(frame[name].null_count() for name in _LATER):
        frame = frame.with_columns(pl.col(name).fill_null([]) for name in _LATER)
    return frame.select(list(COMPLETIONS)) if absent else frame


@lru_cache(256)
def _is_schema(columns: object) -> bool:
    """Whether a text is columns and types, as JSON."""
    found = orjson.loads(columns) if isinstance(columns, str) else None
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def joined(segments: Sequence[Segment]) -> Segment:
    """Several as one."""
    return Segment(
        pl.concat([one.completions for one in segments]),
        pl.concat([one.failures for one in segments]),
        {digest: text for one in segments for digest, text in one.schemas.items()},
        joined_problems([one.problems for one in segments]),
    )


def pack_base(whole: Segment, names: Iterable[str]) -> bytes:
    """A base: what the segments of these names hold."""
    tables = {
        "completions": whole.completions.to_arrow(),
        "failures": whole.failures.to_arrow(),
        "segments": pl.DataFrame({"name": list(names)}, schema={"name": pl.String}).to_arrow(),
    }
    return pack_tables(tables, {"schemas": whole.schemas, "problems": whole.problems})


def unpack_base(data: bytes) -> tuple[Segment, frozenset[str]]:
    """What a base holds, and the names of the segments that it stands for.

    Raises:
        PlanFormatError: it is damaged.
    """
    file = TableFile(data)
    completions, failures = (
        _conformed(pl.DataFrame(pl.from_arrow(file.table(part)))).cast(dict(schema))  # type: ignore[arg-type]
        for part, schema in (("completions", COMPLETIONS), ("failures", FAILURES))
    )
    names = frozenset(file.table("segments")["name"].to_pylist())
    problems = {why: (count, said) for why, (count, said) in file.meta["problems"].items()}
    return Segment(completions, failures, file.meta["schemas"], problems), names


def _line(entry: Completion | Failure) -> dict[str, Any]:
    """An entry as JSON's own types; `asdict` would copy each value deeply, for nothing."""
    values = {name: getattr(entry, name) for name in entry.__slots__}
    return {"kind": type(entry).__name__.lower(), **values}
