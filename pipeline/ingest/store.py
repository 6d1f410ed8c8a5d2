"""Read and write the state of an ingest: `<output>.chunkmap/ingests/<id>/`.

    ingest.json                       what is ingested, once
    sources.json                      files that are read, with their versions, once
    ranges.json                       where the large ones of them are cut, once
    downloads/<number>                a file from a URL, once
    pages/<feed>-<page>.zst           an answer with the address of the next, once
    reading.json, readings/           rows that are read as a whole (see `readings.py`)
    plans/<plan>.json                 schema and files, once
    files/<plan>/<file>-<attempt>.json  a staged file, once
    published.json                    the manifest that published it; advisory
    discarded.json                    it was discarded, once

Nothing is rewritten, so two processes at a time do no harm. What is read is untrusted: documents
have checksums, sizes are limited, and addresses must be those of the source.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Annotated, Any, Final, Literal, Self

import orjson
import zstandard
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from partitioning import ObjectInfo
from pipeline.concurrency import map_concurrently
from pipeline.config.ingest import Ingest
from pipeline.errors import AlreadyExistsError, StateError
from pipeline.ingest.errors import SourceError
from pipeline.ingest.paging import Paging
from pipeline.report.humanize import plural
from pipeline.runs.ledger.keys import file_uri
from pipeline.storage import Storage, join, parse, same_place, state_prefix
from pipeline.storage.documents import (
    Moment,
    RunId,
    parse_number,
    parse_stored,
    reading,
    seal_bytes,
    seal_json,
    unseal_bytes,
)
from pipeline.table.errors import refuse_newer

INGEST_VERSION: Final = 1
"""Format of an ingest's stored state. Older releases refuse an ingest with a higher one."""
CUTS_VERSION: Final = 2
"""Format of the plan of an ingest whose files are cut, which older releases would read whole."""
CACHED_BYTES: Final = 64 << 20
"""Maximum bytes of pages that are kept in memory instead of being read again."""
MAX_HEADER: Final = 64 << 10
"""Maximum bytes of what is stored about a page."""
_ID = re.compile(r"[0-9a-f]{16}")
_PAGE = re.compile(r"(\d{5})-(\d{7})\.zst")
_FILE = re.compile(r"(\d{7})-[0-9a-f]{32}\.json")

log = logging.getLogger(__name__)

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Attempt = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class IngestRecord(_Stored):
    """What an ingest is; written once, before the first request."""

    version: int = INGEST_VERSION
    ingest: RunId
    """Id, derived from requests, window and output (see `ingest_id`)."""
    name: str
    url: str
    place: str = ""
    """Where the source is, as far as the requests do not say it (see `place_of`). Empty in old
    records."""
    window: str = ""
    """The window for people."""
    round: PositiveInt = 1
    """Number of the ingest of the same definition: another one was asked for after each."""
    output: str
    mode: str
    base: NonNegativeInt
    """Number of the manifest that was current at the beginning."""
    created: Moment


class PageRecord(_Stored):
    """What is stored about a page, besides its body."""

    version: int = INGEST_VERSION
    ingest: RunId
    feed: NonNegativeInt
    number: PositiveInt
    """Number in its feed, from 1."""
    address: str
    """Address that was requested."""
    next: str | None
    """Address of the page that follows; None after the last."""
    last: NonNegativeInt | None = None
    """Number of the last page, if the page says it."""
    names_next: bool = True
    """Whether it has the keys that lead to the next page, if only with null."""
    records: NonNegativeInt
    bytes: NonNegativeInt
    """Size of the body."""
    fetched: Moment


class SourceFile(_Stored):
    """A file that an ingest reads, in the version that was found."""

    uri: str
    etag: str
    size: NonNegativeInt


class SourceFiles(_Stored):
    """The files that an ingest reads; found once."""

    version: int = INGEST_VERSION
    ingest: RunId
    files: tuple[SourceFile, ...]


class CutFile(_Stored):
    """Where a file is cut, at ends of records."""

    uri: str
    kind: Literal["csv", "ndjson"]
    header: NonNegativeInt
    """Bytes of the names of columns."""
    starts: tuple[NonNegativeInt, ...]
    """Offset of each piece, ascending from 0."""

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        if self.starts[:1] != (0,) or any(a >= b for a, b in pairwise(self.starts)):
            raise ValueError("its pieces are not one after the other")
        return self


