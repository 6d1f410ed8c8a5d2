"""Plan a backfill of a job over a range of windows: draft it without writing, then create it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import polars as pl

from partitioning import Plan
from partitioning.errors import WindowError
from partitioning.explain import left_out_for_names
from partitioning.listing import Listing, list_objects
from partitioning.window_inputs import inputs_of_listing, outside_of_windows
from partitioning.windows import Window, WindowFilter, Windowing
from pipeline.config.job import LATER_OUTPUT_KEYS, Job, keys_at_default
from pipeline.config.settings import Settings
from pipeline.errors import ConflictError, UsageError
from pipeline.report.humanize import plural
from pipeline.runs.backfill.output_windows import (
    failed_before,
    materialised_windows,
    outdated_runs,
    refuse_other_rule,
    refuse_unknown_windows,
)
from pipeline.runs.backfill.records import (
    MAX_FOLDERS_NAMED,
    WINDOWS,
    BackfillRecord,
    Options,
    digest,
)
from pipeline.runs.backfill.selection import (
    InputWindow,
    WindowDecision,
    WindowSelector,
    digest_inputs,
)
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.backfill.unfinished import EXECUTION_KEYS, refuse_ignored
from pipeline.runs.backfill.windows_table import (
    EMPTIED,
    chunks_of,
    emptied_note,
    members_of,
    unreadable_note,
    unreadable_objects,
    windows_table,
)
from pipeline.runs.driver.former_folders import refuse_former_folders
from pipeline.runs.driver.origin import explain_code, origin_of
from pipeline.runs.driver.overlap import refuse_in_place, refuse_overlap
from pipeline.runs.driver.plan import (
    PlannedInput,
    plan_input,
    plan_request,
    planned_footprints,
    refuse_planned_columns,
)
from pipeline.runs.ledger.keys import refuse_long_keys
from pipeline.runs.ledger.ledger import run_id
from pipeline.runs.transforms.loading import job_fingerprint
from pipeline.storage import (
    Storage,
    StorageReader,
    replaced_tables,
    require_conditional_writes,
)
from pipeline.table.log import TableLog
from pipeline.table.manifest import rule_of
from pipeline.table.publish import prepare_output
from pipeline.table.retention import locate


@dataclass(frozen=True, slots=True)
class WindowSelection:
    """Windows that a user requests; default every window of the input."""

    start: str | None = None
    """Start of the range; default the first window of the input."""
    end: str | None = None
    """End of the range, exclusive; default the end of the input."""
    last: str | None = None
    """Span before now, such as 30d."""
    values: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_missing: bool = False
    """Whether the range may reach outside of the input's data."""

    def words(self) -> str:
        """Describe the selection."""
        if self.last:
            text = f"last {self.last}"
        elif self.values:
            text = ", ".join(self.values)
        elif self.start or self.end:
            text = f"{self.start or 'the first window'} to {self.end or 'the end of the input'}"
        else:
            text = "all of the input"
        return text + (f", without {', '.join(self.exclude)}" if self.exclude else "")


@dataclass(frozen=True, slots=True)
class Draft:
    """A backfill that is planned and not stored."""

    job: Job
    record: BackfillRecord
    windows: pl.DataFrame
    """All requested windows (schema WINDOWS)."""
    plan: Plan | None
    """Plan of the windows to do; None if there are none."""
    existing: BackfillRecord | None = None
    """Record of the unfinished backfill that the same request created before, if any."""
    notes: tuple[str, ...] = ()
    """Notes for the user before the backfill is created."""

    @property
    def up_to_date(self) -> str | None:
        """Message that nothing is left to do, with the reasons; None if there is something."""
        if self.existing is not None or (self.plan is not None and self.record.todo):
            return None
        reasons = self.windows["skipped"].str.replace(r" (by|since) run \w+$", "")
        counts = reasons.value_counts(sort=True).head(3).iter_rows()
        why = "; ".join(f"{count:,}: {reason}" for reason, count in counts)
        return f"all requested windows are up to date ({why})"


