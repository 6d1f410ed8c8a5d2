"""Say what a pipeline would run, and why, from its notes. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.config.pipeline_file import OWN_FACTS, Pipeline, ResolvedStage
from pipeline.config.settings import Settings
from pipeline.pipelines.driver import (
    PipelineOptions,
    chosen_stages,
    definition_digest,
    left_out,
    names_of,
    require_noted,
    skipped,
)
from pipeline.pipelines.state import FINISHED, PipelineStore, StageNote, notes_of
from pipeline.pipelines.summary import StageResult
from pipeline.storage import Storage

Action = Literal["run", "unchanged", "skip", "depends", "left out"]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What would become of a stage."""

    name: str
    kind: str
    source: str
    action: Action
    """`unchanged`: its definition and code are those of the last time, and so are the results that
    it needs; whether its own input has changed is seen when it runs. `depends`: on what stages
    before it will have done."""
    reason: str


def preview_stages(
    pipeline: Pipeline, settings: Settings, storage: Storage, options: PipelineOptions
) -> list[StagePlan]:
    """Return what would become of each stage.

    Raises:
        PipelineFileError, TransformNotAllowedError, JobError: As `run_stages`.
    """
    chosen = chosen_stages(pipeline, options)
    record = PipelineStore.of(storage, pipeline.state).read(pipeline.run)
    require_noted(pipeline, chosen, record)
    notes = notes_of(record)
    # A run that has finished begins another attempt, in which nothing has changed yet.
    attempt = 0 if record is None or record.is_finished else record.attempt
    plans: list[StagePlan] = []
    known: dict[str, StageResult] = {}
    for stage in pipeline.stages:
        note = notes.get(stage.name)
        if stage.name in chosen:
            open_stages = {plan.name for plan in plans if plan.action == "depends"}
            action, reason = _decide(
                stage, pipeline, known, note, settings=settings, open_stages=open_stages
            )
        else:
            action, reason = "left out", left_out(stage, note).reason
        plans.append(StagePlan(stage.name, stage.kind, stage.source, action, reason))
        if action in ("skip", "unchanged", "left out"):
            changed = note is not None and note.attempt == attempt and note.changed
            result = replace(left_out(stage, note), changed=changed)
            was = {"skip": "skipped", "unchanged": "unchanged"}.get(action, result.was)
            known[stage.name] = replace(result, was=was)
    return plans


def _decide(
    stage: ResolvedStage,
    pipeline: Pipeline,
    known: dict[str, StageResult],
    note: StageNote | None,
    *,
    settings: Settings,
    open_stages: set[str],
) -> tuple[Action, str]:
    """Decide what would become of a stage.

    Args:
        stage: The stage.
        pipeline: The pipeline.
        known: Results of the stages before it that are known.
        note: What was noted of the stage.
        settings: Where its code is.
        open_stages: Names of stages before it that may be skipped.
    """
    unknown = [need for need in stage.needs if need not in known]
    waits = [name for name in _stages_used(stage, pipeline) if name not in known]
    if not waits:
        # Of the stages that it needs, those that are known; its condition uses no others.
        needs = tuple(need for need in stage.needs if need in known)
        passed_over = skipped(replace(stage, needs=needs), pipeline.parameters, known)
        if passed_over is not None:
            return "skip", passed_over.reason
    if waits and stage.condition is not None:
        return "depends", f"after {', '.join(waits)}: when {stage.when}"
    perhaps_skipped = [need for need in unknown if need in open_stages]
    if perhaps_skipped and not stage.runs_if_skipped:
        return "depends", f"after {', '.join(perhaps_skipped)}"
    if note is None or note.state == "skipped":
        return "run", "it has not been done"
    if note.state not in FINISHED:
        what = "it failed" if note.state == "failed" else "it was interrupted"
        return "run", f"{what} the last time" + (f": {note.reason}" if note.reason else "")
    if note.digest != definition_digest(stage, settings):
        return "run", "its definition or code has changed"
    if unknown:
        return "run", f"after {', '.join(unknown)}"
    return "unchanged", "definition and code are those of the last time"


def _stages_used(stage: ResolvedStage, pipeline: Pipeline) -> list[str]:
    """Return the names of the stages whose facts a stage's condition uses."""
    names = {name.partition(".")[0] for name in names_of(stage)}
    of_needs = stage.needs if names & {"input", *OWN_FACTS} else ()
    return [other.name for other in pipeline.stages if other.name in {*names, *of_needs}]
