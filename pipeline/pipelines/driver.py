"""Drive a pipeline: decide for each stage whether it runs, run it, and note what it has done."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from partitioning import PlanningError
from pipeline.config.expressions import ExpressionError, Value
from pipeline.config.ingest import Ingest
from pipeline.config.job import Job
from pipeline.config.load_file import LoadFile
from pipeline.config.pipeline_file import OWN_FACTS, STAGE_FACTS, Call, Pipeline, ResolvedStage
from pipeline.config.settings import Settings
from pipeline.config.templates import text_of
from pipeline.errors import ChunkmapError, ConflictError, PipelineFileError, TransformError
from pipeline.ingest.run import published_ingest
from pipeline.load.connect import open_load
from pipeline.masking import mask_text
from pipeline.pipelines.listener import PipelineListener
from pipeline.pipelines.runner import StageRunner
from pipeline.pipelines.state import FINISHED, PipelineRecord, PipelineStore, StageNote
from pipeline.pipelines.summary import PipelineSummary, StageResult, stage_error
from pipeline.runs.admin.known_outputs import remember_output
from pipeline.runs.driver.early_plan import EarlyPlan, plan_early
from pipeline.runs.driver.orchestrator import NoOrchestrator
from pipeline.runs.driver.plan import PreparedRun, ResumeOptions
from pipeline.runs.driver.preflight import explain_unreachable_s3, preflight
from pipeline.runs.driver.run import RunDriver
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.transforms.loading import fingerprint_of, job_fingerprint, load_transform
from pipeline.storage import Storage
from pipeline.storage.outages import best_effort
from pipeline.table.log import TableLog


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """Which stages are run."""

    start_from: str | None = None
    """First stage to run; those before it are left as they were noted."""
    only: str | None = None
    """The only stage to run."""
    resume: ResumeOptions = field(default_factory=ResumeOptions)
    """How unfinished runs of jobs are resumed."""

    @property
    def is_whole(self) -> bool:
        """Whether all stages are run."""
        return self.start_from is None and self.only is None


def definition_digest(stage: ResolvedStage, settings: Settings) -> str:
    """Return a digest of a stage's definition and of its code; the code is not imported.

    Raises:
        TransformNotAllowedError, JobError: The code is not there, or not allowed.
    """
    definition, code = stage.definition, ""
    if isinstance(definition, Job):
        code = job_fingerprint(definition, settings.transforms)
    elif isinstance(definition, Call):
        code = fingerprint_of(definition.function, definition.params, settings.transforms)
    return _digest([stage.kind, definition.to_yaml(), code])


def _digest(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_stages(
    pipeline: Pipeline,
    settings: Settings,
    storage: Storage,
    runner: StageRunner,
    *,
    options: PipelineOptions | None = None,
    listen: PipelineListener | None = None,
) -> PipelineSummary:
    """Run the stages of a pipeline, or resume one that was stopped.

    Args:
        pipeline: The pipeline with the values of its parameters.
        settings: Where and how to run it.
        storage: Where its notes and the stages' outputs are.
        runner: Runs the stages.
        options: Which stages are run.
        listen: Hears how far it is.

    Raises:
        StageFailedError: A stage failed; those after it did not begin. What is done is kept.
        PipelineFileError: A stage that is to be run needs one that is left out and has not been
            done, or there is no such stage.
        TransformNotAllowedError, JobError: The code of a stage is not there, or not allowed.
    """
    return _Driver(
        pipeline=pipeline,
        settings=settings,
        storage=storage,
        runner=runner,
        options=options or PipelineOptions(),
        listen=listen or PipelineListener(),
    ).run()


def is_finished(pipeline: Pipeline, settings: Settings, storage: Storage) -> bool:
    """Whether a run has finished with the same definitions and code; inputs are not looked at."""
    record = PipelineStore.of(storage, pipeline.state).read(pipeline.run)
    if record is None or not record.is_finished:
        return False
    if record.names != tuple(stage.name for stage in pipeline.stages):
        return False
    return all(
        record.stages[stage.name].digest == definition_digest(stage, settings)
        for stage in pipeline.stages
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What a stage would do."""

    result: StageResult | None
    """The result, if there is nothing to do."""
    early: EarlyPlan | None = None
    """The plan of a run."""
    replaced: str = ""
    """Id of the published ingest after which everything is asked for again."""


