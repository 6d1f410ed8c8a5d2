"""Driving a run to its end: attach or map, publish, report. The same with every engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Thread
from typing import Protocol

from pipeline import logs
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import RunCancelledError
from pipeline.processes import was_interrupted
from pipeline.report.render import import_renderers
from pipeline.runs.driver.executor import Engine, SerialEngine
from pipeline.runs.driver.following import is_driving, watch
from pipeline.runs.driver.heartbeat import (
    PUBLISH_TRIES,
    Driver,
    RunIncompleteError,
    RunSummary,
    StoredReport,
    facts_of_output,
    failure_lines,
    publish_run,
    read_driver,
    store_report,
)
from pipeline.runs.driver.map_stage import Mapper, MapProgress
from pipeline.runs.driver.plan import Planned, Resume, plan_run
from pipeline.runs.driver.quarantine import refuse_many_quarantined, unreadable_uris
from pipeline.runs.driver.reduce_stage import partials_of, reduced_of, without_partial
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.reduce import Step, reduce_step, tree
from pipeline.storage import Storage
from pipeline.storage.outages import advisory, waited_out
from pipeline.table.errors import UploadsVanishedError, foreign_claim
from pipeline.table.evidence import find_evidence
from pipeline.table.log import Catalog
from pipeline.table.manifest import run_of
from pipeline.table.retention import locate

log = logging.getLogger(__name__)

CANCEL_SECONDS = 5.0
"""How often a driver looks whether somebody has cancelled its run."""

Listener = Callable[[str, MapProgress | None], None]
"""Is told the phase (plan, map, publish, report) and, while mapping, the progress."""


class Surroundings(Protocol):
    """What an orchestrator does around a run. None of it matters to the result."""

    @property
    def page(self) -> str | None:
        """Where the orchestrator shows this run."""
        ...

    def engine(self, run_uri: str, fingerprint: str) -> Engine:
        """What maps the batches."""
        ...

    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        """Do some steps of the reduce, in any order; raises what one of them raises."""
        ...

    def publish(self, ledger: Ledger, vanished: UploadsVanishedError | None) -> int:
        """Publish a complete run; returns the manifest's number."""
        ...

    def mapping(self, run: str, progress: MapProgress) -> None:
        """Show progress."""
        ...

    def ended(self, run: str, report: StoredReport) -> None:
        """Show the report."""
        ...


@dataclass(slots=True)
class Serial:
    """No orchestrator: everything in this process, one batch after the other."""

    storage: Storage
    page: str | None = None

    def engine(self, run_uri: str, fingerprint: str) -> Engine:
        """See `Surroundings.engine`."""
        return SerialEngine(run_uri, fingerprint)

    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        """See `Surroundings.reduce`."""
        for step in steps:
            reduce_step(run_uri, fingerprint, step)

    def publish(self, ledger: Ledger, vanished: UploadsVanishedError | None) -> int:
        """See `Surroundings.publish`."""
        return publish_run(self.storage, ledger, vanished)

    def mapping(self, run: str, progress: MapProgress) -> None:
        """See `Surroundings.mapping`."""

    def ended(self, run: str, report: StoredReport) -> None:
        """See `Surroundings.ended`."""


def run_serially(
    job: Job, settings: Settings, storage: Storage, resume: Resume | None = None
) -> RunSummary:
    """Run a job without Prefect and Dask: the oracle of the real engine, and a debugger's friend.

    Raises:
        RunIncompleteError: some chunks failed.
    """
    resume = resume or Resume()
    started = time.time()
    planned = plan_run(job, settings, storage, resume)
    driving = Driving(job, settings, storage, planned, Serial(storage), resume)
    driving.driver.record.phases.append(("plan", started, time.time() - started))
    return driving.to_the_end()


