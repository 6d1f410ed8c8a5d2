"""Rows of a source that is read once, from beginning to end: a database, or a function.

    readings/<reading>/<stream>-<part>.zst   a part of the rows, while they are read
    reading.json                             which parts are all rows, once

A reading is one snapshot of its source, which another reading cannot see again. So parts count
only if `reading.json` names them, which is created when all of them are stored. A reading that ends
before is not continued: the next one has an id of its own, and begins from the beginning. Once
`reading.json` exists, the source is not asked again.
"""

from __future__ import annotations

import hashlib
import io
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Annotated, Final

import polars as pl
import zstandard
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
)

from partitioning.dtypes import wider_type
from pipeline.concurrency import map_concurrently
from pipeline.errors import AlreadyExistsError, StateError
from pipeline.ingest.contents import typed_columns
from pipeline.ingest.fetch import FetchProgress
from pipeline.ingest.rows import SAMPLE_BYTES, Found, Unit
from pipeline.ingest.schema import ContradictionError, Types, contradiction, merge
from pipeline.ingest.store import Attempt, IngestStore
from pipeline.ingest.values import MAX_DIGITS
from pipeline.storage.documents import RunId, parse_stored, reading, seal_json
from pipeline.table.column_types import merge_dtypes, parse_dtype
from pipeline.table.errors import refuse_newer

READING_VERSION: Final = 1
"""Format of `reading.json`. Older releases refuse one with a higher number."""
PART_BYTES: Final = 16 << 20
"""Bytes in memory at which rows become a part."""
MAX_FRAMES: Final = 4_096
"""Number of frames at which rows become a part: those of nulls alone have no size."""
MAX_PART_BYTES: Final = 1 << 30
"""Maximum size of a part, decompressed."""
BEGAN_AGAIN: Final = (
    "an attempt before this one ended while it read the source, or still reads it: everything was "
    "read again, from the beginning"
)
READINGS: Final = "readings/"
"""Folder of the parts of all readings of an ingest."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Watermark(_Stored):
    """How far a column has been read."""

    column: str
    value: StrictInt | StrictFloat | StrictStr | None
    """Greatest value that was read, as the database writes it; None if there are no rows."""
    is_read: bool = True
    """Whether rows with this very value are read; with a lag, they are left to the next ingest."""


class Part(_Stored):
    """Some rows."""

    stream: NonNegativeInt
    """Number of the query that they are from."""
    number: NonNegativeInt
    """Number in its stream."""
    rows: NonNegativeInt
    bytes: Annotated[int, Field(ge=0, le=MAX_PART_BYTES)]
    """Size, decompressed."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Checksum of what is stored."""
    schema_: NonNegativeInt = Field(alias="schema")
    """Number of its schema."""


class Reading(_Stored):
    """A source that was read to the end."""

    model_config = ConfigDict(populate_by_name=True)

    version: int = READING_VERSION
    ingest: RunId
    name: str
    """Name of the ingest."""
    reading: Attempt
    snapshot: str = Field(max_length=1000)
    """Identity of the snapshot, as the source names it; empty if it has none."""
    after: Watermark | None = None
    """Watermark of the ingests before, from which this one reads."""
    watermark: Watermark | None = None
    """Watermark at the end of this one."""
    schemas: tuple[dict[str, str], ...]
    """Types as Polars spells them, by column, of the parts."""
    parts: tuple[Part, ...]


def load_reading(store: IngestStore) -> Reading | None:
    """Read what an ingest has read; None if it is not at the end of its source.

    Raises:
        StateError: It is damaged.
    """
    uri = store.prefix + "reading.json"
    blob = store.storage.get_or_none(uri)
    if blob is None:
        return None
    stored = parse_stored(Reading, blob.data, uri)
    refuse_newer(uri, stored.version, READING_VERSION)
    if stored.ingest != store.ingest:
        raise StateError(uri, f"it is of ingest {stored.ingest}")
    if any(part.schema_ >= len(stored.schemas) for part in stored.parts):
        raise StateError(uri, "a part has a schema that is missing")
    return stored


def has_parts(store: IngestStore) -> bool:
    """Whether a reading has begun: if it did not end, it was stopped, or still runs elsewhere."""
    return bool(store.storage.objects(store.prefix + READINGS))


