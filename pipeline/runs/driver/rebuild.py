"""Explain why an output in mode `error` has files already, and replace them (`--rebuild`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import (
    JobError,
    ObjectMissingError,
    OutputNotEmptyError,
    StateError,
    UsageError,
)
from pipeline.runs.driver.job_changes import differing_keys, input_changes
from pipeline.runs.driver.origin import explain_code
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Decides whether results of a job may be replaced, and explains what differs from them."""

    storage: Storage
    settings: Settings
    job: Job
    code: str
    """Fingerprint of the job's present code."""
    records: Sequence[RunRecord]
    """Runs of the output."""

    def mode(self, *, wanted: bool) -> str:
        """Return the mode of a new run: that of the job, or `overwrite` for a rebuild.

        Raises:
            UsageError: The job appends, has several outputs, or the output has files of other jobs.
        """
        mode = self.job.output.mode
        if not wanted or mode in ("overwrite", "overwrite-partitions"):
            return mode
        if self.job.outputs:
            raise UsageError(
                "--rebuild replaces one output, and this job has several",
                hint="set the mode of each to overwrite, or name other outputs",
            )
        if mode == "append":
            raise UsageError(
                "--rebuild replaces the whole output, and this job appends to it",
                hint="set output.mode to overwrite for one run, or name another output",
            )
        others = [e for e in self._published() if e.adopts or not self._is_own(e.run)]
        if others:
            source = (
                "adopted files"
                if others[0].adopts
                else f"files of run {others[0].run}, which is of another job"
            )
            raise UsageError(
                f"--rebuild replaces what job {self.job.name} has published, but "
                f"{self.job.output.uri} also has {source}",
                hint="choose another output, or set output.mode to overwrite",
            )
        return "overwrite"

    def _published(self) -> list[CommitEntry]:
        manifest = TableLog(self.storage, self.job.output.uri).manifest()
        return [entry for entry in manifest.commits if entry.adds_files]

    def _is_own(self, run: str) -> bool:
        return any(record.run == run and record.job == self.job.name for record in self.records)

    def explain(self, error: OutputNotEmptyError) -> OutputNotEmptyError:
        """Say what has changed since the run whose files an output in mode `error` has."""
        record = next((record for record in self.records if record.run == error.run), None)
        if record is None or record.job != self.job.name:
            return error
        return OutputNotEmptyError(
            f"{error.message}: {self._difference(record)}",
            hint="choose another output, or set its mode to append or overwrite"
            if self.job.outputs
            else "replace its result: --rebuild; or choose another output, or set output.mode to "
            "append or overwrite",
        )

    def _difference(self, record: RunRecord) -> str:
        ledger = Ledger(self.storage, record.output, record.run)
        try:
            stored, plan = ledger.job(), ledger.plan()
        except (StateError, JobError, ObjectMissingError):
            return "what has changed since is unknown, because its state is damaged"
        keys = differing_keys(stored, self.job)
        if keys:
            return f"the job has changed since (in {', '.join(keys)})"
        if record.fingerprint != self.code:
            return explain_code(record, self.code, self.job, self.settings)
        return input_changes(self.storage, stored, plan) or "its input or its tables have changed"
