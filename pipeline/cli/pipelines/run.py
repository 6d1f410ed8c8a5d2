"""Run a pipeline and show what its stages have done: `chunkmap pipeline run` and `backfill`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.errors import PLANNING_HINTS
from pipeline.cli.hints import command, with_values
from pipeline.cli.output import bad, columns, out, print_json, say, warn
from pipeline.cli.pipelines.display import PipelineDisplay, result_line
from pipeline.cli.run import local_workers
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.config.pipeline_file import (
    Pipeline,
    PipelineSource,
    dates,
    parameter_values,
    read_pipeline,
)
from pipeline.config.settings import Settings, load_settings
from pipeline.config.templates import text_of
from pipeline.errors import PipelineFileError, RunInterruptedError
from pipeline.processes import record_interrupts, was_interrupted
from pipeline.report.humanize import duration, plural

if TYPE_CHECKING:
    from pipeline.local.workers import LocalWorkers
    from pipeline.pipelines.driver import PipelineOptions
    from pipeline.pipelines.summary import PipelineSummary, StageFailedError


@dataclass(frozen=True, slots=True)
class Request:
    """A pipeline file with the values that the command line gives."""

    path: Path
    changes: tuple[str, ...]
    params: tuple[str, ...]
    date: str | None
    environment: str | None

    def read(self) -> PipelineSource:
        """Read the file."""
        return read_pipeline(self.path, self.changes)

    def values(self, source: PipelineSource) -> dict[str, Any]:
        """Return the values of parameters.

        Raises:
            PipelineFileError: An option is not NAME=VALUE.
        """
        values: dict[str, Any] = dict(parameter_values(self.params))
        if self.date is not None:
            values[source.date_parameter] = self.date
        return values

    def command(self, word: str, params: Iterable[str], *more: str) -> str:
        """Return the command that resumes the run, for hints.

        Args:
            word: What follows `chunkmap pipeline`.
            params: NAME=VALUE of the parameters.
            more: Further options.
        """
        values = [*with_values("--set", self.changes), *with_values("--param", params)]
        words = ("pipeline", word, str(self.path), *more, *values)
        return command(*words, environment=self.environment)


def options(
    start_from: str | None,
    only: str | None,
    *,
    accept_code: bool = False,
    replan: bool = False,
) -> PipelineOptions:
    """Return which stages are run.

    Raises:
        PipelineFileError: Both options are given.
    """
    from pipeline.pipelines.driver import PipelineOptions
    from pipeline.runs.driver.plan import ResumeOptions

    if start_from is not None and only is not None:
        raise PipelineFileError("--from and --only exclude each other: use one of them")
    resume = ResumeOptions(accept_code=accept_code, replan=replan)
    return PipelineOptions(start_from, only, resume)


def run(request: Request, chosen: PipelineOptions, *, local: bool = False, as_json: bool) -> None:
    """Run a pipeline and show the result."""
    source, settings = request.read(), load_settings(request.environment)
    pipeline = source.resolve(request.values(source))
    # With all values: a default such as `yesterday` may mean another date then.
    params = [f"{name}={text_of(value)}" for name, value in pipeline.parameters.items()]
    again = request.command("run", params, *_flags(chosen), *["--local"] * local)
    with (
        _workers([pipeline], settings, wanted=local) as workers,
        _showing_failures(again, as_json=as_json),
    ):
        summary = _run(pipeline, settings, chosen, quiet=as_json, local=local, workers=workers)
    if as_json:
        print_json(summary.to_dict())
    else:
        show(summary)


def _flags(chosen: PipelineOptions) -> list[str]:
    """Return the options of the command that choose stages, and how runs are resumed."""
    words = ["--from", chosen.start_from] if chosen.start_from else []
    words += ["--only", chosen.only] if chosen.only else []
    words += ["--accept-code"] * chosen.resume.accept_code + ["--replan"] * chosen.resume.replan
    return words


@contextmanager
def _showing_failures(again: str, *, as_json: bool) -> Iterator[None]:
    """Show the stages of a pipeline that fails, and name the command that resumes it."""
    from pipeline.pipelines.summary import StageFailedError

    try:
        yield
    except StageFailedError as error:
        if not as_json:
            show(error.summary)
            for line in getattr(getattr(error.__cause__, "summary", None), "errors", ()):
                bad(line)
        _complete_hint(error, again)
        raise
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or was_interrupted()):
            raise
        raise RunInterruptedError(
            "interrupted: what the stages have done is kept", hint=f"resume with: {again}"
        ) from error


def _complete_hint(error: StageFailedError, again: str) -> None:
    hint = error.hint or PLANNING_HINTS.get(type(error.__cause__).__name__)
    resume = f"then resume at this stage with: {again}"
    error.hint = f"{hint}\n{resume}" if hint else f"fix the cause, {resume}"


def _workers(
    pipelines: list[Pipeline], settings: Settings, *, wanted: bool
) -> AbstractContextManager[LocalWorkers | None]:
    """Start worker processes of this machine, if they are wanted and pipelines map something."""
    definitions = [stage.definition for each in pipelines for stage in each.stages]
    maps = any(isinstance(definition, Job) for definition in definitions)
    return local_workers(settings, wanted=wanted and maps)


def _run(
    pipeline: Pipeline,
    settings: Settings,
    chosen: PipelineOptions,
    *,
    quiet: bool,
    local: bool,
    workers: LocalWorkers | None,
) -> PipelineSummary:
    """Run it as a flow if there is a Prefect server, or if it needs one; else in this process.

    With `local`, it runs in this process, and jobs in the worker processes.
    """
    from pipeline.pipelines.driver import chosen_stages, run_stages

    display = PipelineDisplay(quiet=quiet)
    with display, record_interrupts(display.stopping):
        stages = chosen_stages(pipeline, chosen)
        if local:
            _refuse_secret_blocks(pipeline.with_secret_block(stages))
        elif settings.prefect.api_url is not None or pipeline.needs_prefect(stages):
            from pipeline.flows.launch import launch_pipeline

            return launch_pipeline(pipeline, settings, chosen, display)
        from pipeline.pipelines.runner import LocalRunner
        from pipeline.storage import open_storage

        storage = open_storage(settings)
        runner = LocalRunner(settings, storage, display)
        if workers is not None:
            from pipeline.local.pipelines import LocalWorkersRunner

            runner = LocalWorkersRunner(settings, storage, display, workers)
        return run_stages(pipeline, settings, storage, runner, options=chosen, listen=display)


def _refuse_secret_blocks(stages: list[str]) -> None:
    if stages:
        raise PipelineFileError(
            f"the secret of {', '.join(stages)} is in a Secret block of Prefect, which --local "
            "does not ask",
            hint="name a variable of the environment instead (env, password_env), or run it "
            "without --local",
        )


def show(summary: PipelineSummary) -> None:
    """Print what each stage has done."""
    for stage in summary.stages:
        for note in stage.notes:
            warn(f"{stage.name}: {note}")
    title = f"{summary.pipeline} · run {summary.run} · {summary.state}"
    label = ", ".join(f"{name} {value}" for name, value in summary.parameters.items())
    say(f"{title}{f' · {label}' if label else ''} · {duration(summary.seconds)}", mark="[bold]")
    rows = [
        (
            stage.name,
            f"{stage.kind} {stage.source}",
            stage.state,
            f"{stage.rows:,}" if stage.published or stage.rows else "",
            duration(stage.seconds) if stage.state != "left out" else "",
            _what(stage.output, stage.manifest, stage.reason if stage.state != "failed" else ""),
        )
        for stage in summary.stages
    ]
    out.print(columns(("stage", "does", "state", "rows", "time", "result"), rows, ("rows",)))


def _what(output: str, manifest: int, reason: str) -> str:
    where = f"{output}, manifest {manifest}" if manifest else output
    return "; ".join(filter(None, (where, reason)))


def backfill(
    request: Request,
    start: str,
    end: str,
    days: int,
    *,
    recheck: bool,
    local: bool = False,
    as_json: bool,
) -> None:
    """Run a pipeline for each date of a range, one after the other; stop at the first failure."""
    source, settings = request.read(), load_settings(request.environment)
    name = source.date_parameter
    values = request.values(source)
    if name in values:
        raise PipelineFileError(f"--param {name}: a backfill sets it, from --from to --to")
    first, last = _date("--from", start), _date("--to", end)
    if first >= last:
        raise PipelineFileError(f"--to {end} is not after --from {start}")
    # All of them at once, so that nothing runs if one is wrong.
    pipelines = [source.resolve({**values, name: day}) for day in dates(first, last, days)]
    done = set() if recheck else _finished(pipelines, settings)
    given = ("--from", start, "--to", end, *(("--days", str(days)) if days > 1 else ()))
    again = request.command("backfill", request.params, *given, *["--local"] * local)
    summaries: list[dict[str, Any]] = []
    rows = []
    chosen = options(None, None)
    left = [pipeline for pipeline in pipelines if pipeline.run not in done]
    with _workers(left, settings, wanted=local) as workers:
        for pipeline in pipelines:
            if pipeline.run in done:
                rows.append((pipeline.label, "done before", ""))
                continue
            with _showing_failures(again, as_json=as_json):
                summary = _run(
                    pipeline, settings, chosen, quiet=as_json, local=local, workers=workers
                )
            summaries.append(summary.to_dict())
            stages = ", ".join(result_line(stage) for stage in summary.stages)
            rows.append((pipeline.label, summary.state, stages))
    if as_json:
        print_json({"pipeline": source.file.name, "done_before": len(done), "runs": summaries})
        return
    say(
        f"{source.file.name}: {plural(len(summaries), 'run')}, {len(done):,} done before",
        mark="[bold]",
    )
    out.print(columns(("run", "state", "stages"), rows))


def _date(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise PipelineFileError(f"{option} {text} is not a date such as 2024-03-01") from None


def _finished(pipelines: list[Pipeline], settings: Settings) -> set[str]:
    """Return the ids of runs that have finished with the same definitions and code."""
    from pipeline.pipelines.driver import is_finished
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    storage = open_storage(settings)
    with explain_unreachable_s3(settings):
        finished = map_concurrently(lambda each: is_finished(each, settings, storage), pipelines)
    return {each.run for each, is_done in zip(pipelines, finished, strict=True) if is_done}