class CutFiles(_Stored):
    """How files are cut; decided once."""

    version: int = CUTS_VERSION
    ingest: RunId
    files: tuple[CutFile, ...]


class Drift(_Stored):
    """How records differ from the output's columns."""

    new: dict[str, str] = {}
    """Types of fields that the output lacks, by name."""
    missing: tuple[str, ...] = ()
    """Columns of the output that no record has."""
    changed: dict[str, tuple[str, str]] = {}
    """Type in the output and type found, by column."""
    empty: tuple[str, ...] = ()
    """Fields without any value, which become no column."""


class IngestPlan(_Stored):
    """Schema and files of an ingest, planned from all its pages."""

    version: int = INGEST_VERSION
    ingest: RunId
    plan: Digest
    """Id, derived from what the plan follows from."""
    columns: dict[str, str]
    """Types as Polars spells them, by name, in order."""
    drift: Drift
    pages: NonNegativeInt
    """Number of pages or files that are read."""
    records: NonNegativeInt
    ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Bytes of files per byte that is read, as a sample shows."""
    files: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
    """Half-open range of units of each file: of pages, in the order of feeds, files, or pieces of
    files."""
    units: NonNegativeInt | None = None
    """Number of units, where files are cut; None: `pages`."""


class StagedPart(_Stored):
    """A staged file of one folder."""

    folder: str
    """Folder with a slash at its end; empty without partitions."""
    uri: str
    attempt: Attempt
    upload: str
    parts: tuple[str, ...]
    rows: NonNegativeInt
    bytes: NonNegativeInt
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class StagedFile(_Stored):
    """The files that a range of pages has become: one, or one per folder."""

    version: int = INGEST_VERSION
    ingest: RunId
    plan: Digest
    number: NonNegativeInt
    attempt: Attempt
    parts: tuple[StagedPart, ...] = Field(max_length=100_000)


def place_of(ingest: Ingest) -> str:
    """Return where the address of the database is, or the secret of the API's account.

    The same requests to another database, or for another account, find other rows. It is empty for
    sources whose requests say all.
    """
    if ingest.sql is not None:
        return ingest.sql.url.value or ingest.sql.url.where
    if ingest.http is not None:
        return "no secret" if ingest.http.auth is None else ingest.http.auth.where
    return ""


def ingest_id(ingest: Ingest, number: int, place: str = "") -> str:
    """Derive the id of an ingest from its requests, its window and its output.

    What only changes how answers are read, or how fast they are asked for, does not count.

    Args:
        ingest: The definition.
        number: Number of its round.
        place: Where its source is, if another ingest of the output makes the same requests to
            another one.
    """
    http, window = ingest.http, ingest.window
    source: Any = None
    if http is not None:
        source = {
            "url": http.url,
            "params": http.params,
            "headers": http.headers,
            "records": http.records,
            "pages": http.pages.model_dump(exclude_defaults=True, exclude={"optional"}),
        }
    elif ingest.files is not None:
        source = {"files": ingest.files.uri}
    elif ingest.sql is not None:
        column = ingest.sql.incremental and ingest.sql.incremental.column
        source = {"table": ingest.sql.table, "query": ingest.sql.query, "column": column}
    elif ingest.source is not None:
        source = {"function": ingest.source.function, "params": ingest.source.params}
    parts: list[Any] = [
        source,
        None if window is None else window.model_dump(mode="json"),
        [parse(ingest.output.uri).uri.rstrip("/"), ingest.output.mode],
        number,
        *([place] if place else []),
    ]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(f"ingest {text}".encode()).hexdigest()[:16]


def ingests_prefix(output: str) -> str:
    """Return the prefix of the ingests of an output."""
    return join(state_prefix(parse(output).uri), "ingests") + "/"


class _Bodies:
    """The bodies of the pages that were used last."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: tuple[int, int]) -> bytes | None:
        with self._lock:
            return self._bodies.get(key)

    def put(self, key: tuple[int, int], body: bytes) -> None:
        with self._lock:
            if key not in self._bodies:
                self._bodies[key] = body
                self._bytes += len(body)
            while self._bytes > CACHED_BYTES:
                self._bytes -= len(self._bodies.popitem(last=False)[1])


