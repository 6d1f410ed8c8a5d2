"""List the runs and backfills of outputs, and find a run by its id, from storage alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from pipeline.concurrency import map_concurrently
from pipeline.errors import StateError, UsageError
from pipeline.report.humanize import short_instant
from pipeline.runs.admin.status import RunStatus, damaged_run, status_of
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.backfill.status import state_of
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.session import is_driven_elsewhere
from pipeline.runs.ledger.find import find_runs
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage, parse

LAST = "last"
"""Name of the newest run; it cannot be an id, since ids are hex digits."""
MAX_NAMED = 5
"""Maximum number of ids in an error."""
STATES = (
    *("done", "expired", "failed", "running", "silent", "interrupted", "cancelled", "new"),
    *("damaged", "waiting", "paused", "cancelling", "held"),
)
"""States of runs, then those of backfills and their runs."""


@dataclass(frozen=True, slots=True)
class BackfillBrief:
    """Status of a backfill as its driver saved it last, without counting windows."""

    backfill: str
    job: str
    output: str
    asked: str
    """Description of the requested windows."""
    state: str
    windows: int
    """Windows to do."""
    windows_done: int
    windows_failed: int
    chunks: int
    chunks_done: int
    chunks_failed: int
    rows_out: int
    created: float
    """Time of creation, in Unix seconds."""


def brief_of(storage: Storage, record: BackfillRecord) -> BackfillBrief:
    """Summarise a backfill from its driver's last heartbeat."""
    store = BackfillStore(storage, record.output, record.backfill)
    driver = store.driver()
    counts = {"waiting": record.todo} if driver is None or not driver.progress else driver.progress
    return BackfillBrief(
        backfill=record.backfill,
        job=record.job,
        output=record.output,
        asked=record.asked,
        state=state_of(store.control(), driver, counts, alive=is_driven_elsewhere(driver, "")),
        windows=record.todo,
        windows_done=counts.get("done", 0),
        windows_failed=counts.get("failed", 0),
        chunks=record.chunks,
        chunks_done=counts.get("chunks_done", 0),
        chunks_failed=counts.get("chunks_failed", 0),
        rows_out=counts.get("rows_out", 0),
        created=record.created,
    )


Entry = RunStatus | BackfillBrief


@dataclass(frozen=True, slots=True)
class Listing:
    """Runs and backfills, the newest first; damaged runs, whose age is unknown, come last."""

    entries: tuple[Entry, ...]
    more: int
    """Number of older ones that were not looked at."""