def draft(
    job: Job,
    settings: Settings,
    storage: Storage,
    asked: WindowSelection,
    options: Options,
    *,
    mapper: Any = None,
    accept_code: bool = False,
) -> Draft:
    """Plan a backfill. Writes nothing.

    Args:
        job: The job, which has a `window`.
        settings: Settings of the planner and of transforms.
        storage: Where input and output are.
        asked: Requested windows.
        options: Options of the backfill.
        mapper: Reads the footers of large inputs elsewhere.
        accept_code: Find the unfinished backfill of the same request even if the code differs, and
            count code that was fingerprinted by another scheme as unchanged.

    Raises:
        UsageError: the job or the options do not fit a backfill, or the unfinished backfill of the
            same request would ignore them.
        WindowError: the range, the column or its values do not fit.
        And what `plan_input` raises.
    """
    refuse_unfit(job, options)
    refuse_overlap(job)
    refuse_in_place(job, "a backfill")
    code = job_fingerprint(job, settings.transforms)
    request = _request_digest(job, asked, options)
    earlier = backfills_of(storage, job.output.uri)
    same = [record for record in earlier if record.request == request]
    reader = StorageReader(storage)
    for record in same:
        store = BackfillStore(storage, record.output, record.backfill)
        if not is_over(store):
            known = record.code if accept_code else code
            drafting = Drafting(job, settings, storage, known, reader)
            return drafting.existing(record, store, options)
    drafting = Drafting(job, settings, storage, code, reader, accept_scheme=accept_code)
    # What others publish while this is planned may go unseen, so publishing must check it.
    base = TableLog(storage, job.output.uri).head()[0].current
    listing = drafting.listing()
    choices, beyond = drafting.choices(listing, asked, options, earlier)
    # The same request after finished backfills is another backfill, so their number counts.
    name = partial(digest, request, code, len(same))
    drafted = drafting.draft(choices, asked, options, name, mapper, base=base)
    return drafting.with_outside(drafted, listing, beyond)


def refuse_unfit(job: Job, options: Options) -> None:
    """Raise UsageError if the job or the options do not fit a backfill."""
    if job.window is None:
        raise UsageError(
            f"job {job.name} has no windows",
            hint="add `window: {column: ds, grain: day}` to it; column is a Hive column",
        )
    mode = job.output.mode
    if mode == "overwrite" or (mode == "error" and not options.all_or_nothing):
        raise UsageError(
            f"output.mode is {mode}, but a backfill publishes its windows one after the other",
            hint="set output.mode to overwrite-partitions, or to append",
        )
    if mode == "append" and options.reprocess in ("changed", "all"):
        raise UsageError(
            f"--reprocess {options.reprocess} with output.mode append would duplicate rows",
            hint="set output.mode to overwrite-partitions",
        )
    sized = {"--windows-per-run": options.windows_per_run, "--bytes-per-run": options.bytes_per_run}
    given = [name for name, value in sized.items() if value is not None]
    if options.all_or_nothing and given:
        raise UsageError(f"--all-or-nothing maps all windows in one run: drop {given[0]}")
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other")


def refuse_replaced_tables(record: BackfillRecord) -> None:
    """Raise ConflictError if tables that a backfill's transform reads were replaced since."""
    replaced = replaced_tables(record.tables or ())
    if replaced:
        raise ConflictError(
            f"backfill {record.backfill} is unfinished, and {replaced}, which the "
            "transform reads, was replaced since it was planned",
            hint=f"start over with the new table: chunkmap backfill cancel {record.backfill}, then "
            "create it again; or restore the earlier version",
        )


def is_over(store: BackfillStore) -> bool:
    """Whether a backfill was cancelled, or has nothing left to do."""
    driver = store.driver()
    return store.control().cancelled or (driver is not None and driver.state == "done")


def _request_digest(job: Job, asked: WindowSelection, options: Options) -> str:
    free = {"name", *EXECUTION_KEYS}
    # Leave out newer keys at their defaults, so that stored requests keep their digest.
    free |= keys_at_default(job, "tables", "checks", "outputs", "then")
    left_out: dict[str, Any] = dict.fromkeys(free, True)
    newer = (
        *("hive_types", "types", "int96", "object_column", "verify_checksums", "max_quarantined"),
        *("table", "version"),
    )
    left_out["input"] = keys_at_default(job.input, *newer)
    if job.window is not None and not job.window.columns:
        left_out["window"] = {"columns"}
    left_out["output"] = keys_at_default(job.output, "schema_", *LATER_OUTPUT_KEYS)
    text = job.model_dump_json(exclude=left_out)
    return digest(text, asked.words(), options.reprocess, options.idempotency_key)