def discard_others(store: IngestStore, kept: str) -> None:
    """Delete the parts of all readings but one, which is at its end."""
    prefix = store.prefix + READINGS
    found = [info.uri for info in store.storage.objects(prefix)]
    map_concurrently(
        store.storage.delete, [u for u in found if not u.startswith(f"{prefix}{kept}/")]
    )


def _part_uri(store: IngestStore, reading: str, stream: int, number: int) -> str:
    return f"{store.prefix}{READINGS}{reading}/{stream:05d}-{number:07d}.zst"


class ReadingWriter:
    """Stores the rows of a reading as they come, from several threads."""

    def __init__(self, store: IngestStore, listen: Callable[[FetchProgress], None]) -> None:
        self.reading = uuid.uuid4().hex
        self._store, self._listen = store, listen
        self._parts: dict[tuple[int, int], Part] = {}
        self._schemas: list[dict[str, str]] = []
        self._lock = Lock()
        self.progress = FetchProgress()
        self._started = time.monotonic()

    def stream(self, number: int) -> PartStream:
        """Return what the rows of a query are added to, by one thread."""
        return PartStream(self, number)

    def put(self, stream: int, number: int, frame: pl.DataFrame) -> None:
        """Store some rows."""
        buffer = io.BytesIO()
        frame.rechunk().write_ipc(buffer)
        data = buffer.getvalue()
        packed = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
        uri = _part_uri(self._store, self.reading, stream, number)
        with suppress(AlreadyExistsError):  # The id is new: an earlier reply was lost.
            self._store.storage.put_new(uri, packed)
        schema = {name: str(kind) for name, kind in frame.schema.items()}
        with self._lock:
            if schema not in self._schemas:
                self._schemas.append(schema)
            self._parts[stream, number] = Part(
                stream=stream,
                number=number,
                rows=frame.height,
                bytes=len(data),
                sha256=hashlib.sha256(packed).hexdigest(),
                schema=self._schemas.index(schema),
            )
            self.progress = FetchProgress(
                pages=len(self._parts),
                asked=len(self._parts),
                records=self.progress.records + frame.height,
                bytes=self.progress.bytes + len(data),
                seconds=time.monotonic() - self._started,
                unit="part",
            )
            self._listen(self.progress)

    def finish(
        self,
        name: str,
        snapshot: str = "",
        after: Watermark | None = None,
        watermark: Watermark | None = None,
    ) -> Reading:
        """Store that these are all rows, unless another driver has read them; return what counts.

        Args:
            name: Name of the ingest.
            snapshot: Identity of the snapshot.
            after: Watermark that it was read from.
            watermark: Watermark that it was read to.
        """
        done = Reading(
            ingest=self._store.ingest,
            name=name,
            reading=self.reading,
            snapshot=snapshot,
            after=after,
            watermark=watermark,
            schemas=tuple(self._schemas),
            parts=tuple(self._parts[key] for key in sorted(self._parts)),
        )
        document = done.model_dump_json(by_alias=True).encode()
        with suppress(AlreadyExistsError):
            self._store.storage.put_new(self._store.prefix + "reading.json", seal_json(document))
            return done
        stored = load_reading(self._store)
        assert stored is not None, "it already exists"
        return stored