class _Driver:
    """Runs a pipeline once."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        settings: Settings,
        storage: Storage,
        runner: StageRunner,
        options: PipelineOptions,
        listen: PipelineListener,
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._storage = storage
        self._runner = runner
        self._options = options
        self._listen = listen
        self._store = PipelineStore.of(storage, pipeline.state)
        self._results: dict[str, StageResult] = {}
        self._started = time.monotonic()

    def run(self) -> PipelineSummary:
        stages = self._pipeline.stages
        chosen = chosen_stages(self._pipeline, self._options)
        # First of all, so that nothing runs if a later stage cannot.
        digests = {stage.name: definition_digest(stage, self._settings) for stage in stages}
        with explain_unreachable_s3(self._settings):
            self._record = self._store.begin(self._pipeline, again=self._options.is_whole)
        require_noted(self._pipeline, chosen, self._record)
        for stage in stages:
            self._listen.begin(stage.name, stage.kind, stage.source)
            if stage.name in chosen:
                result = self._step(stage, digests[stage.name])
            else:
                result = left_out(stage, self._record.stages.get(stage.name))
            self._results[stage.name] = result
            self._listen.end(result)
        return self._summary("done")

    def _summary(self, state: Literal["done", "failed"]) -> PipelineSummary:
        pipeline = self._pipeline
        return PipelineSummary(
            pipeline=pipeline.name,
            run=pipeline.run,
            parameters={name: text_of(value) for name, value in pipeline.parameters.items()},
            attempt=self._record.attempt,
            state=state,
            stages=tuple(self._results.values()),
            seconds=time.monotonic() - self._started,
        )

    def _step(self, stage: ResolvedStage, digest: str) -> StageResult:
        """Skip a stage, find that it has nothing to do, or run it; note the result."""
        before = self._record.stages.get(stage.name)
        started = time.monotonic()
        try:
            result = skipped(stage, self._pipeline.parameters, self._results)
            if result is None:
                result = self._run(stage, digest, before)
        except (ChunkmapError, PlanningError, ExpressionError) as error:
            raise self._failed(stage, digest, error, time.monotonic() - started) from error
        result = replace(result, seconds=time.monotonic() - started)
        if result.state != "done":
            self._runner.passed(result)
        self._note(stage, digest, result)
        return result

    def _run(self, stage: ResolvedStage, digest: str, before: StageNote | None) -> StageResult:
        attempt, is_changed = self._record.attempt, self._has_changed(before)
        look = self._look(stage, digest, before)
        if look.result is not None:
            return replace(look.result, changed=is_changed)
        self._record = self._store.note(
            self._record,
            stage.name,
            StageNote(
                state="running",
                attempt=attempt,
                digest=digest,
                version=look.replaced,
                changed=is_changed,
                at=time.time(),
            ),
        )
        result = self._work(stage, digest, look)
        return replace(result, changed=result.changed or is_changed)

    def _has_changed(self, note: StageNote | None) -> bool:
        """Whether a stage has done something in this attempt, by its note.

        A process that noted that it began, and no more, may have done the work.
        """
        if note is None or note.attempt != self._record.attempt:
            return False
        return note.changed or note.state == "running"

    # -- what there is to do ----------------------------------------------------------------------

    def _look(self, stage: ResolvedStage, digest: str, before: StageNote | None) -> _Look:
        definition = stage.definition
        if isinstance(definition, Ingest):
            summary = published_ingest(
                definition, self._storage, self._settings, self._runner.ingest_secret
            )
            if summary is None:
                return _Look(None)
            if stage.refresh and not self._is_refreshed(before, summary.ingest):
                return _Look(None, replaced=summary.ingest)
            self._require_current(summary.output, summary.ingest, "ingest")
            return _Look(self._unchanged(stage, "it is published", summary))
        if isinstance(definition, Job):
            return self._look_at_job(stage, definition)
        if isinstance(definition, LoadFile):
            return self._look_at_load(stage, definition)
        version = self._version_of_call(stage, digest)
        is_called = before is not None and before.state in ("done", "unchanged")
        if before is None or not is_called or before.version != version:
            return _Look(None)
        return _Look(_result(stage, "unchanged", "it was called with the same", before))

    def _is_refreshed(self, before: StageNote | None, published: str) -> bool:
        """Whether an ingest was asked for again in this attempt, given the one published last."""
        if before is None or before.attempt != self._record.attempt:
            return False
        if before.state == "running":
            return before.version != published
        return before.state in FINISHED

    def _look_at_job(self, stage: ResolvedStage, job: Job) -> _Look:
        preflight(job, self._settings, self._storage)
        early = plan_early(job, self._settings, self._storage, self._options.resume)
        if early.run is None or early.run.ledger.published() is None:
            return _Look(None, early)
        for ledger in early.run.ledger.of_outputs():
            self._require_current(ledger.output, ledger.run, "run")
        summary = self._summary_of(job, early.run)
        return _Look(self._unchanged(stage, "input, code and parameters are the same", summary))

    def _summary_of(self, job: Job, run: PreparedRun) -> RunSummary:
        """Return the summary of a published run."""
        orchestrator = NoOrchestrator()
        return RunDriver(
            job, self._settings, self._storage, run, orchestrator, self._options.resume
        ).run()

    def _look_at_load(self, stage: ResolvedStage, file: LoadFile) -> _Look:
        secret = self._runner.load_secret(file.into)
        summary = open_load(file, self._settings, self._storage, secret=secret).preview()
        if summary.commits or summary.created or summary.added:
            return _Look(None)
        return _Look(self._unchanged(stage, "the table has all of it", summary))

    def _require_current(self, output: str, run: str, what: str) -> None:
        """Refuse a result that was published and is no longer in its output.

        The stages after it would read what is there instead.

        Raises:
            ConflictError: It was replaced or rolled back.
        """
        commits = TableLog(self._storage, output).manifest().commits
        if not any(entry.run == run for entry in commits):
            raise ConflictError(
                f"{output} no longer has what {what} {run} published: it was replaced or rolled "
                "back since",
                hint=f"restore that version (chunkmap history {output}, chunkmap rollback), or "
                "write each date to partitions of its own (mode overwrite-partitions)",
            )

    # -- work -------------------------------------------------------------------------------------

    def _work(self, stage: ResolvedStage, digest: str, look: _Look) -> StageResult:
        definition, runner = stage.definition, self._runner
        if isinstance(definition, Ingest):
            ingested = runner.ingest(stage.name, definition, refresh=bool(look.replaced))
            remember_output(self._settings.state_dir, ingested.output)
            return self._done(stage, ingested)
        if isinstance(definition, Job):
            assert look.early is not None, "a job was planned, or its workers plan it"
            run = runner.map(stage.name, definition, look.early, self._options.resume)
            return self._done(stage, run)
        if isinstance(definition, LoadFile):
            return self._done(stage, runner.load(stage.name, definition))
        rows = runner.call(stage.name, self._call(stage, definition))
        version = self._version_of_call(stage, digest)
        return replace(_result(stage, "done"), rows=rows or 0, changed=True, version=version)

    def _call(self, stage: ResolvedStage, call: Call) -> Callable[[], int | None]:
        """Return the call of a stage's function.

        Raises:
            TransformNotAllowedError, JobError: It cannot be loaded, or takes other parameters.
        """
        function = load_transform(call.function, call.params, self._settings.transforms)
        facts = self._facts_of_call()

        def work() -> int | None:
            try:
                rows = function.call(facts)
            except ChunkmapError:
                raise
            except Exception as error:
                raise TransformError(
                    f"{call.function} failed: {type(error).__name__}: {mask_text(str(error))}",
                    hint="fix the cause, and give the command again",
                ) from error
            if rows is None or (type(rows) is int and rows >= 0):
                return rows
            raise TransformError(
                f"{call.function} returned {type(rows).__name__}",
                hint="return None, or a number of rows",
            )

        return work

    def _facts_of_call(self) -> dict[str, Any]:
        return {
            "pipeline": self._pipeline.name,
            "run": self._pipeline.run,
            "parameters": dict(self._pipeline.parameters),
            "stages": {
                name: {
                    "state": result.fact_state,
                    "rows": result.rows,
                    "changed": result.changed,
                    "published": result.published,
                    "output": result.output,
                    "manifest": result.manifest,
                }
                for name, result in self._results.items()
            },
        }

    def _version_of_call(self, stage: ResolvedStage, digest: str) -> str:
        """Return what a call depends on: its code and parameters, and the results it needs."""
        return _digest([digest, self._needed_versions(stage)])

    def _needed_versions(self, stage: ResolvedStage) -> list[list[str]]:
        return [[need, self._results[need].version] for need in stage.needs]

    # -- results ----------------------------------------------------------------------------------

    def _unchanged(self, stage: ResolvedStage, reason: str, summary: Any) -> StageResult:
        done = self._done(stage, summary)
        return replace(done, state="unchanged", reason=reason, notes=())

    def _done(self, stage: ResolvedStage, summary: Any) -> StageResult:
        """Return the result of a stage by the summary of its ingest, run or load."""
        done = replace(_result(stage, "done"), changed=True, published=True)
        if isinstance(stage.definition, LoadFile):
            return replace(
                done,
                rows=self._rows(summary.output, summary.manifest),
                output=f"{summary.destination} {summary.table}".strip(),
                manifest=summary.manifest,
                # Other runs may have loaded newer versions: what counts is what this one needs.
                version=_digest([stage.definition.to_yaml(), self._needed_versions(stage)]),
            )
        is_run = isinstance(stage.definition, Job)
        return replace(
            done,
            rows=summary.rows_out if is_run else summary.rows,
            output=summary.output,
            manifest=summary.manifest or 0,
            version=summary.run if is_run else summary.ingest,
            notes=summary.notes,
        )

    def _rows(self, output: str, manifest: int) -> int:
        table_log = TableLog(self._storage, output)
        return int(table_log.snapshot(table_log.manifest(manifest))["rows"].sum())

    def _note(self, stage: ResolvedStage, digest: str, result: StageResult) -> None:
        assert result.state != "left out", "only stages that were chosen are noted"
        note = StageNote(
            state=result.state,
            attempt=self._record.attempt,
            digest=digest,
            version=result.version,
            rows=result.rows,
            changed=result.changed,
            published=result.published,
            output=result.output,
            manifest=result.manifest,
            reason=result.reason[:2_000],
            seconds=result.seconds,
            at=time.time(),
        )
        self._record = self._store.note(self._record, stage.name, note)

    def _failed(
        self, stage: ResolvedStage, digest: str, error: Exception, seconds: float
    ) -> ChunkmapError:
        message = mask_text(str(error))
        is_changed = self._has_changed(self._record.stages.get(stage.name))
        result = _result(stage, "failed", message)
        result = replace(result, changed=is_changed, seconds=seconds)
        self._results[stage.name] = result
        with best_effort():
            self._note(stage, digest, result)
        self._listen.end(result)
        hint = getattr(error, "hint", None)
        return stage_error(stage.name, error, message, hint, self._summary("failed"))


def _result(
    stage: ResolvedStage,
    state: Literal["done", "unchanged", "skipped", "failed", "left out"],
    reason: str = "",
    note: StageNote | None = None,
) -> StageResult:
    """Return a result of a stage, with the figures of a note if there is one."""
    result = StageResult(stage.name, stage.kind, stage.source, state, reason)
    if note is None:
        return result
    return replace(
        result,
        rows=note.rows,
        changed=note.changed,
        published=note.published,
        output=note.output,
        manifest=note.manifest,
        version=note.version,
    )


def left_out(stage: ResolvedStage, note: StageNote | None) -> StageResult:
    """Return the result of a stage that `--from` or `--only` leaves out: what was noted."""
    if note is None:
        return _result(stage, "left out")
    return replace(_result(stage, "left out", f"it was {note.state}", note), was=note.state)


def chosen_stages(pipeline: Pipeline, options: PipelineOptions) -> list[str]:
    """Return the names of the stages that are run.

    Raises:
        PipelineFileError: There is no such stage.
    """
    names = [stage.name for stage in pipeline.stages]
    for option, name in (("--from", options.start_from), ("--only", options.only)):
        if name is not None and name not in names:
            raise PipelineFileError(
                f"{pipeline.source} has no stage {name!r} ({option})",
                hint=f"its stages: {', '.join(names)}",
            )
    if options.only is not None:
        return [options.only]
    return names if options.start_from is None else names[names.index(options.start_from) :]


def require_noted(pipeline: Pipeline, chosen: list[str], record: PipelineRecord | None) -> None:
    """Refuse to run stages that need one which is left out and has not been done.

    Raises:
        PipelineFileError: Names both.
    """
    for stage in pipeline.stages:
        if stage.name not in chosen:
            continue
        used = {*stage.needs, *(name.partition(".")[0] for name in names_of(stage))}
        for other in pipeline.stages:
            note = record.stages.get(other.name) if record else None
            is_noted = note is not None and note.state in FINISHED
            if other.name in used and other.name not in chosen and not is_noted:
                what = "has not been run" if note is None else f"is {note.state}"
                raise PipelineFileError(
                    f"stage {stage.name} needs stage {other.name}, which is left out and {what} "
                    f"with these parameters ({pipeline.label or 'none'})",
                    hint=f"run it first: chunkmap pipeline run {pipeline.source}",
                )


def names_of(stage: ResolvedStage) -> set[str]:
    """Return the names that a stage's condition uses."""
    return set() if stage.condition is None else set(stage.condition.names())