class KnownRuns:
    """The runs and backfills of some outputs."""

    def __init__(self, storage: Storage, outputs: Sequence[str]) -> None:
        """Read the records of all runs and backfills."""
        self.storage = storage
        self._runs = map_concurrently(lambda uri: find_runs(storage, uri), outputs)
        self._damaged = [
            (parse(uri).uri.rstrip("/") + "/", run, error)
            for uri, runs in zip(outputs, self._runs, strict=True)
            for run, error in runs.damaged.items()
        ]
        backfills = map_concurrently(lambda uri: backfills_of(storage, uri), outputs)
        self._backfills = {record.backfill: record for some in backfills for record in some}
        self._briefs: dict[str, BackfillBrief] = {}

    @property
    def records(self) -> list[RunRecord]:
        """Records of the runs, the newest first; damaged ones are left out."""
        records = [record for runs in self._runs for record in runs.records]
        return sorted(records, key=lambda record: record.created, reverse=True)

    def newest(self, limit: int, states: Collection[str] = ()) -> Listing:
        """List the newest runs and backfills; a backfill stands for its runs.

        Args:
            limit: Maximum number of entries.
            states: States to list; default all.
        """
        apart = [record for record in self.records if record.backfill not in self._backfills]
        records: list[RunRecord | BackfillRecord] = [*apart, *self._backfills.values()]
        records.sort(key=lambda record: record.created, reverse=True)
        return self._listing(records, limit, states)

    def all(self, states: Collection[str] = ()) -> Listing:
        """List all runs, also those of backfills."""
        records = self.records
        return self._listing(records, len(records), states)

    def _listing(
        self, records: Sequence[RunRecord | BackfillRecord], limit: int, states: Collection[str]
    ) -> Listing:
        """Read the status of the newest until there are enough in these states."""
        entries: list[Entry] = []
        at = 0
        while at < len(records) and len(entries) < limit:
            block = records[at : at + limit - len(entries)]
            entries += [
                entry
                for entry in map_concurrently(self._entry, block)
                if not states or entry.state.partition(" ")[0] in states
            ]
            at += len(block)
        damaged = self._damaged if not states or "damaged" in states else []
        shown = [damaged_run(run, output, error) for output, run, error in damaged]
        return Listing((*entries, *shown), len(records) - at)

    def _entry(self, record: RunRecord | BackfillRecord) -> Entry:
        if isinstance(record, BackfillRecord):
            return brief_of(self.storage, record)
        return self.status(record)

    def status(self, record: RunRecord) -> RunStatus:
        """Read the status of a run. A backfill drives its runs, so it gives them their state."""
        status = status_of(self.storage, record)
        backfill = self._backfills.get(record.backfill or "")
        if status.state != "new" or backfill is None:
            return status
        if backfill.backfill not in self._briefs:
            self._briefs[backfill.backfill] = brief_of(self.storage, backfill)
        state = self._briefs[backfill.backfill].state
        if state == "running" and not status.done:
            state = "waiting"
        driver = f"that of backfill {backfill.backfill}"
        return replace(status, state=state, driver=driver)

    def find(self, wanted: str) -> RunStatus:
        """Find a run by the first letters of its id, or the newest by the name `last`.

        Raises:
            UsageError: There is none, or more than one.
        """
        output, run, record = self._find(wanted)
        if isinstance(record, StateError):
            return damaged_run(run, output, record)
        return self.status(record)

    def ledger(self, wanted: str) -> Ledger:
        """Find the ledger of a run (see `find`), whose record may be damaged."""
        output, run, _ = self._find(wanted)
        return Ledger(self.storage, output, run)

    def _find(self, wanted: str) -> tuple[str, str, RunRecord | StateError]:
        records = self.records
        if wanted == LAST and records:
            return self._of_first_output(records[0])
        # A run of several outputs has a record at each of them.
        matches = list({r.run: r for r in records if r.run.startswith(wanted)}.values())
        damaged = [found for found in self._damaged if found[1].startswith(wanted)]
        if len(matches) + len(damaged) == 1:
            return damaged[0] if damaged else self._of_first_output(matches[0])
        names = [*map(_named, matches), *(f"{run} (damaged)" for _, run, _ in damaged)]
        if not names:
            raise self._none(wanted)
        rest = len(names) - MAX_NAMED
        raise UsageError(
            f"{len(names)} runs start with {wanted!r}: {', '.join(names[:MAX_NAMED])}"
            + (f" and {rest:,} older ones" if rest > 0 else ""),
            hint="type more letters of the id",
        )

    def _of_first_output(self, record: RunRecord) -> tuple[str, str, RunRecord]:
        """Return a run's record at the first of its outputs."""
        if record.output != record.first_output:
            record = Ledger(self.storage, record.first_output, record.run).record()
        return record.output, record.run, record

    def _none(self, wanted: str) -> UsageError:
        for backfill in self._backfills:
            if wanted and backfill.startswith(wanted):
                return UsageError(
                    f"{wanted!r} is a backfill, not a run",
                    hint=f"chunkmap backfill status {backfill}",
                )
        ids = [record.run for record in self.records]
        near = get_close_matches(wanted, ids, 1, 0.5)
        if near:
            return UsageError(f"there is no run {wanted!r}", hint=f"did you mean {near[0]}?")
        newest = ", ".join(map(_named, self.records[:3])) or "none"
        return UsageError(f"there is no run {wanted!r}", hint=f"the newest runs are: {newest}")


def _named(record: RunRecord) -> str:
    return f"{record.run} ({record.job}, {short_instant(record.created)} UTC)"
