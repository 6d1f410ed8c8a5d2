"""Read pieces of files: whole files, or the records of a CSV or NDJSON file between two offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PrivateAttr

from partitioning import ObjectInfo
from pipeline.config.ingest import FileFormatName, Files, is_url
from pipeline.errors import StateError, UnreadableObjectError
from pipeline.ingest.contents import (
    ContentError,
    arrow_frame,
    csv_frame,
    decompress,
    format_of,
    json_records,
    ndjson_records,
    typed_columns,
    typed_csv,
    typed_csv_frame,
)
from pipeline.ingest.cuts import line_end, record_end
from pipeline.ingest.excel import excel_frame
from pipeline.ingest.frames import frame_of, needs_exact_numbers
from pipeline.ingest.kept_frames import KeptFrames
from pipeline.ingest.parquet import parquet_frame
from pipeline.ingest.schema import ContradictionError, Types, add_types, contradiction
from pipeline.ingest.texts import Look, read_texts
from pipeline.storage import Storage
from pipeline.table.column_types import parse_dtype

SAMPLE_BYTES = 4 << 20
"""Bytes of a piece of a file that is cut, from which is learnt how large Parquet files become."""


class Piece(BaseModel):
    """A part of a file that is read at once, in the version that was found."""

    model_config = ConfigDict(frozen=True)

    uri: str
    etag: str
    size: NonNegativeInt
    """Size of the file."""
    kind: FileFormatName
    start: NonNegativeInt
    end: NonNegativeInt
    header: NonNegativeInt = 0
    """Bytes at the beginning of the file that are read before the piece: the names of columns."""
    stored: str = ""
    """URI where the content is, if not at `uri`."""

    @property
    def bytes(self) -> int:
        """Number of bytes of its own."""
        return self.end - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is a file."""
        return self.bytes == self.size

    @property
    def place(self) -> str:
        """Its file and offset, for messages."""
        return self.uri if not self.start else f"{self.uri} after byte {self.start:,}"

    @property
    def info(self) -> ObjectInfo:
        """The object that is read."""
        return ObjectInfo(self.stored or self.uri, self.etag, self.size)


class PieceFound(BaseModel):
    """What reading a piece has found. It may come from a worker, so it is untrusted."""

    model_config = ConfigDict(frozen=True)

    rows: NonNegativeInt
    looks: dict[str, Look] = {}
    """What texts of columns without types look like, by name."""
    types: dict[str, str] = {}
    """Types of other columns as Polars spells them, by name."""

    def dtypes(self, where: str) -> Types:
        """Return the types. Raises StateError if one of them is none."""
        types: Types = {}
        for name, text in self.types.items():
            kind = parse_dtype(text)
            if kind is None:
                raise StateError(where, f"a worker has found the type {text[:100]}")
            types[name] = kind
        return types


