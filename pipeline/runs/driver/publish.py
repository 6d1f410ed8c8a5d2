"""Publish a run: choose among its completions, check their columns, and commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import polars as pl

from pipeline.config.job import Job
from pipeline.errors import SchemaChangedError, StateError
from pipeline.runs.driver.commit import (
    LeftOut,
    abort_duplicates,
    draft_commit,
    files_of,
    vanished_duplicates,
)
from pipeline.runs.driver.quarantine import left_out_of
from pipeline.runs.driver.reduce_stage import drop_partials, reduced_of
from pipeline.runs.driver.result_types import OutputFacts
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import PARTIAL, Progress, RunRecord
from pipeline.runs.worker.null_types import agreed_types, odd_attempts
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.column_types import has_nulls, merge_types
from pipeline.table.columns import Columns, Difference, differences, stored_columns
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.publish import amend, commits_of, publish, refuse_released, released_names
from pipeline.table.schemas import types_of_output

_RUN_AGAIN = "run the job again: the reduce is done again"
PUBLISH_ATTEMPTS = 3
"""Maximum number of times that chunks whose uploads vanished are mapped and published again."""


def publish_run(
    storage: Storage,
    ledger: Ledger,
    vanished: UploadsVanishedError | None = None,
    *,
    without_failed: bool = False,
) -> int:
    """Publish what a run has completed and not yet published; return the manifest's number.

    Args:
        storage: Where the output is.
        ledger: Ledger of the run.
        vanished: Error of the last attempt, once its chunks have been mapped again.
        without_failed: Publish although chunks are missing; the manifest lists them, and a later
            call adds those completed since.

    Raises:
        UploadsVanishedError: staged outputs no longer exist; map their chunks and pass this error.
        SchemaChangedError: the chunks' schemas differ from each other or from files that stay in
            the output.
    """
    table_log, record, job = TableLog(storage, ledger.output), ledger.record(), ledger.job()
    if vanished is not None:
        ledger.void(vanished.attempts)
    progress = drop_retyped(ledger, ledger.read())
    check_schemas(progress)
    done = reduced_of(ledger, progress) if job.reduce else progress.completions
    if job.reduce and done.is_empty() and progress.completions.height:
        raise StateError(ledger.prefix, "the result of its reduce is not stored", _RUN_AGAIN)
    try:
        while True:
            if vanished is not None:
                amend(table_log, vanished, record.run, files_of(table_log.output, done))
            manifest = finish_open_claim(table_log)
            released = released_names(table_log, record.run, record.base)
            refuse_released(table_log, done, released)
            earlier = [table_log.load(e) for e in commits_of(table_log, record.run, record.base)]
            rest = done
            for commit in earlier:
                rest = rest.join(commit.files.select("chunk"), on="chunk", how="anti")
            missing = _missing(ledger, progress)
            assert without_failed or not missing, "only a complete run is published"
            if rest.is_empty() and earlier:
                break
            draft = draft_commit(
                record,
                rest,
                missing,
                earlier,
                job.output.keep_versions,
                released=released,
                columns=columns_of_run(progress, rest),
                hive_types=job.input.hive_types,
                left_out=_left_out(ledger, record, progress, rest, is_first=not earlier),
            )
            publish(table_log, draft, ledger.accepted(), widens=ledger.widens)
    except UploadsVanishedError as error:
        # Also void duplicates that are gone: they would be chosen next, one after the other.
        error.attempts += vanished_duplicates(table_log, progress.duplicates)
        ledger.void(error.attempts)
        raise
    chosen = pl.concat([commit.files.select("attempt") for commit in earlier])
    attempts = pl.concat([progress.completions, progress.duplicates])
    abort_duplicates(table_log, attempts.join(chosen, on="attempt", how="anti"))
    if not missing:
        ledger.note_published(manifest.number)
        if job.reduce:
            drop_partials(storage, ledger)
    return manifest.number


def _left_out(
    ledger: Ledger, record: RunRecord, progress: Progress, done: pl.DataFrame, *, is_first: bool
) -> LeftOut:
    """Objects that a commit leaves out; those that planning could not read count in the first."""
    job = ledger.job()
    # One file of a reduce has the rows of all chunks.
    of_chunks = progress.completions if job.reduce else done
    return left_out_of(job, record, ledger.plan(), of_chunks, lambda uri: is_first)


def _missing(ledger: Ledger, progress: Progress) -> list[str]:
    done = set(progress.completions["chunk"].to_list())
    return [chunk for chunk in ledger.plan().chunk_ids if chunk not in done]


def drop_retyped(ledger: Ledger, progress: Progress) -> Progress:
    """Set aside completions whose chunks were mapped again for a column's type, and read again."""
    odd = odd_attempts(progress, agreed_types(progress))
    attempts = pl.concat([progress.completions, progress.duplicates])
    others = attempts.join(odd, on="attempt", how="anti")
    replaced = odd.join(others, on="chunk", how="semi")
    # A partial counts as a whole: set it aside only if all its chunks were mapped again.
    kept = odd.join(replaced, on="attempt", how="anti").filter(pl.col("upload") == PARTIAL)
    replaced = replaced.join(kept, on="uri", how="anti")
    if replaced.is_empty():
        return progress
    ledger.set_aside(replaced["attempt"].to_list())
    return ledger.read()


