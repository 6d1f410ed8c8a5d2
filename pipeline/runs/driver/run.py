"""Drive a run to its end: attach or map, reduce, map groups, merge, check, publish, report.

The same with every executor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Thread

import polars as pl
from cachetools import LRUCache

from pipeline import logs
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import ChecksFailedError, RunCancelledError
from pipeline.processes import was_interrupted
from pipeline.quality.results import CheckResult
from pipeline.report.humanize import plural
from pipeline.report.render import import_renderers
from pipeline.runs.driver.batching import Throughput
from pipeline.runs.driver.check_stage import refuse
from pipeline.runs.driver.heartbeat import Heartbeat
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.merge_stage import MergeStage
from pipeline.runs.driver.orchestrator import NoOrchestrator, Orchestrator
from pipeline.runs.driver.plan import PreparedRun, ResumeOptions, plan_run
from pipeline.runs.driver.publish import check_run, publish_run, until_published
from pipeline.runs.driver.quarantine import refuse_many_quarantined, unreadable_uris
from pipeline.runs.driver.reduce_stage import partials_of, pin_partials, reduced_of, without_partial
from pipeline.runs.driver.report import StoredReport, rows_filtered, store_report
from pipeline.runs.driver.result_types import OutputFacts
from pipeline.runs.driver.schemas import output_facts
from pipeline.runs.driver.session import drive_session, follow, followed_progress
from pipeline.runs.driver.several_outputs import follow_first, output_figures, publish_several
from pipeline.runs.driver.summary import (
    MapProgress,
    OutputFigures,
    RunIncompleteError,
    RunSummary,
    failure_lines,
)
from pipeline.runs.driver.then_stage import Pieces, ThenStage, pieces_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.reduce import tree
from pipeline.storage import Storage
from pipeline.storage.outages import best_effort, retry_until_available
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.evidence import find_evidence, find_rejected
from pipeline.table.log import TableLog
from pipeline.table.manifest import run_of
from pipeline.table.retention import locate

log = logging.getLogger(__name__)

CANCEL_SECONDS = 5.0
"""Seconds between two checks whether the run was cancelled."""

Listener = Callable[[str, MapProgress | None], None]
"""Callback with the phase (plan, map, publish, report) and, while mapping, the progress."""


def run_serially(
    job: Job, settings: Settings, storage: Storage, resume: ResumeOptions | None = None
) -> RunSummary:
    """Run a job without Prefect and Dask, e.g. to debug it or to check the real executor.

    Raises:
        RunIncompleteError: some chunks failed.
    """
    resume = resume or ResumeOptions()
    started = time.time()
    planned = plan_run(job, settings, storage, resume)
    driver = RunDriver(job, settings, storage, planned, NoOrchestrator(), resume)
    driver.heartbeat.begin(None, started)
    return driver.run()


_speeds: LRUCache[str, float] = LRUCache(maxsize=64)
"""Speeds of this process's runs, by the fingerprint of their code."""


