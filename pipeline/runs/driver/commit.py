"""Turn completions of a run into commits of its output, and abort duplicates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import polars as pl

from partitioning.windows import Windowing
from pipeline.runs.ledger.records import PARTIAL, RunRecord
from pipeline.storage import StagedObject
from pipeline.table.claims import (
    staged_of,
)
from pipeline.table.columns import Columns, digest_columns
from pipeline.table.log import TableLog
from pipeline.table.manifest import (
    MAX_LEFT_OUT_NAMED,
    NO_QUARANTINED,
    NO_REJECTED,
    Commit,
    CommitEntry,
    folders,
    rule_of,
)


@dataclass(frozen=True, slots=True)
class CommitWindow:
    """The window of a commit."""

    label: str
    windowing: Windowing
    inputs: str = ""
    """Digest of the window's objects."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Objects that a commit leaves out because they could not be read."""

    named: tuple[str, ...] = ()
    """URI and reason of each object, separated by a tab."""
    quarantined: pl.DataFrame = field(default_factory=lambda: NO_QUARANTINED)
    """Quarantined objects (schema QUARANTINED)."""


def draft_commit(
    record: RunRecord,
    done: pl.DataFrame,
    missing: Iterable[str] = (),
    earlier: Sequence[Commit] = (),
    keep_versions: int = 1,
    *,
    table: str = "",
    in_place: bool = False,
    window: CommitWindow | None = None,
    released: Collection[str] = (),
    columns: Columns | None = None,
    hive_types: Mapping[str, str] | None = None,
    left_out: LeftOut | None = None,
    rejected: pl.DataFrame | None = None,
) -> Commit:
    """Draft a commit, not yet stored, from completions of a run or of one of its windows.

    Args:
        record: Record of the run.
        done: One completion per chunk (schema COMPLETIONS), of chunks not committed before.
        missing: Ids of planned chunks (of the window) that the commit lacks.
        earlier: Published commits of the same run (and window), to which this one adds.
        keep_versions: Number of replaced versions to keep.
        table: Format of the table that the output is, if it is one.
        in_place: Whether the files were made of those that the commit replaces.
        window: Window of the commit; default the whole run.
        released: Names of the run's commits that a repair has released; they cannot be reused.
        columns: Columns of the files.
        hive_types: Types of partition columns that the job declares.
        left_out: Objects that could not be read.
        rejected: Chunks with rows in quarantine (schema REJECTED).
    """
    rejected = NO_REJECTED if rejected is None else rejected
    files = files_of(record.output, done)
    absent, left_out = tuple(missing), left_out or LeftOut()
    # Partitions that an earlier commit of this run replaced hold this run's files now.
    already = {folder for commit in earlier for folder in commit.replaces}
    adds = bool(earlier) and (window is not None or record.mode != "overwrite-partitions")
    mode = "append" if adds else record.mode
    name = record.run if window is None else f"{record.run}-{window.label}"
    taken = {*(commit.entry.name for commit in earlier), *released}
    names = (f"{name}.{number}" if number > 1 else name for number in count(1))
    entry = CommitEntry(
        name=next(name for name in names if name not in taken),
        run=record.run,
        mode=mode,
        files=files.height,
        rows=int(files["rows"].sum()),
        bytes=int(files["bytes"].sum()),
        missing=len(absent),
        keep_versions=keep_versions,
        window=None if window is None else window.label,
        rule="" if window is None else rule_of(window.windowing),
        code=",".join(sorted(set(done["code"].to_list()))) or record.fingerprint,
        inputs="" if window is None else window.inputs,
        columns=digest_columns(columns or {}),
        left_out=len({named.partition("\t")[0] for named in left_out.named}),
        quarantined=left_out.quarantined["uri"].n_unique(),
        rejected=int(rejected["rows"].sum()),
        table=table,
        in_place=in_place,
    )
    replaced = set(folders(files)) - already if mode == "overwrite-partitions" else set()
    return Commit(
        entry,
        record.base,
        absent,
        files,
        tuple(sorted(replaced)),
        columns=dict(columns or {}),
        hive_types=hive_types or {},
        left_out=left_out.named[:MAX_LEFT_OUT_NAMED],
        quarantined=left_out.quarantined.head(MAX_LEFT_OUT_NAMED),
        rejected=rejected,
    )


def files_of(output: str, completions: pl.DataFrame) -> pl.DataFrame:
    """Convert completions into the files of a commit record (schema FILES)."""
    return completions.select(
        key=pl.col("uri").str.strip_prefix(output),
        rows="rows_out",
        bytes="bytes_out",
        sha256="sha256",
        chunk="chunk",
        index="index",
        attempt="attempt",
        upload="upload",
        parts="parts",
    )


def abort_duplicates(table_log: TableLog, duplicates: pl.DataFrame) -> None:
    """Abort the attempts that were not chosen."""
    table_log.storage.abort(_staged_duplicates(table_log, duplicates))


def vanished_duplicates(table_log: TableLog, duplicates: pl.DataFrame) -> list[str]:
    """List the attempts among these completions whose staged outputs no longer exist."""
    missing = table_log.storage.missing(_staged_duplicates(table_log, duplicates))
    return [item.attempt for item in missing]


def _staged_duplicates(table_log: TableLog, duplicates: pl.DataFrame) -> list[StagedObject]:
    completions = duplicates.filter(pl.col("upload") != PARTIAL)
    staged = staged_of(table_log.output, files_of(table_log.output, completions))
    table_log.storage.check_staged(staged, table_log.output)
    return staged
