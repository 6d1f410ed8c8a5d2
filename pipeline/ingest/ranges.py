"""Cut large CSV and NDJSON files into pieces at the ends of records, by ranges of bytes.

Each range is read once, by any worker, without knowing those before it. Whether it begins inside
quotes follows from the number of quotes before it, which is known when all ranges have counted
theirs; until then, the range is read as its quotes look, and again if that was wrong. A piece has
the records that end after the beginning of its range, and up to the end of the first that ends
after the next range begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Self

import polars as pl
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, PrivateAttr

from partitioning import ObjectInfo
from pipeline.concurrency import map_concurrently
from pipeline.config.ingest import Files
from pipeline.errors import StateError, UnreadableObjectError, UsageError
from pipeline.ingest.contents import COMPRESSED_STARTS, ContentError
from pipeline.ingest.cuts import HEADER_BYTES, header_end, line_end, quotes_fit, record_end
from pipeline.ingest.pieces import Piece, PieceFound, PieceReader, format_of_uri, separator_of
from pipeline.ingest.schema import Types
from pipeline.ingest.store import CutFile, IngestStore, SourceFile
from pipeline.ingest.workers import Workers
from pipeline.report.humanize import plural
from pipeline.storage import Storage

MAX_RANGES = 100_000
"""Maximum number of ranges of a file."""
_TAIL = 64 << 10
"""Bytes that are read after a range, in which its last record usually ends."""


class RangeFound(BaseModel):
    """What reading a range has found. It may come from a worker, so it is untrusted."""

    model_config = ConfigDict(frozen=True)

    odd: bool
    """Whether it has an odd number of quotes."""
    fits: tuple[bool, bool]
    """Whether its quotes begin and end values, if it begins outside and if inside quotes."""
    inside: bool
    """Whether it was read as one that begins inside quotes."""
    piece: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """Offsets of its piece, equal if no record ends in it; None if it could not be read."""
    found: PieceFound = PieceFound(rows=0)
    """What reading the piece has found."""

    @classmethod
    def lines(cls) -> Self:
        """Return what quotes say of lines of JSON: nothing."""
        return cls(odd=False, fits=(True, True), inside=False)

    def is_read(self, inside: bool) -> bool:
        """Whether it was read as one that begins inside quotes, or outside."""
        return self.inside == inside and self.piece is not None


class ScanRange(BaseModel):
    """The work of reading a range."""

    model_config = ConfigDict(frozen=True)

    file: Piece
    """The whole file."""
    files: Files
    number: NonNegativeInt
    size: PositiveInt
    """Size of ranges; the header is not longer."""
    inside: bool | None = None
    """Whether it begins inside quotes; None if it is not known."""
    declared: tuple[str, ...] = ()
    _reader: PieceReader | None = PrivateAttr(default=None)
    """What reads it in this process; others make one."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"range {self.number + 1} of {self.file.uri}"

    @property
    def bytes(self) -> int:
        """Number of bytes that are read."""
        return min(self.size, self.file.size - self.number * self.size)

    @property
    def held(self) -> int:
        """All of them."""
        return self.bytes

    def do(self, storage: Storage) -> RangeFound:
        """Read the range."""
        return _Scan(self, self._reader or PieceReader(storage, self.files)).run()


@dataclass(slots=True)
class _Scan:
    work: ScanRange
    reader: PieceReader

    def run(self) -> RangeFound:
        work, file = self.work, self.work.file
        start = work.number * work.size
        stop = min(file.size, start + work.size)
        base = start - min(1, start)
        data = self.reader.range(file, base, min(file.size, stop + _TAIL))
        at, end = start - base, stop - base
        if file.kind == "ndjson":
            return self._read(data, base, at, end, RangeFound.lines())
        fits = quotes_fit(data, at, end, separator_of(file.uri, work.files), is_start=not start)
        inside = fits[1] and not fits[0] if work.inside is None else work.inside
        quotes = RangeFound(
            odd=bool(data.count(b'"', at, end) % 2), fits=(fits[0], fits[1]), inside=inside
        )
        if not any(fits):
            return quotes
        try:
            return self._read(data, base, at, end, quotes)
        except UnreadableObjectError:
            if work.inside is not None:
                raise
            return quotes  # It may have been taken for the other case.

    def _read(self, data: bytes, base: int, at: int, end: int, found: RangeFound) -> RangeFound:
        """Read the piece of the range, whose bytes are those of `data` from `at` to `end`."""
        work, file = self.work, self.work.file
        first = at if not base + at else self._end(data, at, end, found.inside)
        if first is None:
            offset = base + end
            return found.model_copy(update={"piece": (offset, offset)})
        data, last = self._to_end(data, end, base, inside=found.inside != found.odd)
        piece = file.model_copy(update={"start": base + first, "end": base + last})
        body = data[first:last]
        if piece.start and piece.bytes:
            body = self.reader.range(file, 0, file.header) + body
        declared: Types = dict.fromkeys(work.declared, pl.Null())
        rows = self.reader.find_in(piece, body, declared) if piece.bytes else PieceFound(rows=0)
        return found.model_copy(update={"piece": (piece.start, piece.end), "found": rows})

    def _end(self, data: bytes, at: int, stop: int, inside: bool) -> int | None:
        if self.work.file.kind == "ndjson":
            return line_end(data, at, stop)
        return record_end(data, at, stop, inside=inside)

    def _to_end(self, data: bytes, at: int, base: int, *, inside: bool) -> tuple[bytes, int]:
        """Read on until the first record ends that ends at or after an offset."""
        size, limit = self.work.file.size, self.work.files.max_bytes
        if self.work.inside is None:  # A guess is not worth much.
            limit = min(limit, 4 * self.work.size + 4 * _TAIL)
        if base + at >= size:
            return data, size - base
        more = 2 * _TAIL
        while (end := self._end(data, at, len(data), inside)) is None:
            have = base + len(data)
            if have >= size:
                return data, size - base
            if len(data) - at > limit:
                raise self.reader.unreadable(
                    self.work.file,
                    ContentError(
                        f"a record near byte {base + at:,} has more than {limit:,} bytes "
                        "(files.max_bytes), or a quote is never closed"
                    ),
                )
            data += self.reader.range(self.work.file, have, min(size, have + more))
            more *= 2
        return data, end


