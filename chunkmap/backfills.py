"""A backfill: a job over windows of its input, each published by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from chunkmap.driving import Stop, drive, drive_async
from chunkmap.pages import pairs_html
from chunkmap.places import current, settings_with
from chunkmap.progress import Progress
from chunkmap.results import Report
from pipeline.config.job_part import check_limit
from pipeline.config.units import parse_size
from pipeline.config.yaml_file import explain_error
from pipeline.errors import ConflictError, RunInterruptedError, UsageError
from pipeline.report.humanize import plural

if TYPE_CHECKING:
    from chunkmap.jobs import Job
    from pipeline.runs.backfill.plan import Draft
    from pipeline.runs.backfill.progress import WindowProgress
    from pipeline.runs.backfill.records import Options
    from pipeline.runs.backfill.status import BackfillStatus
    from pipeline.runs.backfill.store import BackfillStore
    from pipeline.runs.backfill.summary import BackfillSummary

_SELECTION = ("last", "values", "exclude", "allow_missing")
_LIMITS = {"canary": "windows", "canary_limit": "chunks", "max_failures": "windows"}
"""What the limits count that are a number or a share."""


def _options_of(values: Mapping[str, Any]) -> Options:
    """Return options of a backfill, checked as those of the command are.

    Raises:
        UsageError: An option is unknown or mistyped, or needs a canary.
    """
    from pipeline.runs.backfill.records import Options

    unknown = sorted(set(values) - set(Options.model_fields))
    if unknown:
        raise UsageError(
            f"a backfill has no option {unknown[0]!r}",
            hint=f"options: {', '.join([*_SELECTION, *Options.model_fields])}",
        )
    checked = dict(values)
    name = ""
    try:
        for name, of in _LIMITS.items():
            check_limit(checked.get(name), of)
        name = "bytes_per_run"
        if isinstance(checked.get(name), str):
            checked[name] = parse_size(checked[name])
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    try:
        options = Options(**checked)
    except ValidationError as problems:
        raise UsageError(explain_error(problems.errors()[0], Options)[0]) from None
    if (options.canary_hold or options.canary_limit) and not options.canary:
        raise UsageError("canary_hold and canary_limit need a canary", hint='add e.g. canary="1%"')
    return options


@dataclass(slots=True, repr=False)
class Backfill:
    """A backfill, planned by `Job.backfill`; `run` creates and drives it."""

    job: Job
    draft: Draft = field(repr=False)
    """Its plan."""
    _store: BackfillStore | None = field(default=None, repr=False)

    @classmethod
    def plan(
        cls, job: Job, start: str | None, end: str | None, options: Mapping[str, Any]
    ) -> Backfill:
        """Plan a backfill; see `Job.backfill`."""
        from pipeline.runs.backfill.plan import WindowSelection, draft
        from pipeline.storage import open_storage

        chosen = {name: options[name] for name in _SELECTION if options.get(name) is not None}
        for name in {"values", "exclude"} & set(chosen):
            value = chosen[name]  # A text is one value, not one per letter.
            chosen[name] = (value,) if isinstance(value, str) else tuple(value)
        others = {name: value for name, value in options.items() if name not in _SELECTION}
        accept_code = bool(others.pop("accept_code", False))
        settings = settings_with(job.functions)
        drafted = draft(
            job.definition,
            settings,
            open_storage(settings),
            WindowSelection(start=start, end=end, **chosen),
            _options_of(others),
            accept_code=accept_code,
        )
        return cls(job, drafted)

    @property
    def windows(self) -> int:
        """Number of windows to do."""
        return self.draft.record.todo

    def run(
        self,
        *,
        accept_code: bool = False,
        take_over: bool = False,
        check: bool = True,
        progress: bool = True,
    ) -> Backfill:
        """Create the backfill, or find the unfinished one with the same request, and drive it.

        Args:
            accept_code: Resume even if the code has changed.
            take_over: Take over even if another driver seems alive.
            check: Raise an error if windows failed or it paused.
            progress: Show how far it is.

        Raises:
            BackfillIncompleteError: Some windows failed; the others are published.
            BackfillHeldError: It paused after its canary; call `resume`.
            RunInterruptedError: Ctrl-C; the same call resumes.
        """
        options = {"accept_code": accept_code, "take_over": take_over}
        drive(lambda stop: self._run(options, stop, check=check, progress=progress))
        return self

    async def run_async(
        self, *, accept_code: bool = False, take_over: bool = False, check: bool = True
    ) -> Backfill:
        """Drive the backfill without blocking the event loop; as `run`."""
        options = {"accept_code": accept_code, "take_over": take_over}
        await drive_async(lambda stop: self._run(options, stop, check=check, progress=False))
        return self

    def _run(
        self, options: Mapping[str, bool], stop: Stop, *, check: bool, progress: bool
    ) -> BackfillSummary | None:
        from pipeline.runs.admin.known_outputs import remember_output
        from pipeline.runs.backfill.plan import create, refuse_replaced_tables
        from pipeline.runs.backfill.records import BackfillResumeOptions
        from pipeline.runs.backfill.summary import BackfillHeldError, BackfillIncompleteError
        from pipeline.runs.driver.origin import explain_code
        from pipeline.runs.transforms.loading import job_fingerprint
        from pipeline.storage import open_storage

        settings = settings_with(self.job.functions)
        if self._store is None:
            created = create(open_storage(settings), self.draft)
            if created is None:
                return None
            self._store = created[0]
            remember_output(settings.state_dir, self._store.output)
        store = self._store
        record, code = store.record(), job_fingerprint(store.job(), settings.transforms)
        if code != record.code and not options["accept_code"]:
            raise ConflictError(
                f"backfill {record.backfill} is unfinished, and "
                f"{explain_code(record, code, store.job(), settings)}",
                hint="resume with the new code: run(accept_code=True)",
            )
        refuse_replaced_tables(record)
        flags: dict[str, Any] = {**options}
        resume = BackfillResumeOptions(**flags, code=code)
        with Progress(record.job, quiet=not progress) as shown:

            def listen(now: WindowProgress, phase: str) -> None:
                stop.check()
                counts = now.counts()
                shown.show(phase, counts["done"], record.todo, "window")

            try:
                return current().backfill(store, settings, listen, resume)
            except (BackfillIncompleteError, BackfillHeldError):
                if check:
                    raise
                return None
            except KeyboardInterrupt as error:
                raise RunInterruptedError(
                    "interrupted: completed chunks are kept", hint="resume with: backfill.run()"
                ) from error

    def resume(self, **options: Any) -> Backfill:
        """Resume after a pause or a canary; arguments as of `run`."""
        from pipeline.runs.backfill.status import read_status

        store = self._created()
        changes: dict[str, Any] = {"paused": False}
        if read_status(store).state == "held":
            changes["approved"] = True
        store.change("python", lambda _: changes)
        return self.run(**options)

    def pause(self) -> None:
        """Start no more runs; active ones finish."""
        self._created().change("python", lambda _: {"paused": True})

    def cancel(self) -> None:
        """Stop for good; what is published stays."""
        self._created().change("python", lambda _: {"cancelled": True})

    @property
    def state(self) -> str:
        """The state, such as planned, running or done; done, too, if there is nothing to do."""
        if self._store is None:
            return "planned" if self.windows else "done"
        return self.status.state

    @property
    def status(self) -> BackfillStatus:
        """The state of the backfill and of its windows, as they are stored now."""
        from pipeline.runs.backfill.status import read_status

        return read_status(self._created())

    def report(self) -> Report:
        """Make the report of the backfill, with a calendar of its windows."""
        from pipeline.runs.backfill.report import store_report

        settings = settings_with(self.job.functions)
        uri, path = store_report(self._created(), settings.state_dir, settings)
        return Report(Path(path), uri)

    def _created(self) -> BackfillStore:
        if self._store is None and not self.windows:
            raise UsageError(
                "the backfill has nothing to do, so that none was created",
                hint='do windows again that are done: backfill(…, reprocess="all")',
            )
        if self._store is None:
            raise UsageError("the backfill is planned, but not created yet: call `run`")
        return self._store

    def __repr__(self) -> str:
        return f"Backfill({plural(self.windows, 'window')} of {self.job})"

    def _repr_html_(self) -> str:
        record = self.draft.record
        rows = {
            "windows": f"{record.todo:,} of {record.windows:,} to do"
            if record.todo
            else f"none of {record.windows:,} to do: the output has them",
            **({} if self._store is None else {"published": self._published()}),
            "runs": plural(record.runs, "run"),
            "chunks": f"{record.chunks:,}",
            "output": self.job.definition.output.uri,
            "state": self.state,
        }
        return pairs_html(f"backfill of {record.job}", rows)

    def _published(self) -> str:
        counts = self.status.counts
        return f"{plural(counts['done'], 'window')}; {counts['failed']:,} failed"