@dataclass(slots=True)
class Driving:
    """One driver's work on one run."""

    job: Job
    settings: Settings
    storage: Storage
    planned: Planned
    around: Surroundings
    resume: Resume
    listen: Listener = lambda phase, progress: None
    driver: Driver = field(init=False)
    mapper: Mapper | None = None
    _looked: float = 0.0
    _round: int = 0
    _imports: Thread | None = None

    def __post_init__(self) -> None:
        self.driver = Driver.of(self.storage, self.planned.ledger.prefix, self.around.page)

    def to_the_end(self) -> RunSummary:
        """Bring the run to its end, whoever else has a hand in it.

        Raises:
            RunIncompleteError: some chunks failed; nothing was published.
            RunCancelledError: somebody cancelled the run.
        """
        with logs.at(run=self.planned.ledger.run):
            return self._ended()

    def _ended(self) -> RunSummary:
        ledger = self.planned.ledger
        own = self.driver.record.driver
        if is_driving(read_driver(self.storage, ledger.prefix), own) and not self.resume.take_over:
            self.listen("attached", None)
            watch(self.storage, ledger, own, lambda progress: self.listen("attached", progress))
        manifest = ledger.published()
        if manifest is None:
            return self._driven()
        notes, progress = self._look_at_output(manifest), ledger.read()
        summary = self._summary("done", progress, manifest)
        return replace(summary, notes=(*summary.notes, *notes))

    def _look_at_output(self, manifest: int) -> tuple[str, ...]:
        """Look once whether what the run has published before is still there; what to say of it.

        Raises:
            FilesMissingError: files were deleted that the current manifest names.
        """
        ledger = self.planned.ledger
        catalog = Catalog(self.storage, ledger.output)
        current = catalog.manifest()
        if any(entry.run == ledger.run for entry in current.commits):
            locate(catalog, current)
            return ()
        return (
            f"the run was published as manifest {manifest}, which has been replaced or rolled back "
            f"since: chunkmap rollback {ledger.output} --to {manifest} brings it back",
        )

    def _driven(self) -> RunSummary:
        ledger = self.planned.ledger
        waited_out(ledger.clear_cancel)
        with advisory():
            self.driver.write()
        state = "failed"
        try:
            progress, manifest = self._map_and_publish()
            state = "done" if manifest is not None else "failed"
        except RunCancelledError:
            state = "cancelled"
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or was_interrupted():
                state = "interrupted"
                ledger.cancel()  # Workers stop after the chunk at hand; whoever resumes clears it.
            raise
        finally:
            with advisory():
                self.driver.write(state)
            log.info("%s: %s", self.job.name, state)
        self.listen("report", None)
        return self._reported(state, progress, manifest)

    def _map_and_publish(self) -> tuple[Progress, int | None]:
        ledger, plan = self.planned.ledger, self.planned.plan
        vanished: UploadsVanishedError | None = None
        for _ in range(PUBLISH_TRIES):
            with self.driver.phase("map"):
                progress = self._mapped()
            if progress.completions.height < len(plan):
                return progress, None
            unreadable = unreadable_uris(plan, progress)
            refuse_many_quarantined(self.job, plan, unreadable)
            try:
                self._reduced(progress)
                self.listen("publish", None)
                with self.driver.phase("publish"):
                    return progress, waited_out(partial(self.around.publish, ledger, vanished))
            except UploadsVanishedError as error:
                self._refuse_foreign(error)
                ledger.void(error.attempts)
                if vanished is not None and vanished.commits and not error.commits:
                    vanished.attempts += error.attempts  # What is claimed still waits for its own.
                else:
                    vanished = error
        assert vanished is not None, "each try ends with a return or with uploads that vanished"
        raise vanished

    def _reduced(self, progress: Progress) -> None:
        """Combine the chunks' partial results, unless that is done or not asked for.

        Raises:
            UploadsVanishedError: some partials are not stored; map their chunks again.
        """
        ledger = self.planned.ledger
        partials = partials_of(ledger, progress) if self.job.reduce else []
        if not partials or reduced_of(ledger, progress).height:
            return
        self.listen("reduce", None)
        with self.driver.phase("reduce"):
            lost = without_partial(self.storage, ledger, progress)
            if lost:
                raise UploadsVanishedError(lost)
            for level in tree(partials):
                self.around.reduce(ledger.prefix, self.planned.fingerprint, level)

    def _refuse_foreign(self, error: UploadsVanishedError) -> None:
        """A claim of another run whose uploads are gone can be finished by its own job only."""
        ledger = self.planned.ledger
        if not error.waits_for(ledger.run):
            raise foreign_claim(ledger.output, error) from error

    def _mapped(self) -> Progress:
        ledger = self.planned.ledger
        self.mapper = Mapper(
            ledger=ledger,
            plan=self.planned.plan,
            job=self.job,
            limits=self.settings.batches,
            engine=self.around.engine(ledger.prefix, self.planned.fingerprint),
            listen=self._tell,
            only_failed=self.resume.only_failed,
            output=facts_of_output(self.job, ledger.record(), Catalog(self.storage, ledger.output)),
        )
        return self.mapper.run()

    def _tell(self, progress: MapProgress) -> None:
        self.driver.saw(progress)
        if self._imports is None:
            # While the workers have their first batches, and nobody waits for this process.
            self._imports = Thread(target=import_renderers, name="imports", daemon=True)
            self._imports.start()
        if progress.round != self._round:
            self._round = progress.round
            log.info(
                "%s: round %d, %d of %d chunks done, %d failed",
                *(self.job.name, progress.round, progress.done, progress.chunks, progress.failed),
            )
        self.listen("map", progress)
        self.around.mapping(self.planned.ledger.run, progress)
        if time.monotonic() - self._looked >= CANCEL_SECONDS:
            self._looked = time.monotonic()
            if self._is_cancelled():
                raise RunCancelledError(
                    f"run {self.planned.ledger.run} was cancelled; what is done is kept",
                    hint=f"go on with: chunkmap retry {self.planned.ledger.run}",
                )

    def _is_cancelled(self) -> bool:
        wish = False
        with advisory():
            wish = self.planned.ledger.is_cancelled()
        return wish

    def _reported(self, state: str, progress: Progress, manifest: int | None) -> RunSummary:
        ledger = self.planned.ledger
        report = store_report(
            self.storage, ledger, self.driver.record, state, self.settings.state_dir
        )
        self.around.ended(ledger.run, report)
        summary = self._summary(state, progress, manifest, report)
        if manifest is None:
            raise RunIncompleteError(summary)
        return summary

    def _summary(
        self,
        state: str,
        progress: Progress,
        manifest: int | None,
        report: StoredReport | None = None,
    ) -> RunSummary:
        done, failed = progress.completions, progress.failed()
        mapper, ledger = self.mapper, self.planned.ledger
        quarantine: tuple[str, ...] = ()
        if manifest is not None and self.job.input.on_bad_object == "quarantine":
            catalog = Catalog(self.storage, ledger.output)
            records = find_evidence(catalog, catalog.manifest(manifest))
            quarantine = tuple(uri for name, uri in records.items() if run_of(name) == ledger.run)
        return RunSummary(
            run=ledger.run,
            job=self.job.name,
            state=state,
            output=ledger.output,
            manifest=manifest,
            chunks=len(self.planned.plan),
            mapped=done.height - mapper.resumed if mapper else 0,
            failed=failed.height,
            batches=mapper.batches if mapper else 0,
            rounds=mapper.rounds if mapper else 0,
            rows_in=int(done["rows_in"].sum()),
            rows_out=int(done["rows_out"].sum()),
            bytes_in=int(done["bytes_in"].sum()),
            bytes_out=int(done["bytes_out"].sum()),
            seconds=time.time() - self.driver.record.started,
            report=report.uri if report else ledger.prefix + "report.html",
            local_report=report.path if report else "",
            notes=(
                *self.planned.notes,
                *([mapper.stopped] if mapper and mapper.stopped else []),
                *progress.problems,
                *progress.left_out(),
                *(f"the objects in quarantine are listed in {uri}" for uri in quarantine),
            ),
            errors=failure_lines(failed),
            left_out=len(unreadable_uris(self.planned.plan, progress)),
            quarantine=quarantine,
        )