@dataclass(slots=True)
class FileScan:
    """The ranges of a file, and what reading them has found."""

    file: Piece
    reader: PieceReader
    size: int
    """Size of ranges."""
    count: int
    """Number of ranges."""
    declared: tuple[str, ...]
    ranges: dict[int, RangeFound] = field(default_factory=dict)
    states: list[bool] = field(default_factory=list)
    """Whether each range begins inside quotes."""
    problem: str = ""
    """Why the file cannot be cut."""

    def work(self, number: int, inside: bool | None) -> ScanRange:
        """Return the work of reading a range."""
        work = ScanRange(
            file=self.file,
            files=self.reader.files,
            number=number,
            size=self.size,
            inside=inside,
            declared=self.declared,
        )
        work._reader = self.reader
        return work

    def decide(self) -> None:
        """Decide which ranges begin inside quotes.

        Raises:
            UnreadableObjectError: A quote is never closed.
        """
        inside = False
        for number in range(self.count):
            found = self.ranges[number]
            if not found.fits[inside]:
                offset = number * self.size
                self.problem = f"has a quote inside a value without quotes after byte {offset:,}"
                return
            self.states.append(inside)
            inside ^= found.odd
        if inside:
            raise self.reader.unreadable(self.file, ContentError("a quote is never closed"))

    def wrong(self) -> list[int]:
        """Return the ranges that were read as what they are not."""
        return [i for i, state in enumerate(self.states) if not self.ranges[i].is_read(state)]

    def pieces(self) -> tuple[CutFile, list[PieceFound]]:
        """Return where the file is cut, and what is known of its pieces.

        Raises:
            StateError: The pieces do not fit together.
        """
        ordered = (self.ranges[i] for i in range(self.count))
        cut = [
            (r.piece, r.found) for r in ordered if r.piece is not None and r.piece[1] > r.piece[0]
        ]
        starts = tuple(start for (start, _), _ in cut)
        if [*starts, self.file.size] != [0, *(end for (_, end), _ in cut)]:
            problem = "workers have cut it into pieces that do not fit together"
            raise StateError(self.file.uri, problem)
        kind, header = _cut_kind(self.file), self.file.header
        return CutFile(uri=self.file.uri, kind=kind, header=header, starts=starts), [
            found for _, found in cut
        ]


