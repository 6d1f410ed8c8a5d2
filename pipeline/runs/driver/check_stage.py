"""Check the whole result of a run, or of a window, before it is published.

Staged outputs cannot be read, so that checks work on what the workers stored with each completion:
figures, and the columns whose values are needed. What was found is stored with the run: a driver
that resumes it makes no check twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from typing_extensions import override

from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.config.job_checks import Checks, RowCountCheck, SqlCheck, TotalCheck
from pipeline.config.settings import Settings
from pipeline.errors import (
    CheckError,
    ChecksFailedError,
    JobError,
    ObjectMissingError,
    StateError,
)
from pipeline.quality.evaluate import Found, LastVersion, Subject, Values, evaluate, judge_rows
from pipeline.quality.figures import Figures, Wanted
from pipeline.quality.keys import repeated_keys
from pipeline.quality.results import CheckResult, refused
from pipeline.quality.sql import require_duckdb, rows_of
from pipeline.report.humanize import plural
from pipeline.runs.driver.quarantine import rejected_of
from pipeline.runs.ledger.check_files import (
    FOLDER,
    CheckedResult,
    KeptColumns,
    StoredResults,
    columns_uri,
    results_name,
)
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.runs.transforms.loading import load_schema
from pipeline.runs.transforms.user_code import user_code
from pipeline.storage import Storage
from pipeline.storage.documents import parse_stored, seal_json
from pipeline.table.column_types import parse_dtype
from pipeline.table.columns import Columns
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry
from pipeline.table.schemas import types_of_output

SHOWN = 3
"""Maximum number of failed checks that an error describes."""
_UNKNOWN_COLUMNS = "the query cannot be run: the result has no chunk, and its columns are unknown"


@dataclass(frozen=True, slots=True)
class CheckStage:
    """Checks what a run is about to publish."""

    storage: Storage
    ledger: Ledger
    table_log: TableLog
    checks: Checks
    record: RunRecord

    files: pl.DataFrame | None = None
    """Completions of the run's files, where these are merged from what was measured."""

    columns: Columns = field(default_factory=dict)
    """Columns of the results of the run's chunks, of all windows; empty if none is done."""

    def results(
        self, done: pl.DataFrame, chunks: pl.DataFrame, window: str | None = None
    ) -> list[CheckResult]:
        """Check a result, unless that is stored already.

        Args:
            done: Completions with the figures of its rows (schema COMPLETIONS).
            chunks: Completions of its chunks; those of `done`, but for a reduce.
            window: Label of its window; None: the whole run.

        Raises:
            UploadsVanishedError: columns that the checks need are not stored; map these chunks
                again.
            CheckError: a check cannot be made.
        """
        if self.checks.is_empty:
            return []
        last = self._last(done if self.files is None else self.files, window)
        columns = self._columns_without_chunks(done)
        subject = self._digest(done, chunks, last, columns)
        uri = f"{self.ledger.prefix}{results_name(window)}"
        blob = self.storage.get_or_none(uri)
        if blob is not None:
            stored = parse_stored(StoredResults, blob.data, uri)
            if stored.subject == subject:
                return list(stored.results)
        self._confirm_rejected(chunks)
        results = [*self._of_rows(chunks), *self._evaluate(done, last, columns)]
        document = StoredResults(subject=subject, at=time.time(), results=tuple(results))
        self.storage.put(uri, seal_json(document.model_dump_json(indent=1).encode()))
        return results

    def _of_rows(self, chunks: pl.DataFrame) -> list[CheckResult]:
        """Sum up what the schema of rows has found in each chunk."""
        rows = self.checks.rows
        if rows is None:
            return []
        columns = chunks.select("attempt", "rows_out", "checked").iter_rows()
        found = [self._checked(*row) for row in columns]
        return [judge_rows(rows, [(result.figures.rows, result.failing) for result in found])]

    def _confirm_rejected(self, chunks: pl.DataFrame) -> None:
        """Raise UploadsVanishedError unless all rows in quarantine are stored."""
        rejected = rejected_of(self.ledger.job(), self.record, chunks)
        if rejected.is_empty():
            return
        listed = {info.uri for info in self.storage.objects(self.ledger.prefix + FOLDER)}
        lost = rejected.filter(~(self.ledger.state + pl.col("source")).is_in(listed))
        if lost.height:
            raise UploadsVanishedError(sorted(lost["attempt"].to_list()))

    def _digest(
        self, done: pl.DataFrame, chunks: pl.DataFrame, last: LastVersion, columns: Columns
    ) -> str:
        """Hash the checks and everything that their results depend on."""
        parts: list[Any] = [
            self.checks.model_dump(mode="json"),
            done["attempt"].sort().to_list(),
            chunks["attempt"].sort().to_list(),
            last.rows,
            dict(sorted(last.totals.items())),
        ]
        parts += [columns] if done.is_empty() else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _evaluate(
        self, done: pl.DataFrame, last: LastVersion, columns: Columns
    ) -> list[CheckResult]:
        if not self.checks.run:
            return []
        checked = [
            self._checked(*row) for row in done.select("attempt", "rows_out", "checked").iter_rows()
        ]
        figures = Figures.join(result.figures for result in checked)
        kept = [result.kept for result in checked if result.kept is not None]
        wanted = Wanted.of(self.checks)
        with TemporaryDirectory(prefix="chunkmap-checks-") as folder:
            values = KeptValues(
                self.storage, self.ledger.prefix, kept, Path(folder), wanted, columns
            )
            if wanted.keeps:
                values.confirm(done["attempt"].to_list())
            return evaluate(self.checks, Subject(figures, self.record.created, values, last))

    def _checked(self, attempt: str, rows: int, text: str) -> CheckedResult:
        try:
            return CheckedResult.of(attempt, rows, text)
        except ValueError as error:
            raise StateError(self.ledger.prefix + "completions/", str(error)) from error

    def _columns_without_chunks(self, done: pl.DataFrame) -> Columns:
        """Look up the columns on which queries are run if the result has no chunk.

        They are those of the run's other windows, of its planning, or of the output. Empty if they
        are unknown, or not needed.
        """
        if done.height or not any(isinstance(check, SqlCheck) for check in self.checks.run):
            return {}
        planned: Columns = {}
        if self.ledger.job().reduce is None:  # It changes the columns.
            planned = dict(zip(self.record.columns, self.record.types, strict=False))
        return self.columns or planned or types_of_output(self.table_log)

    def _last(self, done: pl.DataFrame, window: str | None) -> LastVersion:
        """Look up what the result is compared with, as far as checks ask for it."""
        counts = any(isinstance(c, RowCountCheck) and c.of_last for c in self.checks.run)
        totals = [
            check.title
            for check in self.checks.run
            if isinstance(check, TotalCheck) and check.expected == "last"
        ]
        if not counts and not totals:
            return LastVersion()
        manifest = self.table_log.manifest()
        earlier = [entry for entry in manifest.commits if self._is_earlier(entry, window)]
        last = self.table_log.load(earlier[-1]) if earlier else None
        rows = None
        if counts and last is not None:
            rows = last.entry.rows
            if self.record.mode in ("overwrite", "overwrite-partitions"):
                rows = self._replaced_rows(done)
        return LastVersion(rows, _totals(last, totals))

    def _is_earlier(self, entry: CommitEntry, window: str | None) -> bool:
        of_window = window is None or entry.window == window
        return entry.adds_files and entry.run != self.record.run and of_window

    def _replaced_rows(self, done: pl.DataFrame) -> int | None:
        """Count the rows of other runs' files that the result replaces; None if there are none."""
        files = self.table_log.snapshot(self.table_log.manifest())
        files = files.filter(~pl.col("commit").str.starts_with(self.record.run))
        if self.record.mode == "overwrite-partitions":
            folders = done["uri"].str.strip_prefix(self.ledger.output).str.replace(r"[^/]*$", "")
            own = pl.col("key").str.replace(r"[^/]*$", "")
            files = files.filter(own.is_in(folders.unique().implode()))
        return int(files["rows"].sum()) if files.height else None


