"""Verify an output: read every file that its manifest names, and search for unknown files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.concurrency import map_concurrently
from pipeline.errors import (
    JobError,
    ObjectMissingError,
    StateError,
    UsageError,
)
from pipeline.report.humanize import plural
from pipeline.runs.driver.publish import published_chunks
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage
from pipeline.table.evidence import find_evidence, find_rejected, names_alive
from pipeline.table.file_digests import has_digest
from pipeline.table.keys import original_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry, Manifest, is_adoption
from pipeline.table.retention import unnamed_keys

FILES_AT_ONCE = 8
"""Number of files read at the same time."""


@dataclass(frozen=True, slots=True)
class CommitCheck:
    """What one check has found in the rows of a commit."""

    commit: str
    window: str | None
    name: str
    outcome: str
    message: str
    figures: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of verifying an output."""

    output: str
    manifest: int
    files: int
    rows: int
    bytes: int
    left_out: int
    """Number of objects that could not be read and are left out."""
    quarantine: tuple[str, ...]
    """URIs of the records of quarantined objects."""
    missing_chunks: int
    """Number of planned chunks that the manifest lists as missing, or whose windows are not
    published yet."""
    problems: tuple[str, ...]
    """One sentence per problem; empty if there is none."""
    checks: tuple[CommitCheck, ...] = ()
    """What checks have found in the rows of the manifest's commits."""
    rejected: int = 0
    """Number of rows in quarantine of these commits."""
    rejected_in: tuple[str, ...] = ()
    """URIs of the folders that hold these rows."""
    notes: tuple[str, ...] = ()
    """Entries refused in the ledgers of the manifest's runs; they do not affect the output."""
    adopted: int = 0
    """Number of files that chunkmap did not write: they have no digest, so that their sizes, rows
    and versions are checked."""


def verify_output(storage: Storage, output: str) -> Verification:
    """Check size, rows and checksum of every file of the current manifest; find unknown files.

    Raises:
        UsageError: nothing was ever published to the output.
    """
    table_log = TableLog(storage, output)
    head, etag = table_log.head()
    if etag is None:
        raise UsageError(f"{output} has no manifest: chunkmap has published nothing there")
    manifest = table_log.manifest(head.current)
    files = table_log.snapshot(manifest)
    problems = list(_unknown_files(table_log, manifest))
    if head.publishing is not None:
        named = " ".join(head.publishing.commits) or f"rollback to {head.publishing.rollback}"
        problems.append(f"{named} is being published, or was interrupted")
    left, window_problems = _check_windows(table_log, manifest)
    problems += window_problems
    if manifest.table:
        # Only tables need their library.
        from pipeline.table.delta.look import table_problems

        problems += table_problems(table_log, manifest)
    evidence = find_evidence(table_log, manifest)
    rejected = find_rejected(table_log, manifest)
    checked = _checked_commits(table_log, manifest)
    problems += _lost_rows(table_log, checked, rejected)
    stored = _stored_files(files)
    problems += filter(None, map_concurrently(partial(_problem, table_log), stored, FILES_AT_ONCE))
    return Verification(
        output=table_log.output,
        manifest=manifest.number,
        files=files.height,
        rows=int(files["rows"].sum()),
        bytes=int(files["bytes"].sum()),
        left_out=sum(entry.left_out for entry in manifest.commits),
        quarantine=tuple(sorted(evidence.values())),
        missing_chunks=left + sum(e.missing for e in manifest.commits if e.window is None),
        problems=tuple(problems),
        checks=tuple(
            CommitCheck(commit.entry.name, commit.entry.window, **asdict(found))
            for commit in checked
            for found in commit.checks
        ),
        rejected=sum(entry.rejected for entry in manifest.commits),
        rejected_in=tuple(sorted(rejected.values())),
        notes=_ledger_notes(table_log, manifest),
        adopted=sum(file.is_adopted for file in stored),
    )


def _checked_commits(table_log: TableLog, manifest: Manifest) -> list[Commit]:
    """Load the commits of a manifest whose rows were checked."""
    entries = [entry for entry in manifest.commits if entry.checks or entry.rejected]
    return map_concurrently(table_log.load, entries, FILES_AT_ONCE)


