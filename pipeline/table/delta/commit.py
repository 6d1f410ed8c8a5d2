"""Bring the Delta table of an output to the output's manifest.

Our pointer moves first, and the Delta log follows. The log holds the number of the manifest that it
has, so a process that finds it behind commits what is missing, manifest by manifest: after a death,
after a lost reply, and beside another process, it is the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

import polars as pl

from pipeline.errors import SchemaChangedError, StateError, backup_of
from pipeline.storage import StorageReader
from pipeline.table.columns import Columns, digest_columns
from pipeline.table.delta.actions import (
    TableFile,
    TableSchema,
    changes_between,
    delta_columns,
    evolution,
    schema_of,
)
from pipeline.table.delta.library import LostRaceError
from pipeline.table.delta.log import DeltaLog, TableState
from pipeline.table.delta.statistics import read_statistics, row_count
from pipeline.table.delta.types import (
    DeltaType,
    column_problems,
    name_problems,
    partition_values,
)
from pipeline.table.errors import TableChangedError, plain_run
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry, Manifest, folders
from pipeline.table.replay import Footprint
from pipeline.table.retention import existing_objects, expire_replaced
from pipeline.table.schemas import columns_of, staying_commits

MAX_RACES: Final = 1000
"""Maximum number of commits of other processes that are waited for in a row."""

_checked: WeakKeyDictionary[TableLog, int] = WeakKeyDictionary()
"""Newest version of the table that is known to have the files of its manifest."""


def settle_table(table_log: TableLog, manifest: Manifest, log: DeltaLog | None = None) -> None:
    """Commit what the Delta log of an output lacks; doing it twice changes nothing.

    Args:
        table_log: Table log of the output.
        manifest: The current manifest.
        log: The Delta log; default that of the output.

    Raises:
        TableChangedError: Another writer has changed the table's files, or the output's state was
            restored from a copy.
        DamagedTableError: The Delta log cannot be read.
        StateError: The table cannot have the manifest's files.
    """
    log, has_committed = log or DeltaLog(table_log.storage, table_log.output), False
    for _ in range(MAX_RACES):
        try:
            # Each try looks at the log again, so that a commit whose reply was lost is found.
            if table_log.storage.retrying(partial(_is_settled, table_log, manifest, log)):
                break
            has_committed = True
        except LostRaceError:
            continue  # Look at what the other process did.
        except (ValueError, KeyError) as error:
            raise StateError(
                table_log.output,
                f"its Delta table cannot have the files of manifest {manifest.number}: {error}",
                hint="move _delta_log/ away to have a new one made; if that is refused too, "
                f"restore the output and its state from {backup_of(table_log.output)}",
            ) from error
    if has_committed:
        expire_replaced(table_log, manifest)
    table_log.moved = manifest.number


def _is_settled(table_log: TableLog, manifest: Manifest, log: DeltaLog) -> bool:
    """Whether the Delta log has a manifest; if not, make one commit to it."""
    state = log.read()
    if state is None:
        return _create(table_log, manifest, log)
    number = _manifest_of(table_log, state)
    if number > manifest.number:
        return True  # Another process has published since, and has committed this one too.
    _refuse_changed(table_log, log, state.version, number)
    if number < manifest.number:
        _commit(table_log, number + 1, log, state)
    return number == manifest.number


def _manifest_of(table_log: TableLog, state: TableState) -> int:
    """Return the number of the manifest that a table has."""
    if state.manifest is None:
        raise TableChangedError(
            table_log.output,
            "its Delta log was not made by chunkmap",
            "move _delta_log/ away to have a new one made, or choose another output",
        )
    current = table_log.head()[0].current
    if state.manifest > current:
        raise TableChangedError(
            table_log.output,
            f"its Delta log has manifest {state.manifest}, but {table_log.head_file.uri} points to "
            f"manifest {current}: it was restored from an old copy",
            "restore the whole state of the same time, or move _delta_log/ away to have a new one "
            "made",
        )
    return state.manifest


def _refuse_changed(table_log: TableLog, log: DeltaLog, version: int, number: int) -> None:
    """Refuse a version of a table that has other files than its manifest."""
    if _checked.get(table_log) == version:
        return
    named = set(table_log.keys(table_log.manifest(number).commits))
    has = log.files()
    if has != named:
        by = "; ".join(log.others_since(number)[:3])
        example = min(named - has, default=None) or min(has - named)
        raise TableChangedError(
            table_log.output,
            f"another writer has changed its files since manifest {number}"
            f"{f' ({by})' if by else ''}: {len(named - has):,} are removed, {len(has - named):,} "
            f"added, for example {example}",
            "restore the version before that (DeltaTable.restore): only chunkmap may write to "
            "the tables that it publishes; or publish to another output",
        )
    _checked[table_log] = version


def _create(table_log: TableLog, manifest: Manifest, log: DeltaLog) -> bool:
    """Create the table with the files of a manifest; return whether there is nothing to create."""
    files = table_log.snapshot(manifest)
    if files.is_empty():
        return True  # The columns are not known yet.
    schema = _schema_at(table_log, manifest, files)
    added = changes_between(files.clear(), files, schema).added
    statistics = _statistics(table_log, added, schema)
    log.create(schema, added, statistics, manifest.number, _runs(manifest.commits))
    return False


def _commit(table_log: TableLog, number: int, log: DeltaLog, state: TableState) -> None:
    """Commit a manifest; if it adds columns, only these."""
    manifest = table_log.manifest(number)
    before = table_log.snapshot(table_log.manifest(number - 1))
    after = table_log.snapshot(manifest)
    runs = _runs(table_log.added(number))
    schema = state.schema
    changes = changes_between(before, after, schema)
    change = evolution(schema, _types(table_log, manifest, after))
    if change.retyped:
        # Publishing refuses it unless all files are replaced.
        schema = _schema_at(table_log, manifest, after)
    elif change.added:
        log.add_columns(change.added, runs)
        return
    statistics = _statistics(table_log, changes.added, schema)
    log.commit(schema, changes, statistics, number, runs, replaces_all=bool(change.retyped))
    _checked[table_log] = state.version + 1


def _runs(entries: Sequence[CommitEntry]) -> str:
    return ",".join(dict.fromkeys(entry.run for entry in entries if entry.run))


def _live_columns(table_log: TableLog, manifest: Manifest, files: pl.DataFrame) -> list[Columns]:
    """Return the distinct columns of the commits of some files, oldest first."""
    live = set(files["commit"].to_list())
    entries = [entry for entry in manifest.commits if entry.name in live]
    examples = {entry.columns or entry.name: entry for entry in entries}
    found = [columns_of(table_log, entry) for entry in examples.values()]
    return list({digest_columns(columns): columns for columns in found}.values())


def _types(table_log: TableLog, manifest: Manifest, files: pl.DataFrame) -> dict[str, DeltaType]:
    types: dict[str, DeltaType] = {}
    for columns in _live_columns(table_log, manifest, files):
        types |= delta_columns(columns)
    return types


def _schema_at(table_log: TableLog, manifest: Manifest, files: pl.DataFrame) -> TableSchema:
    runs = [entry for entry in manifest.commits if entry.adds_files]
    declared = table_log.load(runs[-1]).hive_types if runs else {}
    return schema_of(_types(table_log, manifest, files), folders(files), declared)


def _statistics(
    table_log: TableLog, files: Sequence[TableFile], schema: TableSchema
) -> dict[str, str]:
    """Return the statistics of files by key, from their footers."""
    infos = existing_objects(table_log, [file.key for file in files])
    types = {n: kind for n, kind in schema.columns.items() if n not in schema.partitions}
    reader = StorageReader(table_log.storage)
    found = read_statistics(reader, list(infos.values()), types)
    return {
        file.key: found.get(table_log.output + file.key, row_count(file.rows)) for file in files
    }


# -- refuse before anything is visible ---------------------------------------------------------


def refuse_other_tables(
    table_log: TableLog,
    manifest: Manifest,
    commits: Sequence[Commit],
    widens: Callable[[], bool],
) -> None:
    """Refuse commits that a Delta table cannot have.

    Args:
        table_log: Table log of the output.
        manifest: The manifest that the commits are added to.
        commits: The commits, which are added together.
        widens: Returns whether the output may get new columns; called only if needed.

    Raises:
        UsageError: The output is a table, and a commit is not of one.
        SchemaChangedError: A column has a type that Delta lacks, or another than in the table; a
            partition column has another type or value.
    """
    if not manifest.table and not any(commit.entry.table for commit in commits):
        return
    plain = next((commit.entry.run for commit in commits if not commit.entry.table), None)
    if plain is not None:
        raise plain_run(table_log.output, f"run {plain}")
    state = table_log.storage.retrying(DeltaLog(table_log.storage, table_log.output).read)
    for commit in commits:
        if commit.files.height:
            _refuse_commit(table_log, commit, state, widens)
    if state is None:
        _refuse_first_columns(table_log, manifest, commits)
        _refuse_folders(table_log, manifest, commits)


def _refuse_commit(
    table_log: TableLog, commit: Commit, state: TableState | None, widens: Callable[[], bool]
) -> None:
    output, run = table_log.output, commit.entry.run
    hint = "change these columns in the transform, or drop output.table"
    problems = column_problems(commit.columns)
    if problems:
        raise SchemaChangedError(f"run {run}: {'; '.join(problems)}", hint=hint)
    if state is None:
        return
    try:
        for folder in sorted(set(folders(commit.files))):
            partition_values(folder, state.schema.partition_types)
    except ValueError as error:
        raise SchemaChangedError(
            f"run {run} does not fit the Delta table {output}: {error}",
            hint="partition columns of a Delta table do not change: choose another output",
        ) from error
    who, mode = f"run {run}", commit.entry.mode
    refuse_changes(table_log, who, commit.columns, mode=mode, widens=widens, state=state)


def refuse_changes(
    table_log: TableLog,
    who: str,
    columns: Columns,
    *,
    mode: str,
    widens: Callable[[], bool],
    state: TableState | None = None,
) -> None:
    """Refuse files with other columns than the table of an output, unless that is asked for.

    Args:
        table_log: Table log of the output.
        who: The run or job of the files, for the message.
        columns: Columns of the files, without partition columns.
        mode: Mode of their commit.
        widens: Returns whether the table's columns may change; called only if needed.
        state: Newest version of the table, if it is known.

    Raises:
        SchemaChangedError: The columns differ.
    """
    log = DeltaLog(table_log.storage, table_log.output)
    state = state or table_log.storage.retrying(log.read)
    if state is None:
        return
    change = evolution(state.schema, delta_columns(columns))
    differences = [
        *(f"{name}: absent / {kind}" for name, kind in change.added.items()),
        *(f"{name}: {old} / {new}" for name, (old, new) in change.retyped.items()),
    ]
    is_whole = mode == "overwrite"
    if not differences or ((is_whole or not change.retyped) and widens()):
        return
    raise SchemaChangedError(
        f"{who} has other columns than the Delta table {table_log.output}: "
        f"{', '.join(differences)} "
        "(in the table / new)",
        hint="let the table's columns change (output.schema: widen)"
        if is_whole or not change.retyped
        else "cast these columns to the table's types in the transform, or replace the whole "
        "table (output.mode: overwrite, output.schema: widen)",
    )


def _refuse_first_columns(
    table_log: TableLog, manifest: Manifest, commits: Sequence[Commit]
) -> None:
    """Refuse a first version of a table whose files have different or unfit columns."""
    staying = staying_commits(table_log, manifest, [Footprint.of(commit) for commit in commits])
    columns = [columns_of(table_log, entry) for entry in staying if entry.files]
    columns += [commit.columns for commit in commits if commit.files.height]
    problems = _problems_together(columns)
    if problems:
        raise SchemaChangedError(
            f"{table_log.output} cannot be a Delta table with the files that stay in it: "
            f"{'; '.join(problems)}",
            hint="replace the whole output (output.mode: overwrite, output.schema: widen), or "
            "choose another output",
        )


def _problems_together(files: Sequence[Columns]) -> list[str]:
    """Describe why files cannot be in one table: columns that Delta lacks, or of several types."""
    together: dict[str, DeltaType] = {}
    problems: list[str] = []
    for columns in files:
        unfit = column_problems(columns)
        problems += unfit
        for name, kind in ({} if unfit else delta_columns(columns)).items():
            other = together.setdefault(name, kind)
            if other != kind:
                problems.append(f"column {name!r} is of type {other}, but also of type {kind}")
    return list(dict.fromkeys([*problems, *name_problems(list(together))]))


def refuse_rollback(table_log: TableLog, target: Manifest) -> None:
    """Refuse to make the files of a manifest current again if the table cannot have them.

    Args:
        table_log: Table log of an output that is a table.
        target: A manifest, perhaps from before the output was a table.

    Raises:
        SchemaChangedError: The files have other partition columns, or columns that Delta lacks.
    """
    files = table_log.snapshot(target)
    if files.is_empty():
        return
    problems = _problems_together(_live_columns(table_log, target, files))
    state = table_log.storage.retrying(DeltaLog(table_log.storage, table_log.output).read)
    try:
        schema = _schema_at(table_log, target, files) if state is None else state.schema
        if not problems:
            changes_between(files.clear(), files, schema)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise SchemaChangedError(
            f"the Delta table {table_log.output} cannot have the files of manifest "
            f"{target.number}: {'; '.join(problems)}",
            hint=f"choose a later version: chunkmap history {table_log.output}",
        )


def _refuse_folders(table_log: TableLog, manifest: Manifest, commits: Sequence[Commit]) -> None:
    """Refuse a first version of a table whose folders have different partition columns."""
    replaces = any(commit.entry.mode == "overwrite" for commit in commits)
    files = [] if replaces else folders(table_log.snapshot(manifest))
    files += [folder for commit in commits for folder in folders(commit.files)]
    if not files:
        return
    schema = schema_of({}, files, commits[-1].hive_types)
    try:
        for folder in sorted(set(files)):
            partition_values(folder, schema.partition_types)
    except ValueError as error:
        raise SchemaChangedError(
            f"{table_log.output} cannot be a Delta table: {error}",
            hint="change these values in the transform, or drop output.table",
        ) from error
    problems = [
        problem
        for commit in commits
        for problem in name_problems([*commit.columns, *schema.partitions])
    ]
    if problems:
        raise SchemaChangedError(
            f"{table_log.output} cannot be a Delta table: {problems[0]}",
            hint="rename the columns in the transform, or drop output.table",
        )