@dataclass(frozen=True, slots=True)
class Drafting:
    """Drafts backfills of one job."""

    job: Job
    settings: Settings
    storage: Storage
    code: str
    """Current fingerprint of the transform."""
    reader: StorageReader
    """Reads the input. It lists it once, so that windows and their plan are of the same objects."""
    accept_scheme: bool = field(default=False, kw_only=True)
    """Whether code that was fingerprinted by another scheme counts as unchanged."""

    @property
    def rule(self) -> Windowing:
        """Rule that cuts the job's windows."""
        assert self.job.window is not None, "refused before"
        return self.job.window.windowing()

    def existing(self, record: BackfillRecord, store: BackfillStore, options: Options) -> Draft:
        """Draft the unfinished backfill of the same request.

        Raises:
            ConflictError: The code differs, or tables were replaced since.
            UsageError: Options or keys of the job differ that it would ignore.
        """
        if record.code != self.code:
            raise ConflictError(
                f"backfill {record.backfill} of this request is unfinished, and "
                f"{explain_code(record, self.code, self.job, self.settings)}",
                hint=f"resume with the new code: chunkmap backfill resume {record.backfill} "
                f"--accept-code; or start over: chunkmap backfill cancel {record.backfill}",
            )
        refuse_replaced_tables(record)
        refuse_ignored(record, store, self.job, options)
        return Draft(self.job, record, store.windows(), store.plan(), existing=record)

    def listing(self) -> Listing:
        """List the whole input, without reading footers."""
        request = plan_request(self.job, self.settings, None)
        return list_objects(request, self.reader)

    def with_outside(self, drafted: Draft, listing: Listing, beyond: Sequence[str]) -> Draft:
        """Add to a draft what it leaves out.

        That is objects that no backfill reads, since they are in no window or have other names, and
        windows of the output that have no rows in the input any more.

        Args:
            drafted: The draft.
            listing: Listing of the whole input.
            beyond: Labels of the windows of the output beyond the input (see `choices`).
        """
        outside = outside_of_windows(listing, self.rule)
        more = len(outside.folders) - MAX_FOLDERS_NAMED
        record = drafted.record.model_copy(
            update={
                "outside_objects": outside.objects,
                "outside_bytes": outside.bytes,
                "outside_folders": (
                    *outside.folders[:MAX_FOLDERS_NAMED],
                    *([f"{more:,} more"] if more > 0 else []),
                ),
            }
        )
        emptied = drafted.windows.filter(pl.col("skipped") == EMPTIED)["label"].to_list()
        note = emptied_note([*emptied, *beyond])
        notes = (
            *([] if note is None else [note]),
            *left_out_for_names(listing.unnamed, listing.unnamed_example),
        )
        return replace(drafted, record=record, notes=(*drafted.notes, *notes))

    def choices(
        self,
        listing: Listing,
        asked: WindowSelection,
        options: Options,
        earlier: Sequence[BackfillRecord],
    ) -> tuple[list[WindowDecision], list[str]]:
        """Decide what to do about each requested window.

        Returns:
            The decisions, and labels of windows that the output has beyond the input, if they are
            to follow the input and no bound of the range leaves them out.
        """
        inputs, windows = self._input_windows(listing)
        wanted = self._requested_windows(asked, windows)
        if not asked.allow_missing:
            _refuse_outside(wanted, windows, asked)
        table_log = TableLog(self.storage, self.job.output.uri)
        failed: frozenset[str] = frozenset()
        if options.reprocess == "failed":
            failed = failed_before(self.storage, earlier)
        if self.job.output.mode == "append":
            refuse_other_rule(table_log, self.rule)
            refuse_unknown_windows(table_log, self.rule, self.job)
        outputs = materialised_windows(table_log, self.rule)
        outdated: frozenset[str] = frozenset()
        if options.reprocess == "changed":
            outdated = outdated_runs(table_log, (window.run for window in outputs.values()))
        selector = WindowSelector(
            inputs,
            outputs,
            failed,
            self.code,
            options.reprocess,
            accept_scheme=self.accept_scheme,
            outdated=outdated,
            appends=self.job.output.mode == "append",
        )
        follows = options.reprocess in ("changed", "all")
        beyond = self._beyond_input(asked, windows, outputs) if follows else []
        return selector.choose(wanted), beyond

    def _input_windows(self, listing: Listing) -> tuple[dict[str, InputWindow], tuple[Window, ...]]:
        """Return the windows of the whole input: their objects by label, and in order."""
        inputs = inputs_of_listing(listing, self.rule)
        by_label = {
            label: InputWindow(part.objects, part.bytes, digest_inputs(self.job, part.digest))
            for label, part in inputs.items()
        }
        return by_label, tuple(sorted(part.window for part in inputs.values()))

    def _requested_windows(
        self, asked: WindowSelection, existing: tuple[Window, ...]
    ) -> tuple[Window, ...]:
        rule = self.rule
        if asked.last:
            windows = rule.last(asked.last, datetime.now(UTC))
        elif asked.values:
            windows = rule.of_values(asked.values)
        elif asked.start or asked.end:
            windows = rule.between(*_bounds(rule, asked, existing))
        elif rule.grain == "value" or not existing:
            windows = existing
        else:
            windows = tuple(_between(rule, existing[0], existing[-1]))
        left_out = set(rule.select(asked.exclude, windows)) if asked.exclude else set()
        return tuple(window for window in windows if window not in left_out)

    def _beyond_input(
        self, asked: WindowSelection, existing: tuple[Window, ...], outputs: Iterable[str]
    ) -> list[str]:
        """Return the labels of the output's windows beyond those of the input, in their order."""
        if asked.last or asked.values or not existing:
            return []
        windows: set[Window] = set()
        for label in outputs:
            with suppress(WindowError):  # A commit of an early release does not say its rule.
                windows.add(self.rule.parse(label))
        return [
            window.label
            for window in sorted(windows.difference(existing))
            if self.rule.grain == "value"
            or (window < existing[0] and not asked.start)
            or (window > existing[-1] and not asked.end)
        ]

    def draft(
        self,
        choices: list[WindowDecision],
        asked: WindowSelection,
        options: Options,
        name: Callable[..., str],
        mapper: Any = None,
        *,
        base: int,
    ) -> Draft:
        """Plan the windows to do.

        Args:
            choices: Decision about each requested window.
            asked: Requested windows.
            options: Options of the backfill.
            name: Makes the backfill's id from some further values.
            mapper: Reads the footers of large inputs elsewhere.
            base: Number of the manifest that was current before the choices were made.
        """
        todo = tuple(choice.window for choice in choices if choice.skipped is None)
        planned = self._plan(todo, mapper) if todo else None
        plan = planned.result.plan if planned else None
        tables = planned.tables.versions if planned else ()
        chunks = chunks_of(plan, self.rule)
        windows = windows_table(choices, chunks, options, unreadable_objects(plan, self.rule))
        labels = windows.filter(pl.col("skipped").is_null())["label"].to_list()
        versions = [table.model_dump_json() for table in tables]
        backfill = name(plan.id if plan else "", *labels, *versions)
        runs: dict[int, str] = {}
        if plan is not None:
            members = members_of(windows, chunks)
            runs = {
                rank: run_id(plan.take(indices), self.job, self.code, backfill, tables)
                for rank, indices in members.items()
            }
        run = pl.col("group").replace_strict(runs, default=None, return_dtype=pl.String)
        windows = windows.with_columns(run=run).match_to_schema(WINDOWS)
        unknown = sum(choice.is_of_other_scheme for choice in choices)
        unreadable = unreadable_note(windows)
        notes = [] if unreadable is None else [unreadable]
        if unknown:
            notes.append(
                f"the code of {plural(unknown, 'window')} was fingerprinted by another scheme, so "
                "chunkmap cannot tell whether it has changed: they are mapped again (--accept-code "
                "counts their code as unchanged)"
            )
        record = self._record(backfill, asked, options, windows, base)
        if planned is not None:
            self._refuse_columns(planned, options)
            columns = planned.probe.result_columns
            origin = origin_of(self.job, self.settings, planned.result)
            found = {
                "tables": tables,
                "columns": tuple(columns),
                "types": tuple(columns.values()),
                "origin": origin,
            }
            record = record.model_copy(update=found)
        return Draft(self.job, record, windows, plan, notes=tuple(notes))

    def _refuse_columns(self, planned: PlannedInput, options: Options) -> None:
        """Refuse windows whose result would not fit the files that stay in the output."""
        table_log = TableLog(self.storage, self.job.output.uri)
        footprints = planned_footprints(self.job, planned.result.plan, rule_of(self.rule))
        # Published one by one, the first window already has to fit the present files of the others.
        first = footprints if options.all_or_nothing else footprints[:1]
        refuse_planned_columns(table_log, table_log.manifest(), self.job, planned.probe, first)

    def _plan(self, todo: tuple[Window, ...], mapper: Any) -> PlannedInput:
        keep = WindowFilter(self.rule, todo)
        return plan_input(
            self.job, self.settings, self.storage, mapper=mapper, keep=keep, reader=self.reader
        )

    def _record(
        self,
        backfill: str,
        asked: WindowSelection,
        options: Options,
        windows: pl.DataFrame,
        base: int,
    ) -> BackfillRecord:
        table_log = TableLog(self.storage, self.job.output.uri)
        return BackfillRecord(
            backfill=backfill,
            request=_request_digest(self.job, asked, options),
            asked=asked.words(),
            job=self.job.name,
            output=table_log.output,
            mode=self.job.output.mode,
            transform=self.job.transform,
            code=self.code,
            column=self.rule.title,
            grain=self.rule.grain,
            options=options,
            base=base,
            windows=windows.height,
            todo=windows["skipped"].null_count(),
            runs=windows["run"].n_unique() - (windows["run"].null_count() > 0),
            chunks=int(windows["chunks"].sum()),
            rows=int(windows["rows"].sum()),
            decoded_bytes=int(windows["decoded_bytes"].sum()),
            created=time.time(),
        )