def _lost_rows(
    table_log: TableLog, commits: Sequence[Commit], folders: Mapping[str, str]
) -> Iterator[str]:
    """Describe rows in quarantine that are not stored, or not as many as a commit says."""
    alive = names_alive(table_log, table_log.manifest()) if commits else set()
    wanted = [
        (folders.get(commit.entry.name, ""), attempt, rows, commit.entry.name)
        for commit in commits
        if commit.entry.name in alive
        for attempt, rows in commit.rejected.select("attempt", "rows").iter_rows()
    ]

    def problem(item: tuple[str, str, int, str]) -> str | None:
        folder, attempt, rows, commit = item
        uri = f"{folder}{attempt}.parquet"
        blob = table_log.storage.get_or_none(uri) if folder else None
        if blob is None:
            return f"{plural(rows, 'row')} in quarantine of commit {commit} are missing"
        stored = _row_count(blob.data)
        if stored is None:
            return f"{uri} is damaged: it is not Parquet"
        return None if stored == rows else f"{uri} has {stored} rows, the commit says {rows}"

    yield from filter(None, map_concurrently(problem, wanted, FILES_AT_ONCE))


def _ledger_notes(table_log: TableLog, manifest: Manifest) -> tuple[str, ...]:
    """Describe the entries in the ledgers of a manifest's runs that are not counted."""

    def notes(run: str) -> list[str]:
        try:
            problems = Ledger(table_log.storage, table_log.output, run).read().problems
        except (StateError, ObjectMissingError, JobError) as error:
            problems = (f"its ledger cannot be read: {error}",)
        return [f"run {run}: {problem}" for problem in problems]

    runs = list(dict.fromkeys(e.run for e in manifest.commits if not e.adopts))
    return tuple(chain.from_iterable(map_concurrently(notes, runs)))


def _check_windows(table_log: TableLog, manifest: Manifest) -> tuple[int, list[str]]:
    """Count planned chunks of runs with windows that are in no commit; find contradictions.

    All manifests count: chunks that were replaced since have been published too.
    """
    runs = dict.fromkeys(entry.run for entry in manifest.commits if entry.window is not None)
    commits: dict[str, list[CommitEntry]] = {run: [] for run in runs}
    for entry in table_log.entries():
        if entry.run in runs:
            commits[entry.run].append(entry)
    left, problems = 0, []
    for run, entries in commits.items():
        ledger = Ledger(table_log.storage, table_log.output, run)
        chunks, count = ledger.record().chunks, published_chunks(ledger, entries)
        left += chunks - count
        if count > chunks or (count < chunks and ledger.published() is not None):
            problems.append(
                f"run {run} is recorded as published with {chunks} planned chunks, but its commits "
                f"have {count}"
            )
    return left, problems


def _unknown_files(table_log: TableLog, manifest: Manifest) -> Iterator[str]:
    for key in sorted(unnamed_keys(table_log, manifest)):
        yield f"{table_log.output}{key} is in the output, but no manifest names it"


class _StoredFile(NamedTuple):
    """A file as a manifest describes it."""

    key: str
    rows: int
    bytes: int
    sha256: str
    is_adopted: bool
    mark: str
    """Version mark of an adopted file; empty for what a rollback has made of it."""


def _stored_files(files: pl.DataFrame) -> list[_StoredFile]:
    columns = ["key", "rows", "bytes", "sha256", "commit", "parts"]
    stored = []
    for key, rows, size, sha256, commit, parts in files.select(columns).iter_rows():
        is_adopted = is_adoption(commit)
        mark = parts[0] if is_adopted and original_key(key) == key else ""
        stored.append(_StoredFile(key, rows, size, sha256, is_adopted, mark))
    return stored


def _problem(table_log: TableLog, file: _StoredFile) -> str | None:
    uri = table_log.output + file.key
    try:
        blob = table_log.storage.get(uri)
    except ObjectMissingError:
        return f"{uri} is missing"
    data = blob.data
    if len(data) != file.bytes:
        return f"{uri} has {len(data)} bytes, the manifest says {file.bytes}"
    if file.is_adopted:
        if file.mark and blob.etag.strip('"') != file.mark:
            return f"{uri} is another version than was adopted: others have written it since"
    elif not has_digest(data, file.sha256):
        return f"{uri} has another checksum than the manifest says"
    actual = _row_count(data)
    if actual is None:
        return f"{uri} is damaged: it is not Parquet"
    if actual != file.rows:
        return f"{uri} has {actual} rows, the manifest says {file.rows}"
    return None


def _row_count(data: bytes) -> int | None:
    """Return the number of rows of a Parquet file; None if its footer cannot be read."""
    try:
        return int(pq.read_metadata(pa.BufferReader(data)).num_rows)
    except (pa.ArrowException, OSError):
        return None  # One damaged file must not hide the problems of others.