@dataclass(frozen=True, slots=True)
class Cutting:
    """Cuts the files of an ingest, or finds how they were cut."""

    reader: PieceReader
    workers: Workers

    @property
    def files(self) -> Files:
        """How files are read."""
        return self.reader.files

    def pieces(
        self,
        store: IngestStore,
        sources: Sequence[SourceFile],
        declared: Sequence[str],
        stored: Mapping[str, ObjectInfo] = MappingProxyType({}),
    ) -> CutPieces:
        """Return the pieces of files; cut those that are large, unless it is stored how.

        Raises:
            UnreadableObjectError: A file has a quote that is never closed, or is no CSV file.
            UsageError: A file was cut as one of another format.
        """
        wholes = [whole_file(source, self.files, stored.get(source.uri)) for source in sources]
        decided = store.cuts()
        found: dict[str, list[PieceFound]] = {}
        if decided is None:
            own = self._cut([file for file in wholes if self._is_large(file)], declared, found)
            decided = store.put_cuts(own)
            if decided != tuple(own):  # Another driver was first.
                found = {}
        known = {cut.uri: cut for cut in decided}
        by_file = {
            file.uri: _pieces(file, known.get(file.uri), store.begin_again) for file in wholes
        }
        return CutPieces(
            [piece for pieces in by_file.values() for piece in pieces],
            _digest(list(known.values())) if known else "",
            {
                piece: result
                for uri, results_of_file in found.items()
                for piece, result in zip(by_file[uri], results_of_file, strict=True)
            },
        )

    def _is_large(self, file: Piece) -> bool:
        return file.kind in ("csv", "ndjson") and file.size > self.files.range_bytes

    def _cut(
        self,
        files: Sequence[Piece],
        declared: Sequence[str],
        found: dict[str, list[PieceFound]],
    ) -> list[CutFile]:
        """Cut files, or leave them whole where that is not possible; all ranges at once."""
        begun = map_concurrently(lambda file: self._begin(file, declared), files)
        scans = [scan for scan in begun if isinstance(scan, FileScan)]
        self._read([(scan, i, None) for scan in scans for i in range(scan.count)])
        for scan in scans:
            scan.decide()
        left = [scan for scan in scans if not scan.problem]
        self._read([(scan, i, scan.states[i]) for scan in left for i in scan.wrong()])
        cuts: list[CutFile] = []
        for each in begun:
            if isinstance(each, CutFile):
                cuts.append(each)
            elif each.problem:
                cuts.append(self._whole(each.file, each.problem))
            else:
                cut, found[each.file.uri] = each.pieces()
                cuts.append(cut)
        return cuts

    def _read(self, ranges: Sequence[tuple[FileScan, int, bool | None]]) -> None:
        """Read ranges of several files, and note what each has."""
        works = [scan.work(number, inside) for scan, number, inside in ranges]
        for at, result in self.workers.map(works):
            scan, number, _ = ranges[at]
            scan.ranges[number] = result

    def _begin(self, file: Piece, declared: Sequence[str]) -> FileScan | CutFile:
        """Read the beginning of a file; return what is to be read, or that it stays whole."""
        reader = self.reader
        beginning = reader.range(file, 0, min(file.size, HEADER_BYTES))
        if beginning.startswith(COMPRESSED_STARTS):
            return self._whole(file)
        header: int | None = 0
        if file.kind == "csv":
            header = header_end(beginning)
            if header is None:
                return self._whole(file, f"has no line of {HEADER_BYTES:,} bytes or less")
        assert header is not None, "files without one are read whole"
        size = max(self.files.range_bytes, header, 1)
        count = -(-file.size // size)
        if count > MAX_RANGES:
            raise UsageError(
                f"{file.uri} has {plural(count, 'range')} of {size:,} bytes; the most are "
                f"{MAX_RANGES:,}",
                hint="raise files.range_bytes",
            )
        file = file.model_copy(update={"header": header})
        return FileScan(file, reader, size, count, tuple(declared))

    def _whole(self, file: Piece, problem: str = "") -> CutFile:
        """Leave a file whole, if it can be read like that."""
        limit = self.files.max_bytes
        if problem and file.size > limit:
            raise self.reader.unreadable(
                file,
                ContentError(
                    f"it {problem}, so it cannot be cut, and it has {file.size:,} bytes, more than "
                    f"{limit:,} (files.max_bytes)"
                ),
            )
        return CutFile(uri=file.uri, kind=_cut_kind(file), header=0, starts=(0,))


@dataclass(frozen=True, slots=True)
class CutPieces:
    """The pieces of the files of an ingest."""

    pieces: Sequence[Piece]
    cuts: str
    """Digest of how files are cut; empty if none is."""
    found: dict[Piece, PieceFound]
    """What is known of pieces from cutting."""


def whole_file(source: SourceFile, files: Files, stored: ObjectInfo | None = None) -> Piece:
    """Return a file as a piece, which is read where it is stored."""
    kind = files.format or format_of_uri(source.uri)
    assert kind is not None, "files of unknown formats are refused when they are found"
    info = stored or ObjectInfo(source.uri, source.etag, source.size)
    return Piece(
        uri=source.uri,
        etag=info.etag,
        size=info.size,
        kind=kind,
        start=0,
        end=info.size,
        stored="" if stored is None else stored.uri,
    )


def _cut_kind(file: Piece) -> Literal["csv", "ndjson"]:
    return "ndjson" if file.kind == "ndjson" else "csv"


def _pieces(file: Piece, cut: CutFile | None, begin_again: str) -> list[Piece]:
    if cut is None:
        return [file]
    if cut.kind != file.kind:
        raise UsageError(
            f"{file.uri} was cut as {cut.kind}, and now it is {file.kind} (files.format)",
            hint=begin_again,
        )
    ends = [*cut.starts[1:], file.size]
    return [
        file.model_copy(update={"start": start, "end": end, "header": cut.header})
        for start, end in zip(cut.starts, ends, strict=True)
    ]


def _digest(cuts: Sequence[CutFile]) -> str:
    text = "\n".join(cut.model_dump_json() for cut in cuts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