@dataclass
class IngestStore:
    """Reads and writes the state of one ingest."""

    storage: Storage
    output: str
    """URI of the output prefix, with a slash at its end."""
    ingest: str
    paging: Paging | None = None
    """Requests of the ingest, by which stored addresses are checked; None if pages are not read."""
    max_page_bytes: int = 64 << 20
    _bodies: _Bodies = field(default_factory=_Bodies)

    @property
    def prefix(self) -> str:
        """URI of its state, with a slash at its end."""
        return f"{ingests_prefix(self.output)}{self.ingest}/"

    @property
    def begin_again(self) -> str:
        """How users discard it, so that the same command begins another one: a hint."""
        return (
            f"discard what was read: chunkmap vacuum {self.output} --discard {self.ingest}; then "
            "give the command again, which reads everything as it is now"
        )

    # -- record ----------------------------------------------------------------------------------

    def record(self) -> IngestRecord | None:
        """Read the record; None if there is no such ingest. Raises StateError if it is damaged."""
        uri = self.prefix + "ingest.json"
        blob = self.storage.get_or_none(uri)
        if blob is None:
            return None
        record = parse_stored(IngestRecord, blob.data, uri)
        refuse_newer(uri, record.version, INGEST_VERSION)
        if record.ingest != self.ingest or not same_place(record.output, self.output):
            raise StateError(uri, f"it is the record of ingest {record.ingest} of {record.output}")
        return record

    def create(self, record: IngestRecord) -> IngestRecord:
        """Store the record, unless there is one; return the one that counts."""
        with suppress(AlreadyExistsError):
            self._put_new("ingest.json", record)
            return record
        stored = self.record()
        assert stored is not None, "it already exists"
        return stored

    def published(self) -> int | None:
        """Read the number of the manifest that published it, as noted; None if there is no note."""
        uri = self.prefix + "published.json"
        blob = self.storage.get_or_none(uri)
        try:
            return None if blob is None else parse_number(blob.data, "manifest", uri)
        except StateError as error:
            log.warning("%s; it is ignored", error)
            return None

    def note_published(self, manifest: int) -> None:
        """Note the manifest that published it, which saves reading manifests."""
        document = orjson.dumps({"manifest": manifest, "at": time.time()})
        self.storage.put(self.prefix + "published.json", seal_json(document))

    def is_discarded(self) -> bool:
        """Whether it was discarded: the same command then begins another one."""
        return self.storage.get_or_none(self.prefix + "discarded.json") is not None

    def note_discarded(self) -> None:
        """Note that it was discarded."""
        with suppress(AlreadyExistsError):
            document = orjson.dumps({"ingest": self.ingest, "at": time.time()})
            self.storage.put_new(self.prefix + "discarded.json", seal_json(document))

    def _put_new(self, name: str, document: BaseModel) -> None:
        self.storage.put_new(self.prefix + name, seal_json(document.model_dump_json().encode()))

    # -- files that are read ---------------------------------------------------------------------

    def sources(self) -> tuple[SourceFile, ...]:
        """Read which files are ingested; none for an API. Raises StateError if it is damaged."""
        uri = self.prefix + "sources.json"
        blob = self.storage.get_or_none(uri)
        if blob is None:
            return ()
        stored = parse_stored(SourceFiles, blob.data, uri)
        refuse_newer(uri, stored.version, INGEST_VERSION)
        if stored.ingest != self.ingest:
            raise StateError(uri, f"it is of ingest {stored.ingest}")
        return stored.files

    def put_sources(self, files: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
        """Store which files are ingested, unless it is stored; return those that count."""
        with suppress(AlreadyExistsError):
            self._put_new("sources.json", SourceFiles(ingest=self.ingest, files=tuple(files)))
            return tuple(files)
        return self.sources()

    def cuts(self) -> tuple[CutFile, ...] | None:
        """Read where files are cut; None if it is not decided. Raises StateError if damaged."""
        uri = self.prefix + "ranges.json"
        blob = self.storage.get_or_none(uri)
        if blob is None:
            return None
        stored = parse_stored(CutFiles, blob.data, uri)
        refuse_newer(uri, stored.version, CUTS_VERSION)
        if stored.ingest != self.ingest:
            raise StateError(uri, f"it is of ingest {stored.ingest}")
        return stored.files

    def put_cuts(self, files: Sequence[CutFile]) -> tuple[CutFile, ...]:
        """Store where files are cut, if only that none is; return what counts."""
        with suppress(AlreadyExistsError):
            self._put_new("ranges.json", CutFiles(ingest=self.ingest, files=tuple(files)))
            return tuple(files)
        stored = self.cuts()
        assert stored is not None, "it already exists"
        return stored

    def download(self, number: int) -> ObjectInfo:
        """Return where a downloaded file is. Raises ObjectMissingError."""
        return self.storage.head(self._download_uri(number))

    def put_download(self, number: int, data: bytes) -> None:
        """Store a downloaded file, unless it is stored."""
        with suppress(AlreadyExistsError):
            self.storage.put_new(self._download_uri(number), data)

    def _download_uri(self, number: int) -> str:
        return f"{self.prefix}downloads/{number:05d}"

    # -- pages -----------------------------------------------------------------------------------

    def put_page(self, page: PageRecord, body: bytes) -> PageRecord:
        """Store a page, unless it is stored; return the one that counts."""
        header = page.model_dump_json().encode()
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(header + b"\n" + body)
        try:
            self.storage.put_new(self._page_uri(page.feed, page.number), seal_bytes(packed))
        except AlreadyExistsError:
            return self.page(page.feed, page.number)
        self._bodies.put((page.feed, page.number), body)
        return page

    def _page_uri(self, feed: int, number: int) -> str:
        return f"{self.prefix}pages/{feed:05d}-{number:07d}.zst"

    def stored_pages(self, feeds: int) -> dict[int, list[int]]:
        """List the numbers of the stored pages, ascending, by the number of their feed."""
        prefix = f"{self.prefix}pages/"
        names = (info.uri.removeprefix(prefix) for info in self.storage.objects(prefix))
        found: dict[int, list[int]] = {}
        for name in sorted(names):
            match = _PAGE.fullmatch(name)
            if match is None or int(match[1]) >= feeds:
                raise StateError(prefix + name, "it is no page of this ingest")
            found.setdefault(int(match[1]), []).append(int(match[2]))
        return found

    def page(self, feed: int, number: int) -> PageRecord:
        """Read what is stored about a page. Raises StateError if it is damaged."""
        page, body = self._read_page(feed, number)
        self._bodies.put((feed, number), body)
        return page

    def body(self, page: PageRecord) -> bytes:
        """Read the body of a page. Raises StateError if it is damaged."""
        cached = self._bodies.get((page.feed, page.number))
        return self._read_page(page.feed, page.number)[1] if cached is None else cached

    def _read_page(self, feed: int, number: int) -> tuple[PageRecord, bytes]:
        uri = self._page_uri(feed, number)
        data = self.storage.get(uri).data
        with reading(uri, "delete it: the command then asks the source for this page again"):
            packed = unseal_bytes(data)
            if packed is data:
                raise ValueError("it has no checksum")
            size = zstandard.frame_content_size(packed)
            if not 0 <= size <= self.max_page_bytes + MAX_HEADER:
                raise ValueError(f"it would grow to {size:,} bytes (http.max_page_bytes)")
            text = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
            header, _, body = text.partition(b"\n")
            page = PageRecord.model_validate_json(header)
            if (page.ingest, page.feed, page.number) != (self.ingest, feed, number):
                raise ValueError(f"it is page {page.number} of ingest {page.ingest}")
            if page.bytes != len(body):
                raise ValueError(f"it has {len(body):,} bytes instead of {page.bytes:,}")
            self._check_addresses(page)
        refuse_newer(uri, page.version, INGEST_VERSION)
        return page, body

    def _check_addresses(self, page: PageRecord) -> None:
        assert self.paging is not None, "pages are read by ingests that know their requests"
        for address in filter(None, (page.address, page.next)):
            try:
                self.paging.check(address)
            except SourceError as error:
                raise ValueError(error.message) from None

    # -- plans and staged files ------------------------------------------------------------------

    def plan(self, plan: str) -> IngestPlan | None:
        """Read a plan; None if it is not stored. Raises StateError if it is damaged."""
        uri = f"{self.prefix}plans/{plan}.json"
        blob = self.storage.get_or_none(uri)
        if blob is None:
            return None
        stored = parse_stored(IngestPlan, blob.data, uri)
        refuse_newer(uri, stored.version, CUTS_VERSION)
        if (stored.ingest, stored.plan) != (self.ingest, plan):
            raise StateError(uri, f"it is plan {stored.plan} of ingest {stored.ingest}")
        return stored

    def put_plan(self, plan: IngestPlan) -> IngestPlan:
        """Store a plan, unless it is stored; return the one that counts."""
        with suppress(AlreadyExistsError):
            self._put_new(f"plans/{plan.plan}.json", plan)
            return plan
        stored = self.plan(plan.plan)
        assert stored is not None, "it already exists"
        return stored

    def staged(self, plan: IngestPlan) -> list[StagedFile]:
        """Read what is noted about staged files of a plan, in the order of files."""
        prefix = f"{self.prefix}files/{plan.plan}/"
        infos = sorted(self.storage.objects(prefix), key=lambda info: info.uri)

        def read(uri: str) -> StagedFile:
            name = uri.removeprefix(prefix)
            if not _FILE.fullmatch(name):
                raise StateError(uri, "it is no staged file of this ingest")
            staged = parse_stored(StagedFile, self.storage.get(uri).data, uri)
            refuse_newer(uri, staged.version, INGEST_VERSION)
            if (staged.ingest, staged.plan) != (self.ingest, plan.plan) or name != _name(staged):
                raise StateError(uri, f"it is file {staged.number} of ingest {staged.ingest}")
            if staged.number >= len(plan.files):
                raise StateError(uri, f"the plan has {plural(len(plan.files), 'file')}")
            self.refuse_foreign_keys(staged, uri)
            return staged

        return map_concurrently(read, [info.uri for info in infos])

    def refuse_foreign_keys(self, staged: StagedFile, source: str) -> None:
        """Refuse a staged file whose keys are not those of its number and attempts.

        Args:
            staged: The staged file, from a worker or from a note.
            source: URI to name in the error.

        Raises:
            StateError: A key is outside of the output, or of another file.
        """
        for part in staged.parts:
            *names, end = part.folder.split("/")
            is_folder = not end and not {"", ".", ".."}.intersection(names)
            key = file_uri(self.output, part.folder, staged.number, self.ingest, part.attempt)
            if not is_folder or part.uri != key:
                raise StateError(
                    source,
                    f"{part.uri[:1024]!r} is no key of file {staged.number} of this ingest",
                    hint="no worker of this ingest wrote it: check who may write to "
                    f"{state_prefix(self.output)}, then {self.begin_again}",
                )

    def note_staged(self, staged: StagedFile) -> None:
        """Note a staged file."""
        self._put_new(f"files/{staged.plan}/{_name(staged)}", staged)


def _name(staged: StagedFile) -> str:
    return f"{staged.number:07d}-{staged.attempt}.json"


@dataclass(frozen=True, slots=True)
class IngestsFound:
    """The ingests of an output."""

    records: list[IngestRecord]
    """Records, oldest first."""
    damaged: dict[str, StateError]
    """Errors of damaged records, by id."""


def find_ingests(storage: Storage, output: str) -> IngestsFound:
    """Read the records of all ingests of an output."""
    prefix = ingests_prefix(output)
    names = (info.uri.removeprefix(prefix) for info in storage.objects(prefix))
    parts = (name.partition("/") for name in names)
    ids = [ingest for ingest, _, rest in parts if rest == "ingest.json"]

    def read(ingest: str) -> IngestRecord | StateError | None:
        try:
            if not _ID.fullmatch(ingest):
                raise StateError(f"{prefix}{ingest}/", f"{ingest!r} is not the id of an ingest")
            return IngestStore(storage, as_output(output), ingest).record()
        except StateError as error:
            return error

    results = dict(zip(ids, map_concurrently(read, ids), strict=True))
    records = [found for found in results.values() if isinstance(found, IngestRecord)]
    damaged = {name: found for name, found in results.items() if isinstance(found, StateError)}
    return IngestsFound(sorted(records, key=lambda record: record.created), damaged)


def as_output(uri: str) -> str:
    """Return the URI of an output prefix in its normal form, with a slash at its end."""
    return parse(uri).uri.rstrip("/") + "/"


def total(pages: Iterable[PageRecord] | Sequence[PageRecord]) -> int:
    """Return the number of records of pages."""
    return sum(page.records for page in pages)
