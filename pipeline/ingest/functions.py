"""A function as the source of an ingest: what it yields is stored as it comes, and read once.

It is called in the process that drives the ingest. What it yields cannot be continued, so an ingest
that ends before the function does calls it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl
import pyarrow as pa

from partitioning.dtypes import plain_type
from pipeline.config.ingest import Ingest
from pipeline.config.ingest_rows import RowFunction
from pipeline.config.sections import TransformSettings
from pipeline.errors import ChunkmapError, SchemaChangedError
from pipeline.ingest.errors import SourceError
from pipeline.ingest.fetch import FetchProgress
from pipeline.ingest.plan import declared_types
from pipeline.ingest.readings import (
    BEGAN_AGAIN,
    PartRows,
    ReadingWriter,
    discard_others,
    has_parts,
    load_reading,
)
from pipeline.ingest.rows import Rows
from pipeline.ingest.schema import Types
from pipeline.ingest.store import IngestStore
from pipeline.ingest.values import frame_of_records
from pipeline.runs.transforms.loading import load_row_function
from pipeline.runs.transforms.user_code import describe, is_from_signal

RECORDS_AT_ONCE: Final = 1_000
"""Number of dicts that become a frame together."""
_YIELDS: Final = (
    "yield dicts, lists of dicts, Polars frames, or Arrow tables, batches and readers of them"
)


@dataclass(slots=True)
class FunctionSource:
    """What a function yields."""

    definition: Ingest
    function: RowFunction
    settings: TransformSettings
    listen: Callable[[FetchProgress], None]
    fetched: FetchProgress = field(default_factory=FetchProgress)
    notes: tuple[str, ...] = ()
    _call: Callable[[], Any] | None = None

    @property
    def place(self) -> str:
        """The function's name."""
        return self.function.function

    def prepare(self) -> None:
        """Import the function, if that is allowed."""
        self._call = load_row_function(self.place, self.function.params, self.settings)

    def store(self, prefix: IngestStore) -> IngestStore:
        """Return the store as it is."""
        return prefix

    def left(self, before: Sequence[IngestStore]) -> bool:
        """Return False: a function does not say what is new."""
        return False

    def begin(self, store: IngestStore) -> None:
        """Store nothing: rows are stored as they come."""

    def rows(self, store: IngestStore) -> Rows:
        """Call the function, and store all that it yields, unless that is done."""
        reading = load_reading(store)
        if reading is None:
            if has_parts(store):
                self.notes = (BEGAN_AGAIN,)
            writer = ReadingWriter(store, self._heard)
            stream = writer.stream(0)
            for frame in frames_of(self._items(), declared_types(self.definition), self.place):
                stream.add(frame)
            stream.close()
            reading = writer.finish(self.definition.name)
        discard_others(store, reading.reading)
        return PartRows(store, reading, self.place)

    def _heard(self, progress: FetchProgress) -> None:
        self.fetched = progress
        self.listen(progress)

    def _items(self) -> Iterator[Any]:
        """Yield what the function yields; its errors become one that names it."""
        assert self._call is not None, "it is prepared before it is called"
        try:
            found = self._call()
            if isinstance(found, Mapping | str | bytes) or not (
                is_frame(found) or isinstance(found, Iterable)
            ):
                raise _unfit(self.place, found, f"returned {type(found).__name__}")
            yield from [found] if is_frame(found) else found
        except ChunkmapError:
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) or is_from_signal(error):
                raise
            raise SourceError(
                f"{self.place} failed: {describe(error)}",
                hint="fix it, and give the command again, which calls it again: nothing is "
                "published yet",
            ) from error


def is_frame(item: Any) -> bool:
    """Whether something is a table: of Polars, or of Arrow."""
    kinds = (pl.DataFrame, pl.LazyFrame, pa.Table, pa.RecordBatch, pa.RecordBatchReader)
    return isinstance(item, kinds)


def frames_of(items: Iterable[Any], declared: Types, where: str) -> Iterator[pl.DataFrame]:
    """Yield items as frames; dicts that follow each other become frames together.

    Raises:
        SchemaChangedError: A value has no type, or a column has values of several kinds.
        SourceError: An item is none of those that a function may yield.
    """
    records: list[Mapping[str, Any]] = []
    for item in items:
        if is_frame(item):
            if records:
                yield frame_of_records(records, declared, where)
                records = []
            yield from _frames(item, where)
            continue
        for record in item if isinstance(item, list | tuple) else [item]:
            if not isinstance(record, Mapping):
                raise _unfit(where, record, f"yielded {type(record).__name__}")
            records.append(record)
            if len(records) >= RECORDS_AT_ONCE:
                yield frame_of_records(records, declared, where)
                records = []
    if records:
        yield frame_of_records(records, declared, where)


def _frames(item: Any, where: str) -> Iterator[pl.DataFrame]:
    if isinstance(item, pl.LazyFrame):
        item = item.collect()
    if isinstance(item, pl.DataFrame):
        yield _without_categories(item, where)
    elif isinstance(item, pa.RecordBatchReader):
        for batch in item:
            yield _of_arrow(pa.Table.from_batches([batch]), where)
    else:
        yield _of_arrow(pa.table(item), where)


def _of_arrow(table: pa.Table, where: str) -> pl.DataFrame:
    """Return an Arrow table as a frame."""
    fields = []
    for column in table.schema:
        kind = plain_type(column.type)
        if kind is None:
            raise SchemaChangedError(
                f"column {column.name!r} of {where} has type {column.type}, which Polars lacks",
                hint="convert it in the function",
            )
        fields.append(column.with_type(kind))
    try:
        table.validate(full=True)
        plain = table.cast(pa.schema(fields))
        frame = pl.DataFrame(pl.from_arrow(plain))
    except (pa.ArrowException, pl.exceptions.PolarsError, ValueError, TypeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise SchemaChangedError(
            f"a table of {where} cannot be read: {lines[0]}", hint="fix it in the function"
        ) from None
    return _without_categories(frame, where)


def _without_categories(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return a frame whose categories are texts."""
    objects = [name for name, kind in frame.schema.items() if kind == pl.Object]
    if objects:
        raise SchemaChangedError(
            f"column {objects[0]!r} of {where} has objects of Python, which no file holds",
            hint="convert it in the function",
        )
    texts = (pl.Categorical, pl.Enum)
    names = [name for name, kind in frame.schema.items() if isinstance(kind, texts)]
    return frame.with_columns(frame.get_column(name).cast(pl.String) for name in names)


def _unfit(where: str, item: Any, what: str) -> SourceError:
    return SourceError(f"{where} {what}, which are no rows", hint=_YIELDS)