def check_schemas(progress: Progress, open_columns: bool = False) -> None:
    """Raise SchemaChangedError if chunks have different columns or types.

    The order of columns does not matter: files are read by name.

    Args:
        progress: Progress of the run.
        open_columns: Accept differences in columns that are all null in some chunks.
    """
    counts = progress.completions.group_by("schema").agg(pl.len(), pl.col("index").min())
    if counts.height < 2:
        return
    types = {digest: progress.schemas.get(digest, "{}") for digest in counts["schema"]}
    typed = {digest: not has_nulls(text) for digest, text in types.items()}
    counts = counts.with_columns(typed=pl.col("schema").replace_strict(typed))
    *others, usual = counts.sort("typed", "len", "schema").iter_rows(named=True)
    ours = orjson.loads(types[usual["schema"]])
    # Schemas with types come first: their differences need a change of the transform.
    for odd in reversed(others):
        changes = differences(orjson.loads(types[odd["schema"]]), ours)
        if open_columns:
            changes = [change for change in changes if not _is_open(change)]
        if changes:
            raise _schema_error(odd, usual, changes)


def _is_open(change: Difference) -> bool:
    old, new = change.old, change.new
    return old is not None and new is not None and merge_types(old, new) is not None


def _schema_error(
    odd: dict[str, Any], usual: dict[str, Any], changes: Sequence[Difference]
) -> SchemaChangedError:
    return SchemaChangedError(
        f"the transform returned another schema on {odd['len']} chunks (e.g. chunk "
        f"{odd['index']}) than on the other {usual['len']}: {', '.join(map(str, changes))}",
        hint="run the job again: columns that are all null then take the other chunks' types"
        if all(map(_is_open, changes))
        else "cast these columns in the transform, then run the job with --replan",
    )


def output_facts(job: Job, record: RunRecord, table_log: TableLog) -> OutputFacts:
    """Look up the facts about the output that a map stage needs, when it needs them."""

    def types() -> Columns:
        # A reduce changes the columns; files that are replaced do not matter.
        keeps = job.output.mode in ("append", "overwrite-partitions") and job.reduce is None
        return types_of_output(table_log) if keeps else {}

    def published() -> list[str]:
        commits = table_log.load_all(commits_of(table_log, record.run, record.base))
        return [chunk for commit in commits for chunk in commit.files["chunk"].to_list()]

    return OutputFacts(types, published)


def columns_of_run(progress: Progress, done: pl.DataFrame) -> Columns:
    """Return the columns of some completions' files, which are the same (see `check_schemas`)."""
    first = done.head(1)
    if first.is_empty():
        return {}
    text = progress.schemas.get(first["schema"][0], "")
    return stored_columns(text, first["uri"][0].rpartition("/")[0])
