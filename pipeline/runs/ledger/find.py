"""Find the runs of an output, also if some records are damaged."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from pipeline.concurrency import map_concurrently
from pipeline.errors import StateError
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage, join, parse, state_prefix

RECORDS_AT_ONCE = 64
"""Number of records read at a time."""
_RUN_ID = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunsFound:
    """The runs of an output."""

    records: list[RunRecord]
    """Records of the runs, oldest first."""
    damaged: dict[str, StateError]
    """Errors of damaged records, by the name of the run's folder."""


def find_runs(storage: Storage, output: str) -> RunsFound:
    """Read the records of all runs of an output."""
    prefix = join(state_prefix(parse(output).uri), "runs") + "/"
    names = [info.uri.removeprefix(prefix) for info in storage.objects(prefix)]
    # Only directly in a run's folder: workers may write any names into some folders below it.
    parts = (name.partition("/") for name in names)
    runs = [run for run, _, rest in parts if rest == "run.json"]

    def read(run: str) -> RunRecord | StateError:
        try:
            if not _RUN_ID.fullmatch(run):
                raise StateError(f"{prefix}{run}/run.json", f"{run!r} is not the id of a run")
            return Ledger(storage, output, run).record()
        except StateError as error:
            return error

    results = dict(zip(runs, map_concurrently(read, runs, RECORDS_AT_ONCE), strict=True))
    records = [record for record in results.values() if isinstance(record, RunRecord)]
    damaged = {run: error for run, error in results.items() if isinstance(error, StateError)}
    return RunsFound(sorted(records, key=lambda record: record.created), damaged)


def runs_of(storage: Storage, output: str) -> list[RunRecord]:
    """Return the records of an output's runs, oldest first; ignore damaged ones."""
    runs = find_runs(storage, output)
    for error in runs.damaged.values():
        log.warning("%s; this run is ignored", error)
    return runs.records
