"""Files as the source of an ingest: found once, and read as they were then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from partitioning import ObjectInfo
from partitioning.globs import compile_glob, has_magic, literal_prefix
from pipeline.concurrency import map_concurrently
from pipeline.config.ingest import Files, is_url
from pipeline.errors import InputError, ObjectMissingError
from pipeline.ingest.download import AT_ONCE, Downloads
from pipeline.ingest.pieces import FindPiece, PieceFound, PieceReader, format_of_uri
from pipeline.ingest.ranges import CutPieces
from pipeline.ingest.rows import Found, Unit
from pipeline.ingest.schema import ContradictionError, Types, contradiction, merge
from pipeline.ingest.store import SourceFile
from pipeline.ingest.texts import Look
from pipeline.ingest.workers import Workers, results
from pipeline.storage import Storage, parse
from pipeline.uris import STATE_SUFFIX

SAMPLE_ROWS = 100_000
"""Maximum number of rows that are encoded to learn how large files become."""


def find_files(storage: Storage, files: Files, downloads: Downloads) -> list[SourceFile]:
    """List the files of a definition: those of S3 or a disk by URI, then those of URLs.

    Raises:
        InputError: There are none, or the format of one is not known.
    """
    found: dict[str, ObjectInfo] = {}
    urls = [uri for uri in dict.fromkeys(files.uri) if is_url(uri)]
    for uri in files.uri:
        if is_url(uri):
            continue
        for info in _listed(storage, parse(uri).uri):
            found[info.uri] = info
    infos = [found[uri] for uri in sorted(found) if _is_data(uri)]
    if not infos and not urls:
        raise InputError(
            f"no file at {', '.join(files.uri)} (files.uri)",
            hint="name a file, a prefix that ends with a slash, or a glob such as s3://b/*.csv",
        )
    for uri in [*(info.uri for info in infos), *urls]:
        if files.format is None and format_of_uri(uri) is None:
            raise InputError(
                f"the name of {uri} does not say its format",
                hint="set files.format to csv, ndjson, json, parquet, arrow or excel, or choose "
                "other files",
            )
    listed = [SourceFile(uri=info.uri, etag=info.etag, size=info.size) for info in infos]
    return listed + map_concurrently(downloads.find, urls, AT_ONCE)


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


@dataclass(frozen=True)
class FileRows:
    """The rows of files, in pieces: whole files, and parts of large ones."""

    files: Files
    reader: PieceReader
    cut: CutPieces
    workers: Workers

    @property
    def place(self) -> str:
        """The files, as the definition names them."""
        return ", ".join(self.files.uri)

    @cached_property
    def units(self) -> Sequence[Unit]:
        """The pieces."""
        return [Unit(piece.bytes, has_rows=piece.bytes > 0) for piece in self.cut.pieces]

    @property
    def count(self) -> int:
        """Number of files."""
        return len({piece.uri for piece in self.cut.pieces})

    @property
    def cuts(self) -> str:
        """Digest of how files are cut; empty if none is."""
        return self.cut.cuts

    def find(self, declared: Types, pinned: Types | None) -> Found:
        """Read all files; return the types of their fields.

        What texts of CSV look like is a guess, which gives way to what is known: a column that is
        text anywhere else, or in the output, is text.
        """
        types: Types = {}
        looks: dict[str, Look] = {}
        rows = 0
        for piece, found in zip(self.cut.pieces, self._read(declared), strict=True):
            rows += found.rows
            for name, look in found.looks.items():
                types.setdefault(name, pl.Null())
                looks[name] = looks.get(name, Look()).merged(look)
            for name, dtype in found.dtypes(piece.place).items():
                types[name] = _merged(types.get(name, pl.Null()), dtype, name, piece.place)
        for name, look in looks.items():
            is_text = _is_text(types[name]) or _is_text((pinned or {}).get(name))
            dtype = pl.String() if is_text and look.seen else look.dtype
            types[name] = _merged(types[name], dtype, name, "a CSV file")
        return Found(types, rows)

    def _read(self, declared: Types) -> list[PieceFound]:
        """Read the pieces that are not known yet; return what is found in each."""
        known = dict(self.cut.found)
        left = [piece for piece in self.cut.pieces if piece not in known]
        works = [FindPiece.of(piece, self.reader, declared) for piece in left]
        known |= zip(left, results(self.workers, works), strict=True)
        return [known[piece] for piece in self.cut.pieces]

    def frame(self, start: int, end: int, types: Types, texts: frozenset[str]) -> pl.DataFrame:
        """Return the rows of some pieces."""
        frames = self.frames(start, end, types, texts)
        return pl.concat([pl.DataFrame(schema=pl.Schema(types)), *frames], rechunk=True)

    def frames(
        self, start: int, end: int, types: Types, texts: frozenset[str]
    ) -> Iterator[pl.DataFrame]:
        """Read some pieces, one after the other."""
        for piece in self.cut.pieces[start:end]:
            yield self.reader.frame(piece, types, texts)

    def sample(self, types: Types, texts: frozenset[str]) -> tuple[pl.DataFrame, float]:
        """Return rows of the first piece that has some."""
        for whole in self.cut.pieces:
            piece = self.reader.first(whole)
            frame = self.reader.frame(piece, types, texts)
            if frame.height:
                some = frame.head(SAMPLE_ROWS)
                return some, piece.bytes * some.height / frame.height
        return pl.DataFrame(schema=pl.Schema(types)), 0.0


def _merged(first: pl.DataType, second: pl.DataType, name: str, where: str) -> pl.DataType:
    try:
        return merge(first, second, name)
    except ContradictionError as error:
        raise contradiction(error, f"the files up to {where}") from None


def _is_text(kind: pl.DataType | None) -> bool:
    return isinstance(kind, pl.String)
