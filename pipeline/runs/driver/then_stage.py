"""Map a function over the groups of a reduced result (`then`): plan its pieces, map, read results.

The last step of the reduce stores its result in pieces with whole groups. They are planned like an
input, the plan is stored once, and the pieces are mapped like chunks, with a ledger of their own:
what is left is that plan minus its completions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import polars as pl

from partitioning import BadObjectsError, NoParquetError, Plan, PlanRequest, plan_dataset
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.report.humanize import plural
from pipeline.report.run_text import groups_text
from pipeline.runs.driver.executor import Executor
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.reduce_stage import last_step, reduced_of, without_partial
from pipeline.runs.driver.schemas import check_schemas, drop_retyped, output_facts
from pipeline.runs.driver.summary import MapProgress, ThenFigures
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.ledger.then import ThenLedger, job_of_pieces, last_then
from pipeline.storage import Storage, StorageReader
from pipeline.storage.outages import retry_until_available
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.log import TableLog

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a reduced result, and what is done of them."""

    ledger: ThenLedger
    plan: Plan
    progress: Progress
    stopped: str = ""
    """Reason why mapping them stopped early, if this driver has mapped them and it did."""

    @property
    def left(self) -> int:
        """Number of pieces that are not mapped."""
        return len(self.plan) - self.progress.completions.height

    @property
    def figures(self) -> ThenFigures:
        """How far they are mapped."""
        done = self.progress.completions
        return ThenFigures(
            pieces=len(self.plan),
            done=done.height,
            failed=self.progress.failed().height,
            rows_in=int(done["rows_in"].sum()),
            rows_out=int(done["rows_out"].sum()),
        )


def pieces_of(run: Ledger, progress: Progress) -> Pieces | None:
    """Read the plan of pieces that counts, and its completions; None if there is none.

    It is the newest, if it is of a reduced result that still counts.
    """
    return _counted(run, last_then(run), progress)


def _counted(run: Ledger, ledger: ThenLedger | None, progress: Progress) -> Pieces | None:
    if ledger is None:
        return None
    counted = progress.reduced.filter(pl.col("chunk") == last_step(run, progress))
    if ledger.result() not in counted["uri"].to_list():
        return None
    return Pieces(ledger, ledger.plan(), drop_retyped(ledger, ledger.read()))


def then_results(run: Ledger, progress: Progress) -> tuple[Progress, pl.DataFrame]:
    """Return the progress of a run whose pieces are all mapped, and their completions.

    Raises:
        UsageError: some are not.
        SchemaChangedError: results of pieces have different columns.
    """
    if progress.completions.is_empty():
        return progress, progress.completions  # A plan without chunks.
    pieces = pieces_of(run, progress)
    if pieces is None or pieces.left:
        left = "its groups are not mapped yet"
        if pieces is not None:
            left = f"{pieces.left:,} of {plural(len(pieces.plan), 'piece')} are not mapped"
        raise UsageError(
            f"run {run.run} cannot be published: {left} (then)",
            hint=f"map what is left: chunkmap retry {run.run}",
        )
    own = pieces.progress
    check_schemas(own, unit=pieces.ledger.unit)
    # Those of earlier plans are aborted when the run is published.
    former = [ThenLedger(run, number).read() for number in range(1, pieces.ledger.number)]
    attempts = [part for each in (own, *former) for part in (each.completions, each.duplicates)]
    whole = replace(
        progress,
        merged=pl.concat(attempts),
        schemas={**progress.schemas, **own.schemas},
        problems=(*progress.problems, *own.problems),
    )
    return whole, own.completions


