"""Merge the chunks' results into files: make the merge plan, and map its files on the cluster.

The plan is stored once; files that are merged have completions in the ledger. What is left is the
plan minus these, so a merge resumes as mapping does.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
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
from pipeline.runs.driver.merge_planning import plan_files
from pipeline.runs.driver.schemas import check_schemas, drop_retyped
from pipeline.runs.ledger.keys import folders_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.merge_plan import MergePlan, batch_prefix
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker.slices import read_index, refuse_many
from pipeline.storage import Storage
from pipeline.storage.documents import reading
from pipeline.storage.outages import retry_until_available
from pipeline.table.errors import UploadsVanishedError

READERS = 64
"""Number of indexes of partial results that are read at a time."""
DECODED_FACTOR = 4
"""Bytes in memory per byte of a slice, to estimate how long a file takes."""
_SEGMENT = r"[^/\x00-\x1f\x7f]+"
"""Pattern of a value in the name of a folder."""
_PLAN_AGAIN = "map its chunk again: run the job with --replan"


def merge_plan_of(ledger: Ledger, progress: Progress) -> MergePlan | None:
    """Return the merge plan that counts: the last, if it has only attempts that still count."""
    plan = ledger.last_merge_plan()
    attempts = pl.concat([progress.completions["attempt"], progress.duplicates["attempt"]])
    return plan if plan is not None and plan.fits(attempts.to_list()) else None


def as_merged(progress: Progress, plan: MergePlan) -> Progress:
    """Choose the completions of chunks whose partial results a merge plan names."""
    attempts = pl.concat([progress.completions, progress.duplicates])
    chosen = attempts["attempt"].is_in(plan.partials["attempt"].to_list())
    done = attempts.filter(chosen).sort("index")
    return replace(progress, completions=done, duplicates=attempts.filter(~chosen))


def merged_of(ledger: Ledger, progress: Progress, plan: MergePlan) -> pl.DataFrame:
    """Return the completions of a plan's files, one per file (schema COMPLETIONS).

    Raises:
        StateError: files have more or fewer rows than their slices.
    """
    done = plan.done(progress.merged, ledger.output, ledger.run)
    if done.height == plan.files.height and done.height:
        folders = plan.files.with_columns(made=done["rows_out"]).group_by("folder")
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


def _without(merge: MergePlan, done: pl.DataFrame) -> list[int]:
    """List the files of a plan that are not merged."""
    merged = set(done["index"].to_list())
    return [index for index in range(merge.files.height) if index not in merged]


@dataclass(slots=True)
class MergeStage:
    """Merges the chunks' results of one run into files."""

    storage: Storage
    ledger: Ledger
    plan: Plan
    job: Job
    limits: BatchSettings
    executor: Executor
    tick: Callable[[], None] = lambda: None
    """Called at least every few seconds; may raise, to stop."""
    pace: Throughput = field(default_factory=Throughput)
    errors: list[str] = field(default_factory=list)

    def run(self) -> pl.DataFrame:
        """Merge until no file is left; return one completion per file.

        Raises:
            UploadsVanishedError: partial results are lost; their chunks must be mapped again.
            PartitionLimitError: the results have more partitions than the job allows.
            SchemaChangedError: the chunks' schemas differ.
            MergeFailedError: files were left in `rounds` rounds without one more file.
        """
        progress = drop_retyped(self.ledger, retry_until_available(self.ledger.read))
        check_schemas(progress)
        merge = merge_plan_of(self.ledger, progress) or self._make_plan(progress)
        done = merged_of(self.ledger, progress, merge)
        futile = 0
        while left := _without(merge, done):
            self._refuse_lost(merge)
            self._run_round(merge, left, alone=futile > 0)
            progress = retry_until_available(self.ledger.read)
            before, done = done.height, merged_of(self.ledger, progress, merge)
            futile = futile + 1 if done.height == before else 0
            if futile >= self.job.rounds:
                raise self._failed(merge, _without(merge, done))
            if futile:
                pause(futile)
        return done

    def _failed(self, merge: MergePlan, left: Sequence[int]) -> MergeFailedError:
        folder = merge.files["folder"][left[0]]
        reason = self.errors[-1] if self.errors else "its batches were lost"
        return MergeFailedError(
            f"{len(left):,} of {plural(merge.files.height, 'file')} could not be merged, such as "
            f"one of {folder or 'the output'}: {reason}",
            hint="merged files are kept: run the job again; if workers ran out of memory, with a "
            "smaller output.file_bytes and --replan",
        )

    # -- plan -----------------------------------------------------------------------------------

    def _make_plan(self, progress: Progress) -> MergePlan:
        stored = self._stored()
        done = progress.completions
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
        files, sources = plan_files(slices, self.job.output.file_bytes)
        schema = progress.schemas.get(done["schema"][0], "{}") if done.height else "{}"
        data = MergePlan.pack(partials, files, sources, schema)
        last = self.ledger.last_merge_plan()
        number = last.number + 1 if last is not None else 1
        with suppress(AlreadyExistsError):
            retry_until_available(partial(self.ledger.store_merge_plan, number, data))
        # Another driver may have been faster; its plan counts if its partial results do.
        return merge_plan_of(self.ledger, progress) or self._make_plan(
            retry_until_available(self.ledger.read)
        )

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

    def _refuse_lost(self, merge: MergePlan) -> None:
        lost = merge.partials.filter(~pl.col("uri").is_in(list(self._stored())))
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