@dataclass(frozen=True, slots=True)
class PieceReader:
    """Reads pieces of files."""

    storage: Storage
    files: Files
    kept: KeptFrames | None = None
    """Keeps rows of CSV that were read for their types, so that they are not read again."""

    def find(self, piece: Piece, declared: Types) -> PieceFound:
        """Read a piece; return the types of its fields that are not declared.

        Raises:
            SchemaChangedError: A field has values that no type holds.
            UnreadableObjectError: The file is not what it should be.
        """
        return self.find_in(piece, self._read(piece), declared)

    def find_in(self, piece: Piece, data: bytes, declared: Types) -> PieceFound:
        """Return what `find` does, of a piece that has been read, with its header."""
        if piece.kind in ("json", "ndjson"):
            records = self._records(piece, data, exact=False)
            types: Types = {}
            try:
                add_types(types, records, declared)
            except ContradictionError as error:
                raise contradiction(error, piece.place) from None
            return PieceFound(rows=len(records), types=_texts(types))
        if piece.kind == "csv":
            frame = self._csv(piece, data)
            columns = frame.get_columns()
            read = [(Look(), c) if c.name in declared else read_texts(c) for c in columns]
            if self.kept is not None:
                self.kept.put(piece, pl.DataFrame([values for _, values in read]))
            looks = {column.name: look for look, column in read}
            return PieceFound(rows=frame.height, looks=looks)
        frame = self._columnar(piece, data)
        types = {n: pl.Null() if n in declared else dtype for n, dtype in frame.schema.items()}
        return PieceFound(rows=frame.height, types=_texts(types))

    def frame(self, piece: Piece, types: Types, texts: frozenset[str]) -> pl.DataFrame:
        """Return the rows of a piece.

        Raises:
            SchemaChangedError: A value does not fit its type.
        """
        kept = None if self.kept is None else self.kept.get(piece, types)
        if kept is not None:
            return typed_csv(kept, types, piece.place)
        data = self._read(piece)
        if piece.kind in ("json", "ndjson"):
            exact = needs_exact_numbers(types, texts)
            records = self._records(piece, data, exact=exact)
            return frame_of(records, types, texts, piece.place)
        if piece.kind == "csv":
            return self._typed_csv(piece, data, types)
        return typed_columns(self._columnar(piece, data), types, texts, piece.place)

    def first(self, piece: Piece) -> Piece:
        """Return the beginning of a piece that need not be read whole, or else the piece."""
        if piece.is_whole or piece.bytes <= 2 * SAMPLE_BYTES:
            return piece
        data = self.range(piece, piece.start, piece.start + 2 * SAMPLE_BYTES)
        if piece.kind == "ndjson":
            end = line_end(data, SAMPLE_BYTES, len(data))
        else:
            inside = bool(data.count(b'"', 0, SAMPLE_BYTES) % 2)
            end = record_end(data, SAMPLE_BYTES, len(data), inside=inside)
        return piece if end is None else piece.model_copy(update={"end": piece.start + end})

    def range(self, piece: Piece, start: int, end: int) -> bytes:
        """Read bytes of a piece's file. Raises ObjectChangedError."""
        return bytes(self.storage.get_ranges(piece.info, [(start, end)])[0]) if end > start else b""

    def unreadable(self, piece: Piece, error: ContentError) -> UnreadableObjectError:
        """Return the error of a file that is not what it should be."""
        hint = "replace it, or choose other files (files.uri, files.format)"
        return UnreadableObjectError(piece.place, str(error), hint)

    def _read(self, piece: Piece) -> bytes:
        """Return the content of a piece, with the header before it."""
        limit = self.files.max_bytes
        try:
            if piece.is_whole and piece.bytes > limit:  # Cutting has limited the others.
                raise ContentError(
                    f"it has {piece.bytes:,} bytes, more than {limit:,} (files.max_bytes)"
                )
            data = self.range(piece, piece.start, piece.end)
            if not piece.is_whole:
                return self.range(piece, 0, piece.header) + data if piece.start else data
            return data if piece.kind == "excel" else decompress(data, limit)
        except ContentError as error:
            raise self.unreadable(piece, error) from None

    def _records(self, piece: Piece, data: bytes, *, exact: bool) -> list[dict[str, Any]]:
        try:
            if piece.kind == "json":
                return json_records(data, self.files.records, exact=exact)
            return ndjson_records(data, exact=exact)
        except ContentError as error:
            raise self.unreadable(piece, error) from None

    def _csv(self, piece: Piece, data: bytes) -> pl.DataFrame:
        try:
            return csv_frame(data, separator_of(piece.uri, self.files), self.files.nulls)
        except ContentError as error:
            raise self.unreadable(piece, error) from None

    def _typed_csv(self, piece: Piece, data: bytes, types: Types) -> pl.DataFrame:
        separator = separator_of(piece.uri, self.files)
        try:
            return typed_csv_frame(data, separator, self.files.nulls, types, piece.place)
        except ContentError as error:
            raise self.unreadable(piece, error) from None

    def _columnar(self, piece: Piece, data: bytes) -> pl.DataFrame:
        try:
            if piece.kind == "excel":
                return excel_frame(data, self.files.sheet, self.files.max_bytes)
            if piece.kind == "parquet":
                return parquet_frame(data, self.files.max_bytes)
            return arrow_frame(data)
        except ContentError as error:
            raise self.unreadable(piece, error) from None


def format_of_uri(uri: str) -> FileFormatName | None:
    """Return the format that the name of a file ends in; None if unknown."""
    return format_of(urlsplit(uri).path if is_url(uri) else uri)


def separator_of(uri: str, files: Files) -> str:
    """Return the character between the values of a CSV file."""
    tabs = uri.lower().partition(".tsv")[1] and files.separator == ","
    return "\t" if tabs else files.separator


def _texts(types: Types) -> dict[str, str]:
    return {name: str(kind) for name, kind in types.items()}


class FindPiece(BaseModel):
    """The work of reading a piece for the types of its fields."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    piece: Piece
    files: Files
    declared: tuple[str, ...] = Field(default=())
    _reader: PieceReader | None = PrivateAttr(default=None)
    """What reads it in this process; others make one."""

    @classmethod
    def of(cls, piece: Piece, reader: PieceReader, declared: Types) -> Self:
        """Return the work of a piece."""
        work = cls(piece=piece, files=reader.files, declared=tuple(declared))
        work._reader = reader
        return work

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"read {self.piece.place}"

    @property
    def bytes(self) -> int:
        """Number of bytes that are read."""
        return self.piece.bytes

    @property
    def held(self) -> int:
        """All of them."""
        return self.bytes

    def do(self, storage: Storage) -> PieceFound:
        """Read the piece."""
        declared: Types = dict.fromkeys(self.declared, pl.Null())
        reader = self._reader or PieceReader(storage, self.files)
        return reader.find(self.piece, declared)