@dataclass(frozen=True, slots=True)
class ThenStage:
    """Maps the groups of the reduced result of one run."""

    storage: Storage
    ledger: Ledger
    job: Job
    """The job of the run; what may change when a run is resumed holds as it is here."""
    settings: Settings
    executor: Callable[[str], Executor]
    """Returns the executor of the batches of a ledger, by the URI of its state."""
    listen: Callable[[MapProgress], None] = lambda _: None
    only_failed: bool = False
    """Whether to map only pieces that failed before, if there are any."""

    def run(self) -> Pieces:
        """Map until no piece is left, the rounds are used up, or only final failures remain.

        Raises:
            UploadsVanishedError: pieces are lost; the reduce must be done again.
        """
        pieces = self._pieces()
        if pieces.left:
            pieces.ledger.know(pieces.plan, pieces.ledger.job())
            stage = self._map_stage(pieces)
            done = drop_retyped(pieces.ledger, stage.run())
            pieces = replace(pieces, progress=done, stopped=stage.stopped)
        return pieces

    def _map_stage(self, pieces: Pieces) -> MapStage:
        ledger, job = pieces.ledger, job_of_pieces(self.job)
        has_failed = pieces.progress.failed().height > 0
        table_log = TableLog(self.storage, ledger.output)
        return MapStage(
            ledger=ledger,
            plan=pieces.plan,
            job=job,
            limits=self.settings.batches,
            executor=self.executor(ledger.prefix),
            listen=self.listen,
            only_failed=self.only_failed and has_failed,
            output=output_facts(job, ledger.record(), table_log),
        )

    # -- plan -----------------------------------------------------------------------------------

    def _pieces(self) -> Pieces:
        """Find the plan of pieces, or store one; another driver may be faster."""
        while True:
            last = retry_until_available(partial(last_then, self.ledger))
            # A plan is stored after the completion of its reduced result, so this read has it.
            progress = drop_retyped(self.ledger, retry_until_available(self.ledger.read))
            pieces = retry_until_available(partial(_counted, self.ledger, last, progress))
            if pieces is not None:
                self._refuse_lost(pieces, progress)
                return pieces
            self._store_plan(1 if last is None else last.number + 1, progress)

    def _store_plan(self, number: int, progress: Progress) -> None:
        reduced = reduced_of(self.ledger, progress)
        plan = self._planned(str(reduced["uri"][0]))
        if plan is None or plan.rows != reduced["rows_out"][0]:
            raise self._lost(reduced["attempt"].to_list(), progress)
        retry_until_available(partial(ThenLedger(self.ledger, number).store_plan, plan))

    def _planned(self, uri: str) -> Plan | None:
        """Plan the pieces of a reduced result; None if they are lost."""
        limits = self.settings.planner
        request = PlanRequest(
            uri=(uri,),
            per_file=True,
            footer_concurrency=limits.footer_concurrency,
            footer_limit=limits.footer_limit,
        )
        try:
            return retry_until_available(
                lambda: plan_dataset(request, StorageReader(self.storage)).plan
            )
        except (NoParquetError, BadObjectsError) as error:
            log.warning("the reduced result is made again: %s", error)
            return None

    def _refuse_lost(self, pieces: Pieces, progress: Progress) -> None:
        """Refuse pieces that are left, but no longer stored as they were planned."""
        if not pieces.left:
            return
        uri = pieces.ledger.result()
        listed = retry_until_available(partial(self.storage.objects, uri))
        stored = {(info.uri, info.etag) for info in listed}
        objects = pieces.plan.table("objects")
        planned = zip(objects["uri"].to_pylist(), objects["etag"].to_pylist(), strict=True)
        if not stored.issuperset(planned):
            own = progress.reduced.filter(pl.col("uri") == uri)
            raise self._lost(own["attempt"].to_list(), progress)

    def _lost(self, attempts: list[str], progress: Progress) -> UploadsVanishedError:
        """Return the error that these attempts at the reduce, and partials that it needs, are lost.

        All at once: each such error costs one of the attempts to publish.
        """
        return UploadsVanishedError(
            [*attempts, *without_partial(self.storage, self.ledger, progress)]
        )


def then_text(job: Job) -> str:
    """Describe what is mapped over the groups of a job's reduced result; empty if nothing is."""
    then = job.then
    if then is None:
        return ""
    most = f", at most {plural(then.max_groups, 'group')} per file" if then.max_groups else ""
    return f"{then.function} {groups_text(then.by)}{most}"
