"""Merge the chunks' results into files: make the merge plan, and map its files on the cluster.

The plan is stored once; files that are merged have completions in the ledger. What is left is the
plan minus these, so a merge resumes as mapping does.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import polars as pl

from partitioning import ObjectInfo, Plan
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.config.sections import BatchSettings
from pipeline.errors import AlreadyExistsError, MergeFailedError, StateError
from pipeline.report.humanize import plural
from pipeline.runs.driver.batching import Batcher, Throughput
from pipeline.runs.driver.executor import Executor, Outcome
from pipeline.runs.driver.in_flight import InFlightBatches
from pipeline.runs.driver.map_stage import pause
from pipeline.runs.driver.merge_planning import plan_files, plan_windows
from pipeline.runs.driver.schemas import check_schemas, drop_retyped
from pipeline.runs.ledger.keys import folders_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.merge_plan import MergePart, MergePlan, batch_prefix
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.slices import read_index, refuse_many
from pipeline.storage import Storage
from pipeline.storage.documents import reading
from pipeline.storage.outages import retry_until_available
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.manifest import rule_of
from pipeline.table.replay import window_label

READERS = 64
"""Number of indexes of partial results that are read at a time."""
DECODED_FACTOR = 4
"""Bytes in memory per byte of a slice, to estimate how long a file takes."""
_SEGMENT = r"[^/\x00-\x1f\x7f]+"
"""Pattern of a value in the name of a folder."""
_PLAN_AGAIN = "map its chunk again: run the job with --replan"


def merge_parts(ledger: Ledger, progress: Progress) -> list[MergePart]:
    """Return what counts of a run's merge plans: for each window, or for the whole run, one part.

    That is the newest that has only attempts that still count.
    """
    counted = pl.concat([progress.completions["attempt"], progress.duplicates["attempt"]])
    attempts = set(counted.to_list())
    found: dict[str | None, MergePart] = {}
    for plan in ledger.merge_plans():
        for part in plan.parts():
            if part.label not in found and part.attempts <= attempts:
                found[part.label] = part
    return list(found.values())


def as_merged(progress: Progress, parts: Sequence[MergePart]) -> Progress:
    """Choose the completions of chunks whose partial results merge plans name."""
    named = {attempt for part in parts for attempt in part.attempts}
    attempts = pl.concat([progress.completions, progress.duplicates])
    chosen = attempts.filter(pl.col("attempt").is_in(list(named)))
    # Chunks of other windows stay as they are.
    others = progress.completions.join(chosen, on="chunk", how="anti")
    done = pl.concat([chosen, others]).sort("index")
    rest = attempts.join(done, on="attempt", how="anti")
    return replace(progress, completions=done, duplicates=rest)


def merged_of(ledger: Ledger, progress: Progress, parts: Sequence[MergePart]) -> pl.DataFrame:
    """Return the completions of merged files, one per file (schema COMPLETIONS).

    Raises:
        StateError: files have more or fewer rows than their slices.
    """
    done = [_merged_of(ledger, progress, part) for part in parts]
    return pl.concat([progress.merged.head(0), *done])


def _merged_of(ledger: Ledger, progress: Progress, part: MergePart) -> pl.DataFrame:
    done = part.done(progress.merged, ledger.output, ledger.run)
    if done.height == len(part.indices) and done.height:
        files = part.plan.files[list(part.indices)]
        folders = files.with_columns(made=done["rows_out"]).group_by("folder")
        sums = folders.agg(pl.col("made").sum(), pl.col("folder_rows").first())
        odd = sums.filter(pl.col("made") != pl.col("folder_rows")).sort("folder")
        if odd.height:
            folder, made, rows = odd.select("folder", "made", "folder_rows").row(0)
            raise StateError(
                ledger.output + folder,
                f"its merged files have {made:,} rows, the chunks' results {rows:,}",
                _PLAN_AGAIN,
            )
    return done


def _by_window(slices: pl.DataFrame, window: pl.Series) -> dict[str, pl.DataFrame]:
    """Part slices by the window of their partial result."""
    if slices.is_empty():
        return {}
    labelled = slices.with_columns(window=window.gather(slices["partial"]))
    parts = labelled.partition_by("window", as_dict=True, include_key=False, maintain_order=True)
    return {str(label): part for (label,), part in parts.items()}


def _left(parts: Sequence[MergePart], done: pl.DataFrame) -> dict[int, list[int]]:
    """List the files that are not merged, by the number of their plan."""
    merged = set(done["chunk"].to_list())
    left: dict[int, list[int]] = {}
    for part in parts:
        pairs = zip(part.indices, part.ids(), strict=True)
        own = [index for index, file in pairs if file not in merged]
        if own:
            left.setdefault(part.plan.number, []).extend(own)
    return left


@dataclass(slots=True)
class MergeStage:
    """Merges the chunks' results of one run, or of complete windows of it, into files."""

    storage: Storage
    ledger: Ledger
    plan: Plan
    job: Job
    limits: BatchSettings
    executor: Executor
    windows: Mapping[str, Collection[str]] | None = None
    """Ids of the chunks of the windows to merge, all of which are done; None: the whole run."""
    tick: Callable[[], None] = lambda: None
    """Called at least every few seconds; may raise, to stop."""
    is_paused: Callable[[], bool] = lambda: False
    pace: Throughput = field(default_factory=Throughput)
    errors: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Why windows cannot be merged, by label."""

    def run(self) -> pl.DataFrame:
        """Merge until no file is left; return one completion per file.

        Raises:
            UploadsVanishedError: partial results are lost; their chunks must be mapped again.
            PartitionLimitError: the results have more partitions than the job allows.
            SchemaChangedError: the chunks' schemas differ.
            MergeFailedError: files were left in `rounds` rounds without one more file.
        """
        progress = drop_retyped(self.ledger, retry_until_available(self.ledger.read))
        check_schemas(self._of_windows(progress))
        parts = self._parts(progress)
        plans = {part.plan.number: part.plan for part in parts}
        done = merged_of(self.ledger, progress, parts)
        futile = 0
        while left := _left(parts, done):
            self._refuse_lost(parts)
            for number, indices in left.items():
                self._run_round(plans[number], indices, alone=futile > 0)
            progress = retry_until_available(self.ledger.read)
            before, done = done.height, merged_of(self.ledger, progress, parts)
            futile = futile + 1 if done.height == before else 0
            if futile >= self.job.rounds:
                raise self._failed(plans, _left(parts, done))
            if futile:
                pause(futile)
        return done

    def _of_windows(self, progress: Progress) -> Progress:
        """Leave out the chunks of other windows."""
        if self.windows is None:
            return progress
        chunks = [chunk for ids in self.windows.values() for chunk in ids]
        done = progress.completions.filter(pl.col("chunk").is_in(chunks))
        return replace(progress, completions=done)

    def _failed(
        self, plans: Mapping[int, MergePlan], left: Mapping[int, Sequence[int]]
    ) -> MergeFailedError:
        number, indices = next(iter(left.items()))
        folder = plans[number].files["folder"][indices[0]]
        reason = self.errors[-1] if self.errors else "its batches were lost"
        count = sum(map(len, left.values()))
        files = sum(plan.files.height for plan in plans.values())
        return MergeFailedError(
            f"{count:,} of {plural(files, 'file')} could not be merged, such as "
            f"one of {folder or 'the output'}: {reason}",
            hint="merged files are kept: run the job again; if workers ran out of memory, with a "
            "smaller output.file_bytes and --replan",
        )

    # -- plan -----------------------------------------------------------------------------------

    def _parts(self, progress: Progress) -> list[MergePart]:
        """Return what counts of the merge plans, after making one of what no plan has."""
        wanted: list[str | None] = [None]
        if self.windows is not None:
            done = set(progress.completions["chunk"].to_list())
            wanted = [w for w, ids in self.windows.items() if ids and done.issuperset(ids)]
        while True:
            parts = {part.label: part for part in merge_parts(self.ledger, progress)}
            missing = [w for w in wanted if w not in parts and w not in self.refused]
            if not missing:
                return [parts[label] for label in wanted if label in parts]
            # Another driver may be faster; its plan counts if its partial results do.
            self._make_plan(progress, missing)
            progress = drop_retyped(self.ledger, retry_until_available(self.ledger.read))

    def _make_plan(self, progress: Progress, labels: Sequence[str | None]) -> None:
        """Plan the files of the whole run or of some windows, and store the plan."""
        stored = self._stored()
        done, owner = progress.completions, self._owner(labels)
        if owner is not None:
            done = done.filter(pl.col("chunk").is_in(list(owner)))
        lost = done.filter(~pl.col("uri").is_in(list(stored)))
        if lost.height:
            raise UploadsVanishedError(lost["attempt"].to_list())
        infos = [stored[uri] for uri in done["uri"]]
        partials = pl.DataFrame(
            {
                "attempt": done["attempt"],
                "uri": done["uri"],
                "etag": pl.Series([info.etag for info in infos], dtype=pl.String),
                "size": pl.Series([info.size for info in infos], dtype=pl.Int64),
            }
        )
        slices = self._read_slices(done, infos)
        if self.job.output.partition_by is not None:
            count, limit = slices["folder"].n_unique(), self.job.output.max_partitions
            refuse_many(count, limit, "the result")
        target = self.job.output.file_bytes
        if owner is None:
            files, sources = plan_files(slices, target)
        else:
            window = done["chunk"].replace_strict(owner, return_dtype=pl.String)
            partials = partials.with_columns(window=window)
            by_window = _by_window(slices, window)
            outside = self._outside(by_window)
            if outside:
                self.refused |= outside
                rest = [label for label in labels if label not in outside]
                return self._make_plan(progress, rest) if rest else None
            files, sources = plan_windows(by_window, target)
        schema = progress.schemas.get(done["schema"][0], "{}") if done.height else "{}"
        data = MergePlan.pack(partials, files, sources, schema)
        number = max((plan.number for plan in self.ledger.merge_plans()), default=0) + 1
        with suppress(AlreadyExistsError):
            retry_until_available(partial(self.ledger.store_merge_plan, number, data))
        return None

    def _owner(self, labels: Sequence[str | None]) -> dict[str, str] | None:
        """Return the window of each chunk of some windows; None for a whole run."""
        if self.windows is None:
            return None
        windows = self.windows
        return {c: label for label in labels if label is not None for c in windows[label]}

    def _outside(self, by_window: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        """Find windows with rows in folders of other windows, which they would replace."""
        if self.job.window is None or self.job.output.mode != "overwrite-partitions":
            return {}
        rule, outside = rule_of(self.job.window.windowing()), {}
        for label, slices in by_window.items():
            folders = slices["folder"].unique().sort()
            other = next((f for f in folders if window_label(rule, f[:-1]) != label), None)
            if other is not None:
                outside[label] = (
                    f"window {label} has rows in folder {other} of the output, which belongs to "
                    "another window or to none: it would replace rows of that one. Let the "
                    "transform keep the values of the window's columns, or set output.mode to "
                    "append"
                )
        return outside

    def _read_slices(self, done: pl.DataFrame, infos: Sequence[ObjectInfo]) -> pl.DataFrame:
        """Read the indexes of all partial results."""
        names = self.job.output.partition_by
        folders = folders_of(self.plan) if names is None else None
        values = "/".join(f"{re.escape(name)}={_SEGMENT}" for name in names or ()) + "/"

        def read(item: tuple[int, ObjectInfo, int, int]) -> pl.DataFrame:
            number, info, chunk, rows = item
            with reading(info.uri, _PLAN_AGAIN):
                index = read_index(info.size, partial(self.storage.get_ranges, info))
                pattern = values if folders is None else re.escape(folders[chunk])
                if not index["folder"].str.contains(f"^(?:{pattern})$").all():
                    raise ValueError("its index names a folder that is not one of its chunk's")
                if index["rows"].sum() != rows:
                    raise ValueError(f"its index has {index['rows'].sum():,} rows, not {rows:,}")
            return index.with_columns(partial=pl.lit(number, pl.Int64))

        items = zip(range(done.height), infos, done["index"], done["rows_out"], strict=True)
        indexes = map_concurrently(read, items, READERS)
        own = [index for index in indexes if index.height]
        if not own:
            return indexes[0] if indexes else pl.DataFrame(schema={"folder": pl.String})
        shared = [name for name in own[0].columns if all(name in i.columns for i in own)]
        return pl.concat(index.select(shared) for index in own)

    def _stored(self) -> dict[str, ObjectInfo]:
        objects = retry_until_available(
            partial(self.storage.objects, self.ledger.prefix + "partials/")
        )
        return {info.uri: info for info in objects}

    def _refuse_lost(self, parts: Sequence[MergePart]) -> None:
        stored = list(self._stored())
        for part in parts:
            own = part.plan.partials.filter(pl.col("attempt").is_in(list(part.attempts)))
            lost = own.filter(~pl.col("uri").is_in(stored))
            if lost.height:
                raise UploadsVanishedError(lost["attempt"].to_list())

    # -- map ------------------------------------------------------------------------------------

    def _run_round(self, merge: MergePlan, left: Sequence[int], *, alone: bool) -> None:
        sizes = merge.files["bytes"].gather(list(left)) * DECODED_FACTOR
        batcher = Batcher(
            batch_prefix(merge.number, f"{uuid.uuid4().hex[:8]}-"),
            left,
            sizes.to_list(),
            seconds=self.limits.seconds,
            max_chunks=1 if alone else self.limits.max_chunks,
            pace=self.pace,
        )
        in_flight = InFlightBatches(self.executor, self.limits)
        try:
            self._run_batches(batcher, in_flight)
        finally:
            in_flight.drop_all()

    def _run_batches(self, batcher: Batcher, in_flight: InFlightBatches) -> None:
        while not batcher.is_done or in_flight:
            if not self.is_paused():
                in_flight.fill(batcher)
            for outcome in in_flight.wait_completed(1.0):
                self._handle(outcome)
            if batcher.is_done:
                in_flight.resubmit_stragglers(self.limits.seconds)
            self.tick()

    def _handle(self, outcome: Outcome) -> None:
        result = outcome.result
        if result is None:
            self.errors.append(outcome.detail)
        else:
            decoded = result.decoded_bytes * DECODED_FACTOR
            self.pace.add(result.done, decoded, result.seconds)
