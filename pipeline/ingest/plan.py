"""Plan the files of an ingest from its stored pages: their columns, and which pages each holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from partitioning.dtypes import parse_type
from pipeline.concurrency import map_concurrently
from pipeline.config.ingest import Ingest
from pipeline.errors import SchemaChangedError
from pipeline.ingest.errors import SourceError
from pipeline.ingest.frames import frame_of, needs_exact_numbers, parse_records
from pipeline.ingest.paging import Answer, Paging
from pipeline.ingest.schema import ContradictionError, Types, add_types, contradiction, decide
from pipeline.ingest.store import IngestPlan, IngestStore, PageRecord, find_ingests, total
from pipeline.runs.worker.encoding import Compression, FileFormat, write_parquet
from pipeline.table.column_types import parse_dtype
from pipeline.table.log import TableLog
from pipeline.table.schemas import types_of_output

SAMPLE_BYTES = 4 << 20
"""Bytes of pages that are encoded to learn how large files become."""
MAX_BYTES_OF_FILE = 512 << 20
"""Maximum bytes of the pages of a file: its rows are in memory."""
PAGES_AT_ONCE = 16
"""Number of pages that are read at the same time."""


@dataclass(frozen=True, slots=True)
class PageReader:
    """Reads the rows of stored pages."""

    store: IngestStore
    paging: Paging

    def documents(
        self, pages: Sequence[PageRecord], *, exact: bool = False
    ) -> Iterator[tuple[PageRecord, list[dict[str, Any]]]]:
        """Yield the records of pages, in order."""
        for start in range(0, len(pages), PAGES_AT_ONCE):
            some = pages[start : start + PAGES_AT_ONCE]
            for page, body in zip(some, map_concurrently(self.store.body, some), strict=True):
                document = parse_records(body, exact=exact) if body else None
                yield page, self.paging.records(Answer(document), page.address)

    def frame(
        self, pages: Sequence[PageRecord], types: Types, texts: frozenset[str]
    ) -> pl.DataFrame:
        """Return the rows of pages.

        Raises:
            SchemaChangedError: A value does not fit its type.
        """
        exact = needs_exact_numbers(types)
        frames = [
            frame_of(records, types, texts, page.address)
            for page, records in self.documents(pages, exact=exact)
        ]
        empty = pl.DataFrame(schema=pl.Schema(types))
        return pl.concat([empty, *frames], rechunk=True)


def plan_files(
    ingest: Ingest,
    store: IngestStore,
    reader: PageReader,
    table_log: TableLog,
    pages: list[PageRecord],
) -> IngestPlan:
    """Plan the files of an ingest, or find its plan.

    Args:
        ingest: The definition.
        store: State of the ingest.
        reader: Reads its pages.
        table_log: Table log of the output.
        pages: All its pages.

    Raises:
        SchemaChangedError: The records do not fit the output, as the definition says.
        SourceError: There are no records, and the output would be emptied.
    """
    pinned, declared = pinned_types(table_log, store), declared_types(ingest)
    digest = _digest(ingest, pinned)
    stored = store.plan(digest)
    if stored is not None:
        return stored
    if not total(pages) and ingest.output.mode == "overwrite":
        raise SourceError(
            f"{ingest.http.url} has no records, and the mode is overwrite: the output would be "
            "emptied",
            hint="check http.params and window; what is published stays",
        )
    decision = decide(_found(reader, pages, declared), pinned, declared, ingest.schema_)
    types = decision.types
    if not types and total(pages):
        raise SchemaChangedError(
            f"the {total(pages):,} records of {ingest.http.url} have no field with a value",
            hint="declare the types of fields without values (types)",
        )
    ratio = _ratio(ingest, reader, pages, types)
    plan = IngestPlan(
        ingest=store.ingest,
        plan=digest,
        columns={name: str(kind) for name, kind in types.items()},
        drift=decision.drift,
        pages=len(pages),
        records=total(pages),
        files=tuple(cut_files(pages, ingest.output.file_bytes / ratio)),
    )
    return store.put_plan(plan)


def declared_types(ingest: Ingest) -> Types:
    """Return the types that a definition declares."""
    return {name: parse_type(text) for name, text in ingest.types.items()}


def text_columns(ingest: Ingest) -> frozenset[str]:
    """Return the columns that a definition declares as text."""
    return frozenset(name for name, kind in declared_types(ingest).items() if kind == pl.String())


def types_of(plan: IngestPlan) -> Types:
    """Return the types of a stored plan.

    Raises:
        SchemaChangedError: This release does not know one of them.
    """
    return _parsed(plan.columns)


def pinned_types(table_log: TableLog, store: IngestStore) -> Types | None:
    """Return the types that the output has pinned; None if it has none yet.

    They are those of the last ingest that it has, or else those of its files.
    """
    ingests = {record.ingest for record in find_ingests(store.storage, store.output).records}
    for entry in reversed(table_log.manifest().commits):
        if entry.run not in ingests or entry.run == store.ingest or not entry.files:
            continue
        other = IngestStore(store.storage, store.output, entry.run)
        commit = table_log.load(entry)
        plan = other.plan(plan_of_chunk(commit.files["chunk"][0]))
        if plan is not None:
            return _parsed(plan.columns)
    columns = types_of_output(table_log)
    return _parsed(columns) if columns else None


def chunk_of(plan: str, number: int, part: int) -> str:
    """Return the id of a file of an ingest, which stands for the id of a chunk in commits."""
    return f"{plan}-{number:07d}-{part:05d}"


def plan_of_chunk(chunk: str) -> str:
    """Return the plan of a file from its id."""
    return chunk.partition("-")[0]


def _parsed(columns: dict[str, str]) -> Types:
    types: Types = {}
    for name, text in columns.items():
        kind = parse_dtype(text)
        if kind is None:
            raise SchemaChangedError(
                f"column {name!r} of the output has the type {text[:100]}, which records "
                "cannot have",
                hint="ingest into an output of its own",
            )
        types[name] = kind
    return types


def _digest(ingest: Ingest, pinned: Types | None) -> str:
    """Derive the id of a plan from all that it follows from, besides the pages."""
    output = ingest.output
    parts: list[Any] = [
        None if pinned is None else {name: str(kind) for name, kind in pinned.items()},
        list(ingest.types.items()),
        ingest.schema_,
        [output.file_bytes, output.partition_by, output.compression],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _found(reader: PageReader, pages: list[PageRecord], declared: Types) -> Types:
    """Return the types of all records."""
    found: Types = {}
    for page, records in reader.documents(pages):
        try:
            add_types(found, records, declared)
        except ContradictionError as error:
            raise contradiction(error, f"records up to {page.address}") from None
    return found


def _ratio(ingest: Ingest, reader: PageReader, pages: list[PageRecord], types: Types) -> float:
    """Return the bytes of a file per byte of its pages, as a sample shows."""
    sample: list[PageRecord] = []
    for page in pages:
        sample.append(page)
        if sum(page.bytes for page in sample) >= SAMPLE_BYTES:
            break
    size = sum(page.bytes for page in sample)
    if not total(sample) or not size:
        return 1.0
    data, _ = write_parquet(reader.frame(sample, types, text_columns(ingest)), file_format(ingest))
    return max(len(data) / size, 1e-3)


def file_format(ingest: Ingest) -> FileFormat:
    """Return the format of an ingest's files."""
    return FileFormat(Compression.parse(ingest.output.compression))


def cut_files(pages: Sequence[PageRecord], size: float) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges of pages with about so many bytes; none of them has no records."""
    start, held, records = 0, 0, 0
    for number, page in enumerate(pages):
        held, records = held + page.bytes, records + page.records
        if records and (held >= min(size, MAX_BYTES_OF_FILE)):
            yield start, number + 1
            start, held, records = number + 1, 0, 0
    if records:
        yield start, len(pages)