def _totals(last: Commit | None, names: Collection[str]) -> Mapping[str, float]:
    """Return the totals that checks of a commit have found, by the name of the check."""
    stored = last.checks if last is not None else ()
    return {
        result.name: float(result.figures["total"])
        for result in stored
        if result.name in names and "total" in result.figures
    }


@dataclass(slots=True)
class KeptValues(Values):
    """The columns that a run's workers have stored for its checks."""

    storage: Storage
    prefix: str
    kept: Sequence[KeptColumns]
    folder: Path
    """Folder of this machine for their files."""
    wanted: Wanted
    columns: Columns
    """Columns of a result without chunks; empty if they are unknown."""
    _fetched: bool = field(default=False, init=False)

    def confirm(self, attempts: Collection[str]) -> None:
        """Raise UploadsVanishedError unless the columns of all these attempts are stored."""
        listed = {info.uri for info in self.storage.objects(self.prefix + FOLDER)}
        stored = {k.attempt for k in self.kept if columns_uri(self.prefix, k.attempt) in listed}
        lost = sorted(set(attempts) - stored)
        if lost:
            raise UploadsVanishedError(lost)

    @override
    def repeated(self, columns: tuple[str, ...]) -> Found:
        frames = [partial(self._read, kept, columns) for kept in self.kept]
        return repeated_keys(frames, sum(kept.rows for kept in self.kept), columns)

    @override
    def rows_of(self, query: str) -> Found:
        if not self.kept:
            return self._rows_of_nothing(query)
        if not self._fetched:
            map_concurrently(self._fetch, self.kept)
            self._fetched = True
        return rows_of(query, self.folder)

    def _rows_of_nothing(self, query: str) -> Found:
        """Run a query on no rows: it may find that they are missing."""
        names = self.columns if self.wanted.kept is None else self.wanted.kept
        types = {name: parse_dtype(self.columns.get(name, "")) for name in names}
        schema = {name: kind for name, kind in types.items() if kind is not None}
        if not schema or len(schema) < len(types):
            return Found(0, problem=_UNKNOWN_COLUMNS)
        pl.DataFrame(schema=schema).write_parquet(self.folder / "0.parquet")
        return rows_of(query, self.folder)

    def _data(self, kept: KeptColumns) -> bytes:
        """Read stored columns; those that are lost or damaged must be made again."""
        try:
            data = self.storage.get(columns_uri(self.prefix, kept.attempt)).data
        except ObjectMissingError as error:
            raise UploadsVanishedError([kept.attempt]) from error
        if hashlib.sha256(data).hexdigest() != kept.sha256:
            raise UploadsVanishedError([kept.attempt])
        return data

    def _read(self, kept: KeptColumns, columns: Sequence[str]) -> pl.DataFrame:
        return pl.read_ipc(io.BytesIO(self._data(kept)), columns=list(columns))

    def _fetch(self, kept: KeptColumns) -> None:
        frame = pl.read_ipc(io.BytesIO(self._data(kept)))
        frame.write_parquet(self.folder / f"{kept.attempt}.parquet", compression="lz4")


