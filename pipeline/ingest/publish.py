"""Publish an ingest: one commit of its staged files, exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import polars as pl

from pipeline.config.ingest import Ingest
from pipeline.errors import UsageError
from pipeline.ingest.plan import plan_of_chunk
from pipeline.ingest.stage import Staging, files_of
from pipeline.ingest.store import IngestPlan, IngestRecord, IngestStore
from pipeline.table.claims import finish_open_claim
from pipeline.table.columns import Columns, digest_columns
from pipeline.table.errors import UploadsVanishedError, foreign_claim
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry, folders
from pipeline.table.publish import amend, publish, refuse_released, released_names

ATTEMPTS = 3
"""Maximum number of times that files whose staged objects vanished are staged again."""


@dataclass(frozen=True, slots=True)
class IngestPublisher:
    """Publishes an ingest all of whose pages are stored."""

    ingest: Ingest
    record: IngestRecord
    store: IngestStore
    table_log: TableLog
    accepted: int = 0
    """Number of the manifest up to which others' commits are no conflict."""

    def published(self) -> CommitEntry | None:
        """Return its commit in the output's history; None if it is not published."""
        entries = self.table_log.entries(self.record.base)
        return next((entry for entry in entries if entry.run == self.record.ingest), None)

    def frozen_plan(self) -> IngestPlan | None:
        """Return the plan that a driver before this one has frozen in a commit, if there is one.

        That commit counts, so its plan does too, whatever the output has pinned since.
        """
        released = self._released()
        commit = self.table_log.commit(self._name(released))
        if commit is None or commit.files.is_empty():
            return None
        return self.store.plan(plan_of_chunk(commit.files["chunk"][0]))

    def publish(self, staging: Staging) -> CommitEntry:
        """Stage what is not staged, and publish it; return the commit.

        Raises:
            UploadsVanishedError: Staged objects vanished in each of ATTEMPTS attempts.
            ForeignClaimError: Another run must finish its own claim first.
            CommitsConflictError: Others have published what this would replace.
            SchemaChangedError: Files that stay in the output have other columns.
        """
        void: set[str] = set()
        vanished: UploadsVanishedError | None = None
        for _ in range(ATTEMPTS):
            try:
                return self._publish(staging, void, vanished)
            except UploadsVanishedError as error:
                if not error.waits_for(self.record.ingest):
                    raise foreign_claim(self.store.output, error) from error
                void |= set(error.attempts)
                vanished = error
        assert vanished is not None, "each attempt returns or finds that objects vanished"
        raise vanished

    def _publish(
        self, staging: Staging, void: set[str], vanished: UploadsVanishedError | None
    ) -> CommitEntry:
        self._refuse_discarded()
        files = files_of(self.store.output, staging.all(void))
        self._refuse_discarded()
        if vanished is not None and vanished.commits:
            amend(self.table_log, vanished, self.record.ingest, files)
        finish_open_claim(self.table_log)
        entry = self.published()
        if entry is None:
            released = self._released()
            refuse_released(self.table_log, files, released)
            draft = self._draft(staging.plan, files, self._name(released))
            publish(
                self.table_log,
                draft,
                self.accepted,
                widens=lambda: self.ingest.schema_ == "widen",
            )
            entry = self.published()
        assert entry is not None, "it is published"
        self._abort_duplicates(staging, entry)
        return entry

    def _refuse_discarded(self) -> None:
        """Refuse to publish what was discarded meanwhile: another ingest may read it too."""
        if self.store.is_discarded() and self.published() is None:
            raise UsageError(
                f"ingest {self.record.ingest} of {self.store.output} was discarded (chunkmap "
                "vacuum --discard) while it ran",
                hint="give the command again, which reads everything as it is now",
            )

    def _abort_duplicates(self, staging: Staging, entry: CommitEntry) -> None:
        """Abort what attempts have staged that were not chosen."""
        commit = self.table_log.load(entry)
        chosen = set(commit.files["attempt"].to_list())
        duplicates = staging.duplicates(chosen)
        storage = self.store.storage
        storage.check_staged(duplicates, self.store.output)
        storage.abort(duplicates)

    def _released(self) -> list[str]:
        entries = self.table_log.entries(self.record.base)
        return released_names(entries, self.record.ingest)

    def _name(self, released: Sequence[str]) -> str:
        own = self.record.ingest
        names = (f"{own}.{number}" if number > 1 else own for number in count(1))
        return next(name for name in names if name not in released)

    def _draft(self, plan: IngestPlan, files: pl.DataFrame, name: str) -> Commit:
        partitions = self.ingest.output.partition_by
        columns: Columns = {n: kind for n, kind in plan.columns.items() if n not in partitions}
        entry = CommitEntry(
            name=name,
            run=self.record.ingest,
            mode=self.record.mode,
            files=files.height,
            rows=int(files["rows"].sum()),
            bytes=int(files["bytes"].sum()),
            keep_versions=self.ingest.output.keep_versions,
            code=plan.plan,
            columns=digest_columns(columns),
        )
        replaced = set(folders(files)) if self.record.mode == "overwrite-partitions" else set()
        hive = {n: _hive_type(kind) for n, kind in plan.columns.items() if n in partitions}
        return Commit(
            entry,
            self.record.base,
            (),
            files,
            tuple(sorted(replaced)),
            columns=columns,
            hive_types={n: kind for n, kind in hive.items() if kind},
        )


def _hive_type(kind: str) -> str:
    """Return the type of a partition column as `input.hive_types` spells it."""
    known = {"String": "string", "Date": "date", "Int8": "int8", "Int16": "int16"}
    return {**known, "Int32": "int32", "Int64": "int64"}.get(kind, "")
