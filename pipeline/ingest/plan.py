"""Plan the files of an ingest from its rows: their columns, and which pages or files each holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from partitioning.dtypes import parse_type
from pipeline.config.ingest import Files, Ingest
from pipeline.errors import SchemaChangedError
from pipeline.ingest.errors import SourceError
from pipeline.ingest.rows import PageRows, Rows, Unit
from pipeline.ingest.schema import Types, decide
from pipeline.ingest.store import (
    CUTS_VERSION,
    INGEST_VERSION,
    IngestPlan,
    IngestStore,
    find_ingests,
)
from pipeline.report.humanize import plural
from pipeline.runs.worker.encoding import Compression, FileFormat, write_parquet
from pipeline.table.column_types import parse_dtype
from pipeline.table.log import TableLog
from pipeline.table.schemas import types_of_output

MAX_BYTES_OF_FILE = 512 << 20
"""Maximum bytes of the pages, or files, of a file: its rows are in memory."""
_NOT_PLANNED = {"uri", "max_bytes", "range_bytes"}
"""Keys of `files` that a plan does not follow from."""


def plan_files(ingest: Ingest, store: IngestStore, rows: Rows, table_log: TableLog) -> IngestPlan:
    """Plan the files of an ingest, or find its plan.

    Args:
        ingest: The definition.
        store: State of the ingest.
        rows: Its rows.
        table_log: Table log of the output.

    Raises:
        SchemaChangedError: The records do not fit the output, as the definition says.
        SourceError: There are no records, and the output would be emptied.
    """
    pinned, declared = pinned_types(table_log, store), declared_types(ingest)
    digest = _digest(ingest, pinned, rows.cuts)
    stored = store.plan(digest)
    if stored is not None:
        return stored
    found = rows.find(declared, pinned)
    if not found.rows and ingest.output.mode == "overwrite":
        raise SourceError(
            f"{rows.place} has no records, and the mode is overwrite: the output would be emptied",
            hint="check what is asked for; what is published stays",
        )
    decision = decide(found.types, pinned, declared, ingest.schema_)
    types = decision.types
    if not types and found.rows:
        raise SchemaChangedError(
            f"no field of the {plural(found.rows, 'record')} of {rows.place} has a value",
            hint="declare the types of fields without values (types)",
        )
    ratio = _ratio(ingest, rows, types) if found.rows else 1.0
    plan = IngestPlan(
        ingest=store.ingest,
        version=CUTS_VERSION if rows.cuts else INGEST_VERSION,
        plan=digest,
        columns={name: str(kind) for name, kind in types.items()},
        drift=decision.drift,
        pages=rows.count,
        units=len(rows.units) if rows.cuts else None,
        records=found.rows,
        ratio=ratio,
        files=tuple(cut_files(rows.units, ingest.output.file_bytes / ratio)) if found.rows else (),
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


def _digest(ingest: Ingest, pinned: Types | None, cuts: str) -> str:
    """Derive the id of a plan from all that it follows from, besides the pages."""
    output = ingest.output
    parts: list[Any] = [
        None if pinned is None else {name: str(kind) for name, kind in pinned.items()},
        list(ingest.types.items()),
        ingest.schema_,
        [output.file_bytes, output.partition_by, output.compression],
        None if ingest.files is None else _of_files(ingest.files),
        *([cuts] if cuts else []),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _of_files(files: Files) -> dict[str, Any]:
    """Return the keys that a plan follows from; newer ones only where they are set."""
    values = files.model_dump(exclude=_NOT_PLANNED)
    return {key: value for key, value in values.items() if key != "sheet" or value is not None}


def _ratio(ingest: Ingest, rows: Rows, types: Types) -> float:
    """Return the bytes of a file per byte that is read, as a sample shows."""
    if isinstance(rows, PageRows) and sum(u.bytes for u in rows.units) <= ingest.output.file_bytes:
        return 1.0  # One file, without encoding a sample: Parquet is smaller than JSON.
    frame, size = rows.sample(types, text_columns(ingest))
    if not frame.height or not size:
        return 1.0
    data, _ = write_parquet(frame, file_format(ingest))
    return max(len(data) / size, 1e-3)


def file_format(ingest: Ingest) -> FileFormat:
    """Return the format of an ingest's files."""
    return FileFormat(Compression.parse(ingest.output.compression))


def cut_files(units: Sequence[Unit], size: float) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges of units with about so many bytes; none of them has no rows."""
    start, held, has_rows = 0, 0, False
    for number, unit in enumerate(units):
        held, has_rows = held + unit.bytes, has_rows or unit.has_rows
        if has_rows and held >= min(size, MAX_BYTES_OF_FILE):
            yield start, number + 1
            start, held, has_rows = number + 1, 0, False
    if has_rows:
        yield start, len(units)