@dataclass(slots=True)
class RunDriver:
    """Drives one run: attach or map, reduce, publish, report."""

    job: Job
    settings: Settings
    storage: Storage
    planned: PreparedRun
    orchestrator: Orchestrator
    resume: ResumeOptions
    listen: Listener = lambda phase, progress: None
    heartbeat: Heartbeat = field(init=False)
    map_stage: MapStage | None = None
    _cancel_checked: float = field(default_factory=time.monotonic)
    _round: int = 0
    _pieces: Pieces | None = None
    """Pieces of the reduced result, if this driver has mapped them."""
    _merged: pl.DataFrame | None = None
    """Completions of merged files, if this driver has merged."""
    _imports: Thread | None = None
    _checked: tuple[CheckResult, ...] = ()
    """What the checks of the result have found."""

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat.of(
            self.storage, self.planned.ledger.prefix, self.orchestrator.page
        )

    def run(self) -> RunSummary:
        """Drive the run to its end, or follow another driver that already does.

        Raises:
            RunIncompleteError: some chunks failed; nothing was published.
            RunCancelledError: the run was cancelled.
        """
        ledger, endpoint = self.planned.ledger, self.settings.traces.endpoint
        facts = {"chunkmap.run": ledger.run, "chunkmap.output": ledger.output}
        with (
            logs.log_ids(run=ledger.run),
            self.heartbeat.traced(endpoint, f"run {self.job.name}", facts),
        ):
            return self._attach_or_drive()

    def _attach_or_drive(self) -> RunSummary:
        ledger, started = self.planned.ledger, time.time()
        if not self.resume.take_over:
            for record in follow(self.heartbeat):
                self.listen("attached", followed_progress(record, started))
        manifest = ledger.published()
        if manifest is None:
            return self._drive()
        notes = () if self.planned.is_contained else self._check_output(manifest)
        progress = ledger.read()
        summary = self._summarize("done", progress, manifest)
        return replace(summary, notes=(*summary.notes, *notes))

    def _check_output(self, manifest: int) -> tuple[str, ...]:
        """Check that the files of a published run still exist; return notes for the summary.

        Raises:
            FilesMissingError: files of the current manifest were deleted.
        """
        ledgers = self.planned.ledger.of_outputs()
        numbers = [manifest, *(ledger.published() or 0 for ledger in ledgers[1:])]
        return tuple(
            f"the run was published as manifest {number}, which has been replaced or rolled back "
            f"since; to restore it: chunkmap rollback {ledger.output} --to {number}"
            for ledger, number in zip(ledgers, numbers, strict=True)
            if not self._is_current(ledger)
        )

    def _is_current(self, ledger: Ledger) -> bool:
        """Whether the current manifest of an output has the run; then check its files."""
        table_log = TableLog(self.storage, ledger.output)
        current = table_log.manifest()
        is_current = any(entry.run == ledger.run for entry in current.commits)
        if is_current:
            locate(table_log, current)
        return is_current

    def _drive(self) -> RunSummary:
        ledger = self.planned.ledger
        if not self.planned.is_new:
            retry_until_available(ledger.clear_cancel)
        self.heartbeat.runs(self.planned.fingerprint, self.job.transform)
        self._log_plan()
        with drive_session(self.job.name, self.heartbeat.write) as session:
            try:
                progress, manifest = until_published(ledger, self._map_and_publish)
            except ChecksFailedError as error:
                self._report_refused(error)
                raise
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) or was_interrupted():
                    ledger.cancel()  # Workers stop after their current chunk; resuming clears it.
                raise
            session.state = "done" if manifest is not None else "failed"
            failures = self._failure_lines(progress)
            self.heartbeat.fail(failures)
            for line in failures:
                log.info("%s: %s", self.job.name, line)  # Commands show them as well.
            if manifest is not None:
                log.info("%s: published version %d of %s", self.job.name, manifest, ledger.output)
        self.listen("report", None)
        return self._report(session.state, progress, manifest)

    def _log_plan(self) -> None:
        plan = self.planned.plan
        log.info(
            "%s: %s %s of %s, %d rows",
            *(self.job.name, "planned" if self.planned.is_new else "resumed"),
            *(plural(len(plan), "chunk"), plural(plan.objects, "object"), plan.rows),
        )

    def _map_and_publish(
        self, vanished: UploadsVanishedError | None
    ) -> tuple[Progress, int | None]:
        ledger, plan = self.planned.ledger, self.planned.plan
        with self.heartbeat.phase("map"):
            progress = self._map()
        if progress.completions.height < len(plan):
            return progress, None
        refuse_many_quarantined(self.job, plan, unreadable_uris(plan, progress))
        self._reduce(progress)
        if not self._map_groups():
            return progress, None
        self._merge()
        self._check()
        self.listen("publish", None)
        publish_all = publish_several if self.job.outputs else publish_run
        publish = partial(publish_all, self.storage, ledger, vanished)
        with self.heartbeat.phase("publish"):
            return progress, retry_until_available(
                lambda: self.orchestrator.step("publish", ledger.run, publish)
            )

    def _check(self) -> None:
        """Check the whole result, if the job has checks of it.

        Publishing would do so too; this shows it as a step of its own.

        Raises:
            ChecksFailedError: checks refuse the result.
            UploadsVanishedError: what the checks need of some chunks is not stored; they must be
                mapped again.
        """
        ledger = self.planned.ledger
        if ledger.checks().is_empty or ledger.published() is not None:
            return
        self.listen("check", None)
        check = partial(check_run, self.storage, ledger)
        with self.heartbeat.phase("check"):
            results = retry_until_available(
                lambda: self.orchestrator.step("quality_checks", ledger.run, check)
            )
        self._checked = tuple(results)
        self.orchestrator.show_checks(ledger.run, results)
        refuse(ledger.run, {None: results})

    def _reduce(self, progress: Progress) -> None:
        """Combine the chunks' partial results, if the job has a reduce that is not done.

        Raises:
            UploadsVanishedError: some partials are not stored; their chunks must be mapped again.
        """
        ledger = self.planned.ledger
        if self.job.reduce is None or progress.completions.is_empty():
            return
        progress = pin_partials(ledger, progress)
        if reduced_of(ledger, progress).height:
            return
        self.listen("reduce", None)
        with self.heartbeat.phase("reduce"):
            lost = without_partial(self.storage, ledger, progress)
            if lost:
                raise UploadsVanishedError(lost)
            for level in tree(partials_of(ledger, progress)):
                self.orchestrator.reduce(ledger.prefix, self.planned.fingerprint, level)

    def _map_groups(self) -> bool:
        """Map the groups of the reduced result, if the job does so; return whether all are mapped.

        Raises:
            UploadsVanishedError: pieces of the reduced result are not stored.
        """
        ledger = self.planned.ledger
        if self.job.then is None or not len(self.planned.plan):
            return True
        self.listen("then", None)
        with self.heartbeat.phase("then"):
            stage = ThenStage(
                storage=self.storage,
                ledger=ledger,
                job=self.job,
                settings=self.settings,
                executor=lambda uri: self.orchestrator.executor(uri, self.planned.fingerprint),
                listen=self._on_groups,
                only_failed=self.resume.only_failed,
            )
            self._pieces = stage.run()
        return not self._pieces.left

    def _on_groups(self, progress: MapProgress) -> None:
        self.heartbeat.beat()
        self.listen("then", progress)
        self.orchestrator.show_progress(self.planned.ledger.run, progress)
        self._refuse_cancelled()

    def _failure_lines(self, progress: Progress) -> tuple[str, ...]:
        """Describe the chunks that failed, or the pieces of the reduced result."""
        failed = progress.failed()
        if failed.is_empty() and self._pieces is not None:
            return failure_lines(self._pieces.progress.failed(), "piece")
        return failure_lines(failed)

    def _merge(self) -> None:
        """Merge the chunks' results into files, if the job says so. Raises as `MergeStage.run`."""
        if not self.job.output.merges:
            return
        self.listen("merge", None)
        ledger = self.planned.ledger
        with self.heartbeat.phase("merge"):
            self._merged = MergeStage(
                storage=self.storage,
                ledger=ledger,
                plan=self.planned.plan,
                job=self.job,
                limits=self.settings.batches,
                executor=self.orchestrator.executor(ledger.prefix, self.planned.fingerprint),
                tick=self._tick,
            ).run()

    def _tick(self) -> None:
        self.heartbeat.beat()
        self._refuse_cancelled()

    def _map(self) -> Progress:
        ledger = self.planned.ledger
        self.map_stage = MapStage(
            ledger=ledger,
            plan=self.planned.plan,
            job=self.job,
            limits=self.settings.batches,
            executor=self.orchestrator.executor(ledger.prefix, self.planned.fingerprint),
            listen=self._on_progress,
            only_failed=self.resume.only_failed,
            output=output_facts(self.job, ledger.record(), TableLog(self.storage, ledger.output)),
            further=self._further_facts(),
            pace=Throughput(remembered=self._remembered_speed()),
        )
        progress = self.map_stage.run()
        if self.map_stage.pace.is_measured:
            self.heartbeat.record.speed = self.map_stage.pace.speed
            _speeds[self.planned.fingerprint] = self.map_stage.pace.speed
        return progress

    def _further_facts(self) -> dict[str, tuple[Callable[[Progress], Progress], OutputFacts]]:
        """Return how far the outputs after the first are, and the facts about them."""
        ledgers = self.planned.ledger.of_outputs() if self.job.outputs else []
        return {
            name: (
                partial(follow_first, ledger),
                output_facts(ledger.job(), ledger.record(), TableLog(self.storage, ledger.output)),
            )
            for name, ledger in list(zip(self.job.outputs, ledgers, strict=False))[1:]
        }

    def _remembered_speed(self) -> float:
        """Return the speed of the last run of the same code, here or to this output; 0 if none."""
        return _speeds.get(self.planned.fingerprint, 0.0) or self.planned.speed

    def _on_progress(self, progress: MapProgress) -> None:
        self.heartbeat.update(progress)
        if self._imports is None:
            # Now, while the workers map their first batches and this process is idle.
            self._imports = Thread(target=import_renderers, name="imports", daemon=True)
            self._imports.start()
        if progress.round != self._round:
            self._round = progress.round
            log.info(
                "%s: round %d, %d of %d chunks done, %d failed",
                *(self.job.name, progress.round, progress.done, progress.chunks, progress.failed),
            )
        self.listen("map", progress)
        self.orchestrator.show_progress(self.planned.ledger.run, progress)
        self._refuse_cancelled()

    def _refuse_cancelled(self) -> None:
        """Raise RunCancelledError every few seconds, if the run was cancelled."""
        if time.monotonic() - self._cancel_checked >= CANCEL_SECONDS:
            self._cancel_checked = time.monotonic()
            if self._is_cancelled():
                raise RunCancelledError(
                    f"run {self.planned.ledger.run} was cancelled; finished work is kept",
                    hint=f"resume it with: chunkmap retry {self.planned.ledger.run}",
                )

    def _is_cancelled(self) -> bool:
        cancelled = False
        with best_effort():
            cancelled = self.planned.ledger.is_cancelled()
        return cancelled

    def _report(self, state: str, progress: Progress, manifest: int | None) -> RunSummary:
        ledger = self.planned.ledger
        record, folder = self.heartbeat.record, self.settings.state_dir
        report = store_report(self.storage, ledger, record, state, folder, settings=self.settings)
        with best_effort():
            self.heartbeat.write(state)  # With what the report took, for the next attempt's.
        self.orchestrator.show_report(ledger.run, report)
        summary = self._summarize(state, progress, manifest, report)
        if manifest is None:
            raise RunIncompleteError(summary)
        return summary

    def _report_refused(self, error: ChecksFailedError) -> None:
        """Store and show the report of a run whose result is refused."""
        self.heartbeat.fail((str(error),))
        self.listen("report", None)
        with best_effort():
            ledger, record = self.planned.ledger, self.heartbeat.record
            folder = self.settings.state_dir
            report = store_report(
                self.storage, ledger, record, "failed", folder, settings=self.settings
            )
            self.orchestrator.show_report(ledger.run, report)

    def _summarize(
        self,
        state: str,
        progress: Progress,
        manifest: int | None,
        report: StoredReport | None = None,
    ) -> RunSummary:
        done, failed = progress.completions, progress.failed()
        files = done
        if self.job.then is not None and self._pieces is None:
            self._pieces = pieces_of(self.planned.ledger, progress)
        then = None if self._pieces is None else self._pieces.figures
        if self._pieces is not None:
            files = self._pieces.progress.completions
        if self.job.output.merges:
            merged = progress.merged if self._merged is None else self._merged
            files = merged.unique("chunk")
        map_stage, ledger = self.map_stage, self.planned.ledger
        outputs: tuple[OutputFigures, ...] = ()
        if self.job.outputs:
            outputs = output_figures(self.job, ledger, done, manifest)
        quarantine: tuple[str, ...] = ()
        if manifest is not None and self.job.input.on_bad_object == "quarantine":
            table_log = TableLog(self.storage, ledger.output)
            records = find_evidence(table_log, table_log.manifest(manifest))
            quarantine = tuple(uri for name, uri in records.items() if run_of(name) == ledger.run)
        rejected: tuple[str, ...] = ()
        if manifest is not None and self.job.checks.rows is not None:
            table_log = TableLog(self.storage, ledger.output)
            found = find_rejected(table_log, table_log.manifest(manifest))
            rejected = tuple(uri for name, uri in found.items() if run_of(name) == ledger.run)
        phases: dict[str, float] = {}
        for name, _, seconds in self.heartbeat.record.phases if map_stage else []:
            phases[name] = phases.get(name, 0.0) + seconds
        return RunSummary(
            run=ledger.run,
            job=self.job.name,
            state=state,
            output=ledger.output,
            manifest=manifest,
            chunks=len(self.planned.plan),
            mapped=done.height - map_stage.resumed if map_stage else 0,
            failed=failed.height,
            batches=map_stage.batches if map_stage else 0,
            rounds=map_stage.rounds if map_stage else 0,
            rows_in=int(done["rows_in"].sum()),
            rows_out=sum(o.rows for o in outputs)
            or int((done if then is None else files)["rows_out"].sum()),
            bytes_in=int(done["bytes_in"].sum()),
            bytes_out=sum(o.bytes for o in outputs) or int(files["bytes_out"].sum()),
            seconds=sum(phases.values()) or time.time() - self.heartbeat.record.started,
            phases=tuple(phases.items()),
            rows_filtered=rows_filtered(self.planned.plan, progress),
            report=report.uri if report else ledger.prefix + "report.html",
            local_report=report.path if report else "",
            notes=(
                *self.planned.notes,
                *([map_stage.stopped] if map_stage and map_stage.stopped else []),
                *([self._pieces.stopped] if self._pieces and self._pieces.stopped else []),
                *progress.problems,
                *progress.left_out(),
                *(f"check {r.line}" for r in self._checked if r.outcome != "passed"),
                *(f"the rows in quarantine are in {uri}" for uri in rejected),
                *(f"the objects in quarantine are listed in {uri}" for uri in quarantine),
            ),
            errors=self._failure_lines(progress),
            then=then,
            left_out=len(unreadable_uris(self.planned.plan, progress)),
            quarantine=quarantine,
            rejected=rejected,
            outputs=outputs,
        )