def refuse_impossible(job: Job, settings: Settings, schema: pl.Schema | None) -> None:
    """Refuse checks that cannot be made on the job's result.

    Args:
        job: The job.
        settings: Settings of transforms.
        schema: Columns of its chunks' results; None if they depend on the data.

    Raises:
        TransformNotAllowedError: the settings do not allow the module of the schema of rows.
        JobError: a column is missing or of another type, a query is wrong, or a package is missing.
    """
    checks = job.checks
    if checks.rows is not None:
        try:
            rows = load_schema(checks.rows.schema_, settings.transforms)
            if schema is not None:
                empty = rows.typed(pl.DataFrame(schema=schema))
                with user_code(rows.name, kind=CheckError):
                    rows.split(empty)
        except CheckError as error:
            raise JobError(str(error), error.hint) from error
    result = schema if job.reduce is None else None
    problem = Wanted.of(checks).problem(result) if result is not None else None
    if problem:
        raise JobError(problem, hint="fix the job's checks.run, or the transform")
    queries = [check for check in checks.run if isinstance(check, SqlCheck)]
    if queries:
        try:
            require_duckdb()
            if result is not None:
                _try_queries(checks, queries, result)
        except CheckError as error:
            raise JobError(str(error), error.hint) from error


def _try_queries(checks: Checks, queries: Sequence[SqlCheck], schema: pl.Schema) -> None:
    """Run queries on no rows. Raises CheckError."""
    kept = Wanted.of(checks).kept
    with TemporaryDirectory(prefix="chunkmap-checks-") as folder:
        frame = pl.DataFrame(schema=schema)
        (frame if kept is None else frame[list(kept)]).write_parquet(Path(folder) / "0.parquet")
        for check in queries:
            rows_of(check.query, Path(folder))


def refuse(run: str, by_window: Mapping[str | None, Sequence[CheckResult]]) -> None:
    """Raise ChecksFailedError if checks refuse a run's result, or that of some windows.

    Arguments are those of `refusal`.
    """
    error = refusal(run, by_window)
    if error is not None:
        raise error


def refusal(
    run: str, by_window: Mapping[str | None, Sequence[CheckResult]]
) -> ChecksFailedError | None:
    """Return the error for a run's result, or that of some windows, that checks refuse, if any.

    Args:
        run: Id of the run.
        by_window: What checks have found, by the label of the window; None: the whole run.
    """
    failed = {label: refused(results) for label, results in by_window.items() if refused(results)}
    if not failed:
        return None
    first, results = next(iter(failed.items()))
    lines = [result.line for result in results[:SHOWN]]
    more = f" (and {len(results) - SHOWN} more)" if len(results) > SHOWN else ""
    what = f"run {run}"
    if first is not None:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        what = f"window {first}{others} of run {run}"
    verb = "refuses" if len(results) == 1 else "refuse"
    error = ChecksFailedError(
        f"{plural(len(results), 'check')} {verb} the result of {what}: {'; '.join(lines)}{more}; "
        "nothing of it was published",
        hint="if the data are wrong, fix them or the transform, then run the job with --replan; if "
        "the check is, change its limit or set `severity: warn` in the job's checks, then run the "
        "job again: finished work is kept",
    )
    error.windows = tuple(label for label in failed if label is not None)
    return error