def _between(rule: Windowing, first: Window, last: Window) -> list[Window]:
    for window in (first, last):
        _refuse_as_bound(window)
    assert isinstance(first.start, datetime) and last.end is not None, "time windows"
    return list(rule.between(first.start.isoformat(), last.end.isoformat()))


def _refuse_as_bound(window: Window) -> None:
    """Refuse a window of the input as the bound of a range if it stands for no date.

    Years 1 and 9999 mean "unknown" or "never"; a range from or to them has millions of windows.

    Raises:
        UsageError: The window is in the first or the last year of the calendar.
    """
    if window.label[:4] in ("0001", "9999"):
        raise UsageError(
            f"the input has the window {window.label}: a range cannot begin or end there",
            hint="name both bounds: --from and --to",
        )


def _bounds(
    rule: Windowing, asked: WindowSelection, existing: tuple[Window, ...]
) -> tuple[str, str]:
    """Return the bounds of a range; one that was not given is that of the input.

    Raises:
        UsageError: The input has no window at or after the start, or before the end, or the bound
            of the input is no date.
    """
    if rule.grain == "value" or (asked.start and asked.end):
        return asked.start or "the first", asked.end or "the last"
    if not existing:
        raise UsageError("the input has no windows", hint="name both bounds: --from and --to")
    first, last = existing[0], existing[-1]
    assert isinstance(first.start, datetime) and last.end is not None, "time windows"
    if asked.start and rule.parse(asked.start) > last:
        raise UsageError(
            f"--from {asked.start} is after the end of the input, whose last window is "
            f"{last.label}",
            hint="windows that do not exist yet need both bounds, and --allow-missing",
        )
    _refuse_as_bound(last if asked.start else first)
    return asked.start or first.start.isoformat(), asked.end or last.end.isoformat()


