"""Compare the columns of a run's chunks with each other and with the output's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from pipeline.config.job import Job
from pipeline.errors import SchemaChangedError
from pipeline.runs.driver.result_types import OutputFacts
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import PARTIAL, Progress, RunRecord
from pipeline.runs.worker.null_types import agreed_types, odd_attempts
from pipeline.table.column_types import has_nulls, merge_types
from pipeline.table.columns import Columns, Difference, differences, stored_columns
from pipeline.table.log import TableLog
from pipeline.table.publish import commits_of
from pipeline.table.schemas import types_of_output


def drop_retyped(ledger: Ledger, progress: Progress) -> Progress:
    """Set aside completions whose chunks were mapped again for a column's type, and read again."""
    replaced = retyped_attempts(progress)
    if not replaced:
        return progress
    ledger.set_aside(replaced)
    return ledger.read()


def retyped_attempts(progress: Progress) -> list[str]:
    """Return the attempts at chunks that were mapped again for a column's type."""
    odd = odd_attempts(progress, agreed_types(progress))
    attempts = pl.concat([progress.completions, progress.duplicates])
    others = attempts.join(odd, on="attempt", how="anti")
    replaced = odd.join(others, on="chunk", how="semi")
    # A partial counts as a whole: set it aside only if all its chunks were mapped again.
    kept = odd.join(replaced, on="attempt", how="anti").filter(pl.col("upload") == PARTIAL)
    retyped: list[str] = replaced.join(kept, on="uri", how="anti")["attempt"].to_list()
    return retyped


def check_schemas(progress: Progress, open_columns: bool = False, *, unit: str = "chunk") -> None:
    """Raise SchemaChangedError if chunks have different columns or types.

    The order of columns does not matter: files are read by name.

    Args:
        progress: Progress of the run.
        open_columns: Accept differences in columns that are all null in some chunks.
        unit: Noun for what was mapped.
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
            raise _schema_error(odd, usual, changes, unit)


def _is_open(change: Difference) -> bool:
    old, new = change.old, change.new
    return old is not None and new is not None and merge_types(old, new) is not None


def _schema_error(
    odd: dict[str, Any], usual: dict[str, Any], changes: Sequence[Difference], unit: str
) -> SchemaChangedError:
    return SchemaChangedError(
        f"the transform returned another schema on {odd['len']} {unit}s (e.g. {unit} "
        f"{odd['index']}) than on the other {usual['len']}: {', '.join(map(str, changes))}",
        hint=f"run the job again: columns that are all null then take the other {unit}s' types"
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


_HIVE_TYPES = {
    **{f"Int{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{"UInt8": "int16", "UInt16": "int32", "UInt32": "int64", "Date": "date"},
}
"""Types of Hive columns by those of results; others are read as text."""


def hive_types_of(job: Job, progress: Progress) -> Mapping[str, str]:
    """Return the types as which the partition columns of an output are to be read."""
    names = job.output.partition_by
    if names is None:
        return job.input.hive_types
    done = progress.completions.head(1)
    text = progress.schemas.get(done["schema"][0], "{}") if done.height else "{}"
    types: Columns = orjson.loads(text)
    # 64 bits without a sign may not fit; then the values decide.
    declared = {name: kind for name in names if (kind := types.get(name, "UInt64")) != "UInt64"}
    return {name: _HIVE_TYPES.get(kind, "string") for name, kind in declared.items()}


def result_columns(progress: Progress, done: pl.DataFrame) -> Columns:
    """Return the columns of the results of some completions; empty if there are none."""
    columns: Columns = {}
    for digest in done["schema"].unique(maintain_order=True):
        for name, kind in orjson.loads(progress.schemas.get(digest, "{}")).items():
            columns[name] = merge_types(columns.get(name, kind), kind) or columns[name]
    return columns


def columns_of_run(progress: Progress, done: pl.DataFrame) -> Columns:
    """Return the columns of some completions' files, which are the same (see `check_schemas`)."""
    first = done.head(1)
    if first.is_empty():
        return {}
    text = progress.schemas.get(first["schema"][0], "")
    return stored_columns(text, first["uri"][0].rpartition("/")[0])
