"""Files as the source of an ingest: found once, read as they were then, each of them whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from partitioning import ObjectInfo
from partitioning.globs import compile_glob, has_magic, literal_prefix
from pipeline.config.ingest import FileFormatName, Files
from pipeline.errors import InputError, ObjectMissingError, UnreadableObjectError
from pipeline.ingest.contents import (
    ContentError,
    columnar_frame,
    csv_frame,
    csv_types,
    decompress,
    format_of,
    json_records,
    ndjson_records,
    typed_columns,
    typed_csv,
)
from pipeline.ingest.frames import frame_of, needs_exact_numbers
from pipeline.ingest.rows import Found, Unit
from pipeline.ingest.schema import ContradictionError, Types, add_types, contradiction, merge
from pipeline.ingest.store import SourceFile
from pipeline.storage import Storage, parse
from pipeline.uris import STATE_SUFFIX

SAMPLE_ROWS = 100_000
"""Maximum number of rows that are encoded to learn how large files become."""


def find_files(storage: Storage, files: Files) -> list[SourceFile]:
    """List the files of a definition, in the order of their URIs.

    Raises:
        InputError: There are none, or the format of one is not known.
    """
    found: dict[str, ObjectInfo] = {}
    for uri in files.uri:
        for info in _listed(storage, parse(uri).uri):
            found[info.uri] = info
    infos = [found[uri] for uri in sorted(found) if _is_data(uri)]
    if not infos:
        raise InputError(
            f"no file at {', '.join(files.uri)} (files.uri)",
            hint="name a file, a prefix that ends with a slash, or a glob such as s3://b/*.csv",
        )
    for info in infos:
        if files.format is None and format_of(info.uri) is None:
            raise InputError(
                f"the name of {info.uri} does not say its format",
                hint="set files.format to csv, ndjson, json, parquet or arrow, or choose other "
                "files",
            )
    return [SourceFile(uri=info.uri, etag=info.etag, size=info.size) for info in infos]


def _listed(storage: Storage, uri: str) -> list[ObjectInfo]:
    if has_magic(uri):
        prefix, pattern = literal_prefix(uri), compile_glob(uri)
        return [info for info in storage.objects(prefix) if pattern.fullmatch(info.uri)]
    if uri.endswith("/"):
        return storage.objects(uri)
    try:
        return [storage.head(uri)]
    except ObjectMissingError:
        return []


def _is_data(uri: str) -> bool:
    """Whether an object is no folder, not hidden, and no state of an output."""
    name = uri.rpartition("/")[2]
    return bool(name) and not name.startswith(("_", ".")) and f"{STATE_SUFFIX}/" not in uri


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of files."""

    storage: Storage
    files: Files
    sources: Sequence[SourceFile]

    @property
    def place(self) -> str:
        """The files, as the definition names them."""
        return ", ".join(self.files.uri)

    @property
    def units(self) -> Sequence[Unit]:
        """The files."""
        return [Unit(source.size, has_rows=source.size > 0) for source in self.sources]

    def find(self, declared: Types, pinned: Types | None) -> Found:
        """Read all files; return the types of their fields.

        What texts of CSV look like is a guess, which gives way to what is known: a column that is
        text anywhere else, or in the output, is text.
        """
        types: Types = {}
        guesses: Types = {}
        rows = 0
        for source in self.sources:
            kind, found = self._find(source, declared)
            rows += found.rows
            for name, dtype in found.types.items():
                if kind == "csv":
                    types.setdefault(name, pl.Null())
                    guesses[name] = _guess(guesses.get(name, pl.Null()), dtype)
                else:
                    types[name] = _merged(types.get(name, pl.Null()), dtype, name, source.uri)
        for name, guess in guesses.items():
            is_text = _is_text(types[name]) or _is_text((pinned or {}).get(name))
            dtype = pl.String() if is_text and guess != pl.Null() else guess
            types[name] = _merged(types[name], dtype, name, "a CSV file")
        return Found(types, rows)

    def frame(self, start: int, end: int, types: Types, texts: frozenset[str]) -> pl.DataFrame:
        """Return the rows of some files."""
        frames = [self._frame(source, types, texts) for source in self.sources[start:end]]
        return pl.concat([pl.DataFrame(schema=pl.Schema(types)), *frames], rechunk=True)

    def sample(self, types: Types, texts: frozenset[str]) -> tuple[pl.DataFrame, float]:
        """Return rows of the first file that has some."""
        for source in self.sources:
            frame = self._frame(source, types, texts)
            if frame.height:
                some = frame.head(SAMPLE_ROWS)
                return some, source.size * some.height / frame.height
        return pl.DataFrame(schema=pl.Schema(types)), 0.0

    # -- one file --------------------------------------------------------------------------------

    def _find(self, source: SourceFile, declared: Types) -> tuple[FileFormatName, Found]:
        kind, data = self._read(source)
        if kind in ("json", "ndjson"):
            records = self._records(source, kind, data, exact=False)
            types: Types = {}
            try:
                add_types(types, records, declared)
            except ContradictionError as error:
                raise contradiction(error, source.uri) from None
            return kind, Found(types, len(records))
        if kind == "csv":
            frame = self._csv(source, data)
            return kind, Found(csv_types(frame, declared), frame.height)
        frame = self._columnar(source, kind, data)
        types = {n: pl.Null() if n in declared else dtype for n, dtype in frame.schema.items()}
        return kind, Found(types, frame.height)

    def _frame(self, source: SourceFile, types: Types, texts: frozenset[str]) -> pl.DataFrame:
        kind, data = self._read(source)
        if kind in ("json", "ndjson"):
            exact = needs_exact_numbers(types, texts)
            return frame_of(
                self._records(source, kind, data, exact=exact), types, texts, source.uri
            )
        if kind == "csv":
            return typed_csv(self._csv(source, data), types, source.uri)
        return typed_columns(self._columnar(source, kind, data), types, texts, source.uri)

    def _read(self, source: SourceFile) -> tuple[FileFormatName, bytes]:
        """Return format and content of a file, of the version that was found."""
        kind = self.files.format or format_of(source.uri)
        assert kind is not None, "files of unknown formats are refused when they are found"
        if source.size > self.files.max_bytes:
            raise self._unreadable(
                source,
                ContentError(
                    f"it has {source.size:,} bytes, more than {self.files.max_bytes:,} "
                    "(files.max_bytes)"
                ),
            )
        info = ObjectInfo(source.uri, source.etag, source.size)
        data = bytes(self.storage.get_ranges(info, [(0, source.size)])[0]) if source.size else b""
        try:
            return kind, decompress(data, self.files.max_bytes)
        except ContentError as error:
            raise self._unreadable(source, error) from None

    def _records(
        self, source: SourceFile, kind: FileFormatName, data: bytes, *, exact: bool
    ) -> list[dict[str, Any]]:
        try:
            if kind == "json":
                return json_records(data, self.files.records, exact=exact)
            return ndjson_records(data, exact=exact)
        except ContentError as error:
            raise self._unreadable(source, error) from None

    def _csv(self, source: SourceFile, data: bytes) -> pl.DataFrame:
        tabs = source.uri.lower().partition(".tsv")[1] and self.files.separator == ","
        try:
            return csv_frame(data, "\t" if tabs else self.files.separator, self.files.nulls)
        except ContentError as error:
            raise self._unreadable(source, error) from None

    def _columnar(self, source: SourceFile, kind: FileFormatName, data: bytes) -> pl.DataFrame:
        try:
            return columnar_frame(data, kind)
        except ContentError as error:
            raise self._unreadable(source, error) from None

    def _unreadable(self, source: SourceFile, error: ContentError) -> UnreadableObjectError:
        hint = "replace it, or choose other files (files.uri, files.format)"
        return UnreadableObjectError(source.uri, str(error), hint)


def _guess(first: pl.DataType, second: pl.DataType) -> pl.DataType:
    """Return the type of texts in two CSV files: all of them are text."""
    try:
        return merge(first, second, "")
    except ContradictionError:
        return pl.String()


def _merged(first: pl.DataType, second: pl.DataType, name: str, where: str) -> pl.DataType:
    try:
        return merge(first, second, name)
    except ContradictionError as error:
        raise contradiction(error, f"the files up to {where}") from None


def _is_text(kind: pl.DataType | None) -> bool:
    return isinstance(kind, pl.String)