def skipped(
    stage: ResolvedStage, parameters: Mapping[str, Value], results: Mapping[str, StageResult]
) -> StageResult | None:
    """Return the result of a stage that is skipped; None if it is to run.

    Raises:
        ExpressionError: A date in its condition is out of range.
    """
    before = [need for need in stage.needs if results[need].fact_state == "skipped"]
    if before and not stage.runs_if_skipped:
        return _result(stage, "skipped", f"{before[0]} was skipped")
    if stage.condition is None or stage.condition.value(facts_of(stage, parameters, results)):
        return None
    return _result(stage, "skipped", f"not {stage.when}")


def facts_of(
    stage: ResolvedStage, parameters: Mapping[str, Value], results: Mapping[str, StageResult]
) -> dict[str, Value]:
    """Return the facts that a stage's condition may use."""
    facts = dict(parameters)
    for name, result in results.items():
        of_stage = {fact: getattr(result, fact) for fact in STAGE_FACTS}
        of_stage["state"] = result.fact_state
        facts |= {f"{name}.{fact}": value for fact, value in of_stage.items()}
    needed = [results[need] for need in stage.needs]
    facts["input.changed"] = any(result.changed for result in needed)
    if len(needed) == 1:
        facts |= {fact: getattr(needed[0], fact) for fact in OWN_FACTS}
    return facts