class PartStream:
    """Collects the rows of a query until they are a part."""

    def __init__(self, writer: ReadingWriter, number: int) -> None:
        self._writer, self._number = writer, number
        self._frames: list[pl.DataFrame] = []
        self._types: Types = {}
        self._bytes = 0
        self._written = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows. A part has one type per column, in which nulls have any."""
        types = _together(self._types, dict(frame.schema))
        if types is None:
            self.close()
            types = dict(frame.schema)
        self._types = types
        rows = max(1, int(frame.height * PART_BYTES / max(1.0, float(frame.estimated_size()))))
        for start in range(0, max(1, frame.height), rows):
            some = frame[start : start + rows]
            self._frames.append(some)
            self._bytes += int(some.estimated_size())
            if self._bytes >= PART_BYTES or len(self._frames) >= MAX_FRAMES:
                self.close()
                self._types = types

    def close(self) -> None:
        """Store what is collected."""
        if self._frames:
            frames = [_aligned(frame, self._types) for frame in self._frames]
            self._writer.put(self._number, self._written, pl.concat(frames))
            self._frames, self._bytes, self._written = [], 0, self._written + 1
        self._types = {}


def _wider_decimal(first: pl.DataType, second: pl.DataType) -> pl.DataType | None:
    """Return the decimal with the larger scale of two; a value that it does not hold is an error.

    A decimal of Python does not say how many digits others have.
    """
    if not (isinstance(first, pl.Decimal) and isinstance(second, pl.Decimal)):
        return None
    return pl.Decimal(MAX_DIGITS, max(first.scale, second.scale))


def _together(first: Types, second: Types) -> Types | None:
    """Return types that differ from both only where those are null or missing; None without."""
    types: Types = {}
    for name in {**first, **second}:
        kind = merge_dtypes(first.get(name, pl.Null()), second.get(name, pl.Null()))
        if kind is None:
            return None
        types[name] = kind
    return types


def _aligned(frame: pl.DataFrame, types: Types) -> pl.DataFrame:
    if dict(frame.schema) == types:
        return frame.select(*types)
    columns = [
        frame.get_column(name).cast(kind)
        if name in frame.columns
        else pl.Series(name, [None], dtype=kind).new_from_index(0, frame.height)
        for name, kind in types.items()
    ]
    return pl.DataFrame(columns, height=frame.height)


@dataclass(frozen=True)
class PartRows:
    """The rows of a reading that is at its end."""

    store: IngestStore
    reading: Reading
    place: str

    @cached_property
    def units(self) -> Sequence[Unit]:
        """The parts."""
        return [Unit(part.bytes, has_rows=part.rows > 0) for part in self.reading.parts]

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.reading.parts)

    @property
    def cuts(self) -> str:
        """Nothing: parts are not cut."""
        return ""

    def find(self, declared: Types, pinned: Types | None) -> Found:
        """Return the types that hold the values of all parts."""
        types: Types = {}
        for schema in self.reading.schemas:
            for name, kind in self._schema(schema).items():
                before = types.get(name, pl.Null())
                types[name] = pl.Null() if name in declared else self._wider(before, kind, name)
        return Found(types, sum(part.rows for part in self.reading.parts))

    def frame(self, start: int, end: int, types: Types, texts: frozenset[str]) -> pl.DataFrame:
        """Return the rows of some parts."""
        frames = self.frames(start, end, types, texts)
        return pl.concat([pl.DataFrame(schema=pl.Schema(types)), *frames], rechunk=True)

    def frames(
        self, start: int, end: int, types: Types, texts: frozenset[str]
    ) -> Iterator[pl.DataFrame]:
        """Read some parts, one after the other."""
        for part in self.reading.parts[start:end]:
            yield typed_columns(self._read(part), types, texts, f"part of {self.place}")

    def sample(self, types: Types, texts: frozenset[str]) -> tuple[pl.DataFrame, float]:
        """Return the rows of the first parts."""
        end, size = 0, 0
        while end < len(self.reading.parts) and size < SAMPLE_BYTES:
            size += self.reading.parts[end].bytes
            end += 1
        return self.frame(0, end, types, texts), float(size)

    def _wider(self, first: pl.DataType, second: pl.DataType, name: str) -> pl.DataType:
        try:
            return merge(first, second, name)
        except ContradictionError as error:
            wider = _wider_decimal(first, second) or wider_type(first, second)
            if wider is None:
                raise contradiction(error, self.place) from None
            return wider

    def _schema(self, schema: dict[str, str]) -> Types:
        uri = self.store.prefix + "reading.json"
        types: Types = {}
        for name, text in schema.items():
            kind = parse_dtype(text)
            if kind is None:
                raise StateError(uri, f"column {name!r} has the unknown type {text[:100]}")
            types[name] = kind
        return types

    def _read(self, part: Part) -> pl.DataFrame:
        reading_id = self.reading.reading
        uri = _part_uri(self.store, reading_id, part.stream, part.number)
        data = self.store.storage.get(uri).data
        with reading(uri, self.store.begin_again):
            if hashlib.sha256(data).hexdigest() != part.sha256:
                raise ValueError("its content does not match its checksum")
            if zstandard.frame_content_size(data) != part.bytes:
                raise ValueError(f"it has other than {part.bytes:,} bytes")
            text = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
            frame: pl.DataFrame = pl.read_ipc(io.BytesIO(text))
            expected = self._schema(self.reading.schemas[part.schema_])
            if frame.height != part.rows or dict(frame.schema) != expected:
                raise ValueError("it has other rows or columns than expected")
        return frame
