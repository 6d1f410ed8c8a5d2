"""A run: its state, its failures, its report."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chunkmap.driving import drive
from chunkmap.pages import frame_html, pairs_html, table_html
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.report.humanize import byte_size, duration

if TYPE_CHECKING:
    import polars as pl

    from pipeline.runs.admin.status import RunStatus
    from pipeline.runs.driver.summary import RunSummary
    from pipeline.runs.ledger.ledger import Ledger
    from pipeline.storage import Storage

MAX_SHOWN = 10
"""Maximum number of failures that a notebook shows of a run; `failed` has all."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a job; everything is read from storage."""

    output: str
    """URI of the output."""
    id: str
    """Id of the run."""
    _settings: Settings = field(repr=False)
    summary: RunSummary | None = field(default=None, repr=False)
    """Figures of the driver that returned this run."""

    def _storage(self) -> Storage:
        from pipeline.storage import open_storage

        return open_storage(self._settings)

    def _ledger(self) -> Ledger:
        from pipeline.runs.ledger.ledger import Ledger

        return Ledger(self._storage(), self.output, self.id)

    @property
    def status(self) -> RunStatus:
        """The state and the figures of the run, as they are stored now."""
        from pipeline.runs.admin.status import status_of

        return status_of(self._storage(), self._ledger().record())

    @property
    def state(self) -> str:
        """The state, such as done, failed or running."""
        return self.status.state

    @property
    def failed(self) -> pl.DataFrame:
        """Chunks that failed last.

        Columns: chunk (number), error, message, where (objects and rows of the chunk), traceback
        (your own frames first), objects (URIs).
        """
        import polars as pl

        ledger = self._ledger()
        failed = ledger.read().failed()
        plan = ledger.plan()
        objects = [
            list(dict.fromkeys(fragment.uri for fragment in chunk.fragments))
            for chunk in plan.chunks(failed["index"].to_list())
        ]
        return failed.select(
            pl.col("index").alias("chunk"), "error", "message", "where", traceback="trace"
        ).with_columns(pl.Series("objects", objects, dtype=pl.List(pl.String)))

    def retry(
        self,
        *,
        failed: bool = False,
        accept_code: bool = False,
        take_over: bool = False,
        check: bool = True,
        progress: bool = True,
    ) -> Run:
        """Map what is left of the run, and publish it.

        Args:
            failed: Retry failed chunks only.
            accept_code: Resume even if the code has changed.
            take_over: Take over even if another driver seems alive.
            check: As of `Job.run`.
            progress: As of `Job.run`.

        Raises:
            As `Job.run`.
        """
        from chunkmap.jobs import run_job
        from pipeline.runs.driver.plan import ResumeOptions

        resume = ResumeOptions(
            accept_code=accept_code, take_over=take_over, run=self.id, only_failed=failed
        )
        definition = self._ledger().job()
        return drive(
            lambda stop: run_job(
                definition, self._settings, resume, stop, check=check, progress=progress
            )
        )

    def report(self) -> Report:
        """Return the report of the run, which a notebook shows inline.

        Raises:
            UsageError: There is none yet.
        """
        from pipeline.runs.driver.report import fetch_report

        uri = self._ledger().prefix + "report.html"
        path = fetch_report(self._storage(), uri, self._settings.state_dir, self.id)
        if path is None:
            raise UsageError(
                f"run {self.id} has no report yet: it is written when the run ends",
                hint=f"make one now: chunkmap report {self.id}",
            )
        return Report(Path(path), uri)

    def cancel(self) -> None:
        """Ask the driver of the run to stop; finished work is kept, and `retry` resumes the run."""
        self._ledger().cancel()

    def _repr_html_(self) -> str:
        status = self.status
        seconds = self.summary.seconds if self.summary is not None else None
        rows: dict[str, Any] = {
            "state": status.state,
            "chunks": f"{status.done:,} of {status.chunks:,} done, {status.failed:,} failed",
            "rows": f"{status.rows_in:,} in, {status.rows_out:,} out",
            "bytes": f"{byte_size(status.bytes_in)} read, {byte_size(status.bytes_out)} written",
            "time": duration(seconds) if seconds is not None else "",
            "output": self.output,
        }
        failures = ""
        if status.failed:
            shown = self.failed.head(MAX_SHOWN)
            names = ("chunk", "error", "message", "where")
            failures = table_html(names, shown.select(names).rows())
        return pairs_html(f"{status.job} · run {self.id}", rows, failures)


@dataclass(frozen=True, slots=True)
class Report:
    """The report of a run or a backfill: one page that needs no network."""

    path: Path
    """Copy on this machine."""
    uri: str
    """Where it is stored."""

    def open(self) -> None:
        """Open the page in the browser."""
        webbrowser.open(self.path.absolute().as_uri())

    def _repr_html_(self) -> str:
        return frame_html(self.path.read_text("utf-8"))