def _refuse_outside(
    wanted: tuple[Window, ...], existing: tuple[Window, ...], asked: WindowSelection
) -> None:
    """Refuse windows outside of the input's data: a mistyped range, or data that is late."""
    if asked.values:
        missing = [window.label for window in wanted if window not in set(existing)]
    else:
        missing = [
            window.label
            for window in wanted
            if not existing or window < existing[0] or window > existing[-1]
        ]
    if not missing:
        return
    have = f"{existing[0].label} to {existing[-1].label}" if existing else "nothing"
    part = missing[0] if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
    raise UsageError(
        f"{len(missing):,} of {plural(len(wanted), 'window')} lie outside the input ({part}); "
        "it has "
        f"{have}",
        hint="choose a range within it, or do the windows that exist: --allow-missing",
    )


def create(storage: Storage, drafted: Draft) -> tuple[BackfillStore, bool] | None:
    """Store a draft, unless it is stored already.

    Returns:
        The backfill's store, and whether it is new; None if the draft is up to date.

    Raises:
        UsageError: the output's storage cannot keep two drivers apart, or the output has
            partitions that an earlier release spelled differently.
        OutputNotEmptyError: the output contains objects that chunkmap did not publish.
        FilesMissingError: the windows are done, but files of the output were deleted.
    """
    record = drafted.record
    store = BackfillStore(storage, record.output, record.backfill)
    table_log = TableLog(storage, record.output)
    in_own_folders = drafted.job.output.partition_by is None  # Others are those of the result.
    if drafted.plan is not None and in_own_folders:
        runs = drafted.windows["run"].drop_nulls().to_list()
        refuse_former_folders(table_log, record.mode, drafted.plan, runs)
    if drafted.existing is not None:
        require_conditional_writes(storage, record.output)
        return store, False
    if drafted.plan is None or not record.todo:
        locate(table_log, table_log.manifest())  # Check that no files were deleted.
        return None
    if in_own_folders:
        refuse_long_keys(record.output, drafted.plan)
    # The last publisher may have died on the way.
    prepare_output(table_log, record.mode, record.backfill)
    return store, store.create(record, drafted.windows, drafted.plan, drafted.job)
