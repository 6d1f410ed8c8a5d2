"""A job: plan it, try it, run it, backfill it, write it to a file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chunkmap.driving import Stop, drive, drive_async
from chunkmap.functions import Functions, not_writable
from chunkmap.pages import histogram_html, pairs_html, table_html
from chunkmap.places import Local, Planned, current, settings_with
from chunkmap.progress import Progress
from chunkmap.results import Run
from pipeline.config.job import Job as FileJob
from pipeline.config.job import Output, load_job
from pipeline.config.settings import Settings
from pipeline.config.units import parse_size
from pipeline.config.yaml_file import YamlFile
from pipeline.config.yaml_model import validate
from pipeline.errors import JobError, UsageError
from pipeline.report.humanize import byte_size, duration, plural

if TYPE_CHECKING:
    import polars as pl

    from chunkmap.backfills import Backfill
    from pipeline.runs.driver.dry_run import Trial
    from pipeline.runs.driver.estimate import Estimate
    from pipeline.runs.driver.plan import PlannedInput, ResumeOptions
    from pipeline.runs.driver.plan_changes import PlanChanges
    from pipeline.runs.driver.summary import MapProgress
    from pipeline.storage import Storage


@dataclass(frozen=True, slots=True, repr=False)
class Job:
    """A job, as `Mapped.write` makes it or a file has it."""

    definition: FileJob
    """The keys of the job file."""
    functions: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Functions that are sent by value, by their names in the definition."""

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any], functions: Functions) -> Job:
        """Make a job from the keys of a job file.

        Raises:
            JobError: A key is unknown or mistyped, or keys do not fit together.
        """
        file = YamlFile(str(keys.get("name", "job")), dict(keys), {})
        return cls(validate(file, FileJob, JobError), dict(functions.sent))

    @classmethod
    def from_yaml(cls, path: str | Path, changes: Sequence[str] = ()) -> Job:
        """Read a job file.

        Args:
            path: The file.
            changes: Values to set or replace, such as `params.rate=1.1`, in the syntax of YAML.

        Raises:
            JobError: The file is missing, or has a key that is unknown, missing or mistyped.
        """
        return cls(load_job(path, changes))

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the text of a job file that is the same job; write it to `path` if given.

        Raises:
            JobError: A function is sent by value, which no file can name.
        """
        if self.functions:
            raise not_writable(sorted(self.functions))
        text = self.definition.to_yaml()
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def plan(self) -> Plan:
        """Plan the job: chunks, bytes, requests, time, memory. Writes nothing.

        Raises:
            PlanningError: The input cannot be planned.
            And what the function raises on no rows.
        """
        return drive(lambda stop: self._plan())

    def _plan(self) -> Plan:
        from pipeline.runs.driver.estimate import estimate
        from pipeline.runs.driver.plan import plan_input
        from pipeline.runs.driver.plan_changes import compare_with_published

        settings, storage = self._open()
        planned = plan_input(self.definition, settings, storage)
        plan, threads = planned.result.plan, settings.dask.threads_per_worker or 1
        expected = estimate(storage, self.definition, plan, threads)
        changes = compare_with_published(storage, self.definition, settings, plan)
        return Plan(planned, expected, changes, self.definition.output)

    def preview(self, rows: int = 5) -> Preview:
        """Run the function on one small chunk, in this process. Writes nothing.

        Args:
            rows: Number of result rows to show.
        """
        from pipeline.runs.driver.dry_run import try_transform

        settings, storage = self._open()
        return Preview(
            drive(lambda stop: try_transform(self.definition, settings, storage, rows)),
            reduces=self.definition.reduce is not None,
        )

    def run(
        self,
        *,
        check: bool = True,
        accept_code: bool = False,
        replan: bool = False,
        rebuild: bool = False,
        take_over: bool = False,
        progress: bool = True,
    ) -> Run:
        """Run the job, or resume its unfinished run; return when the result is published.

        Args:
            check: Raise an error if chunks failed; otherwise the run that is returned says so.
            accept_code: Resume even if the code has changed.
            replan: Make a new plan instead of resuming.
            rebuild: Replace what this job has published, in mode `error`; or map again what it has
                made of its own input.
            take_over: Take over even if another driver seems alive.
            progress: Show how far it is, in a terminal or notebook.

        Raises:
            RunIncompleteError: Some chunks failed; nothing is published, finished work is kept.
                Its attribute `run` is the run.
            ConflictError: The unfinished run was made by other code.
            RunInterruptedError: Ctrl-C; the same call resumes.
        """
        resume = _resume_options(accept_code, replan, rebuild, take_over)
        return drive(lambda stop: self._run(resume, stop, check=check, progress=progress))

    async def run_async(
        self,
        *,
        check: bool = True,
        accept_code: bool = False,
        replan: bool = False,
        rebuild: bool = False,
        take_over: bool = False,
        progress: bool = False,
    ) -> Run:
        """Run the job without blocking the event loop; arguments and errors as of `run`.

        If the task is cancelled, the run stops after the current chunks, and can be resumed.
        """
        resume = _resume_options(accept_code, replan, rebuild, take_over)
        return await drive_async(
            lambda stop: self._run(resume, stop, check=check, progress=progress)
        )

    def _run(self, resume: ResumeOptions, stop: Stop, *, check: bool, progress: bool) -> Run:
        settings = settings_with(self.functions)
        return run_job(self.definition, settings, resume, stop, check=check, progress=progress)

    def backfill(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        column: str | None = None,
        grain: str = "day",
        timezone: str = "UTC",
        **options: Any,
    ) -> Backfill:
        """Plan a backfill: the job over windows of its input, each published by itself.

        Args:
            start: First window, such as `2024-01-01` or `2024-01`; default the first of the input.
            end: Window after the last.
            column: Hive column that makes the windows; default the job's `window`.
            grain: Length of a window: `hour`, `day`, `month`, or `value`.
            timezone: IANA name of the time zone of hours, days and months.
            options: As the options of `chunkmap backfill create`: `last`, `values`, `exclude`,
                `allow_missing`, `reprocess`, `max_active`, `canary`, `max_failures`, …

        Returns:
            The backfill; `run` drives it.
        """
        from chunkmap.backfills import Backfill

        job = self
        if column is not None:
            job = self._changed(window={"column": column, "grain": grain, "timezone": timezone})
        return drive(lambda stop: Backfill.plan(job, start, end, options))

    def collect(self, limit: str | int = "1GB") -> pl.DataFrame:
        """Map in processes of this machine, and return the result without storing it.

        For small results: nothing is published, and nothing resumes.

        Args:
            limit: Maximum size of the result in memory, such as "1GB".

        Raises:
            UsageError: The result is larger; write it.
            RunIncompleteError: Some chunks failed.
        """
        bytes_ = parse_size(limit) if isinstance(limit, str) else limit
        return drive(lambda stop: self._collect(bytes_, stop))

    def _collect(self, limit: int, stop: Stop) -> pl.DataFrame:
        from chunkmap.outputs import scan_with
        from pipeline.runs.driver.plan import ResumeOptions

        too_large = UsageError(
            f"the result is larger than {byte_size(limit)}",
            hint='write it: .write("s3://bucket/prefix/"), then chunkmap.scan; or '
            'collect(limit="4GB")',
        )

        def refuse_large(now: MapProgress) -> None:
            if now.bytes_out > limit:  # Compressed bytes are fewer than those in memory.
                raise too_large

        if self.definition.outputs:
            raise UsageError("a job with several outputs cannot be collected", hint="run it")
        place = current()
        folder = Path(tempfile.mkdtemp(prefix="chunkmap-collect-"))
        settings = settings_with(self.functions)
        try:
            host = place if isinstance(place, Local) else Local(place.settings)
            # What is kept belongs to the result; layouts and modes do not matter here.
            kept = self.definition.output.model_dump(include={"keep", "rename"})
            output = {"uri": f"{folder}/out/", **(kept if kept["keep"] is not None else {})}
            job = self._changed(output=output, outputs={}).definition
            settings = settings.model_copy(
                update={
                    "state_dir": folder / "state",
                    "transforms": host.settings.transforms.with_functions(self.functions),
                }
            )
            try:
                summary = host.run(
                    job, settings, _listener(stop, refuse_large), ResumeOptions(), Planned()
                )
            finally:
                if host is not place:
                    host.close()
            if not summary.rows_out:
                return _empty(job, settings)
            frame = scan_with(settings, f"{folder}/out/").collect()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if frame.estimated_size() > limit:
            raise too_large
        return frame

    def _changed(self, **keys: Any) -> Job:
        """Return the job with other keys."""
        data = self.definition.model_dump(by_alias=True, exclude_defaults=True)
        if self.definition.outputs:
            del data["output"]  # It is the first of them.
        return Job(Job.from_keys({**data, **keys}, Functions()).definition, self.functions)

    def _open(self) -> tuple[Settings, Storage]:
        from pipeline.storage import open_storage

        settings = settings_with(self.functions)
        return settings, open_storage(settings)

    def __repr__(self) -> str:
        job = self.definition
        outputs = ", ".join(output.uri for output in job.all_outputs.values())
        return f"Job({job.name}: {job.transform} from {', '.join(job.input.uri)} to {outputs})"

    def _repr_html_(self) -> str:
        job = self.definition
        rows = {
            "input": ", ".join(job.input.uri),
            "filter": str(job.input.filter or ""),
            "function": job.transform,
            "params": str(job.params or ""),
            **{
                name: f"{output.uri}, mode {output.mode}"
                for name, output in job.all_outputs.items()
            },
        }
        return pairs_html(f"job {job.name}", rows)


def run_job(
    definition: FileJob,
    settings: Settings,
    resume: ResumeOptions,
    stop: Stop,
    *,
    check: bool,
    progress: bool,
) -> Run:
    """Run a job where runs are made now."""
    from pipeline.errors import RunInterruptedError
    from pipeline.runs.driver.summary import RunIncompleteError

    place, planned = current(), Planned()
    with Progress(definition.name, quiet=not progress) as shown:
        try:
            summary = place.run(definition, settings, _listener(stop, shown=shown), resume, planned)
        except RunIncompleteError as error:
            run = Run(error.summary.output, error.summary.run, settings, error.summary)
            if check:
                error.run = run
                raise
            return run
        except KeyboardInterrupt as error:
            raise RunInterruptedError(
                "interrupted: completed chunks are kept", hint="resume with: job.run()"
            ) from error
    return Run(summary.output, summary.run, settings, summary)


def _listener(stop: Stop, watch: Any = lambda now: None, *, shown: Progress | None = None) -> Any:
    """Return what a driver calls with its phase and progress."""

    def listen(phase: str, now: MapProgress | None) -> None:
        stop.check()
        if now is not None:
            watch(now)
        if shown is not None and now is None:
            shown.show(phase)
        elif shown is not None and now is not None:
            shown.show(phase, now.done, now.chunks, now.unit)

    return listen


def _resume_options(
    accept_code: bool, replan: bool, rebuild: bool, take_over: bool
) -> ResumeOptions:
    from pipeline.runs.driver.plan import ResumeOptions

    return ResumeOptions(
        accept_code=accept_code, replan=replan, rebuild=rebuild, take_over=take_over
    )


def _empty(job: FileJob, settings: Settings) -> pl.DataFrame:
    """Return a frame without rows, with the columns of a job's result."""
    import polars as pl

    from pipeline.runs.driver.plan import plan_input
    from pipeline.storage import open_storage

    planned = plan_input(job, settings, open_storage(settings))
    return pl.DataFrame(schema=planned.probe.schema)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job would run; nothing was written."""

    planned: PlannedInput
    expected: Estimate
    changes: PlanChanges | None
    """Comparison with what is published."""
    output: Output

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.planned.result.plan)

    @property
    def rows(self) -> int:
        """Rows to read, before the filter on rows."""
        return self.planned.result.explain.rows

    @property
    def bytes_to_read(self) -> int:
        """Bytes to read."""
        return self.expected.bytes_to_read

    @property
    def memory_bytes(self) -> int:
        """Estimated memory of a worker."""
        return self.expected.memory_bytes

    @property
    def kept(self) -> str:
        """What files keep of the input's, in words; empty if they are written whole."""
        from pipeline.runs.driver.layout_text import kept_columns_text

        return kept_columns_text(self.output, self.planned, self.bytes_to_read)

    @property
    def seconds(self) -> float | None:
        """Estimated duration; None without an earlier run."""
        return self.expected.seconds

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may not be as you want it."""
        return self.planned.result.explain.warnings

    def _rows(self) -> dict[str, str]:
        from pipeline.runs.driver.plan_changes import changes_text

        explain, columns = self.planned.result.explain, self.planned.probe.columns
        groups = explain.row_groups - explain.row_groups_pruned
        return {
            "objects": f"{explain.objects_planned:,} of {explain.objects_listed:,} listed",
            "row groups": f"{groups:,} of {explain.row_groups:,}",
            "rows": f"{explain.rows:,}",
            "chunks": f"{explain.chunks:,}",
            "bytes": f"{byte_size(self.bytes_to_read)} to read, "
            f"{byte_size(explain.bytes_decoded)} decoded",
            "requests": f"{explain.requests:,} to plan",
            "columns": ", ".join(columns) if columns else "all (the columns read are unknown)",
            "kept": self.kept,
            "memory": f"about {byte_size(self.memory_bytes)} per worker",
            "time": duration(self.seconds) if self.seconds else "unknown: no earlier run",
            "changes": changes_text(self.changes, self.planned.version),
            "warnings": "; ".join(self.warnings),
        }

    def __repr__(self) -> str:
        return _text(f"plan {self.planned.result.plan.id[:16]}", self._rows())

    def _repr_html_(self) -> str:
        sizes = self.planned.result.explain.chunk_sizes
        bars = "" if sizes is None else histogram_html(sizes.histogram)
        title = f"plan {self.planned.result.plan.id[:16]} (nothing was written)"
        return pairs_html(title, self._rows(), bars)


@dataclass(frozen=True, slots=True)
class Preview:
    """Result of a function on one small chunk."""

    trial: Trial
    reduces: bool = False

    @property
    def schema(self) -> pl.Schema:
        """Columns of the result."""
        return self.trial.schema_out

    @property
    def head(self) -> pl.DataFrame:
        """First rows of the result."""
        return self.trial.head

    @property
    def columns_read(self) -> tuple[str, ...]:
        """Columns of the input that are read."""
        return self.trial.columns_read

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may not be as you want it, e.g. that the result depends on where chunks are cut."""
        differs = self.trial.differs
        if not differs:
            return self.trial.notes
        if not self.reduces:
            differs += (
                ": a function that groups, sorts or drops duplicates does so within each chunk"
            )
        return (*self.trial.notes, differs)

    def _rows(self) -> dict[str, str]:
        trial = self.trial
        read = f"{len(trial.columns_read)} of {plural(len(trial.schema_in), 'column')}"
        return {
            "rows": f"{trial.rows_in:,} in, {trial.rows_out:,} out",
            "reads": f"{read}: {', '.join(trial.columns_read)}",
            "warnings": "\n".join(self.warnings),
        }

    def __repr__(self) -> str:
        return _text("preview of one chunk", self._rows()) + f"\n{self.head}"

    def _repr_html_(self) -> str:
        head = self.head
        shown = table_html([f"{name} ({kind})" for name, kind in head.schema.items()], head.rows())
        return pairs_html("preview of one chunk (nothing was written)", self._rows(), shown)


def _text(title: str, rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    lines = (f"{name:<{width}}  {value}" for name, value in rows.items() if value)
    return "\n".join([title, *lines])
