"""The ledger of `then`: the plan, completions and failures of pieces of a reduced result.

Its plan is of objects that the last step of the reduce has stored, each a piece with whole groups.
It is stored once; if the pieces are lost later, they are made again, and another plan, with a
higher number, takes its place. Record, job and notes are those of the run.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import ClassVar, Final

from typing_extensions import override

from partitioning import Plan
from pipeline.config.job import Input, Job
from pipeline.config.job_checks import Checks
from pipeline.errors import AlreadyExistsError
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage

FOLDER: Final = "then/"
"""Folder, below a run's prefix, of the plans and completions of pieces."""
_NUMBER: Final = re.compile(r"([0-9]{4,9})/plan\.arrow")
_RUN_URI: Final = re.compile(r"(?s)(.*/runs/[^/]+/)then/([0-9]{4,9})/?")


class ThenLedger(Ledger):
    """Reads and writes the state of `then` in one run."""

    unit: ClassVar[str] = "piece"

    def __init__(self, run: Ledger, number: int) -> None:
        """Name a plan of pieces, without reading anything.

        Args:
            run: Ledger of the run. Attempts that do not count there do not count here either.
            number: Number of the plan, from 1.
        """
        super().__init__(run._storage, run.output, run.run, folder=f"{FOLDER}{number:04d}/")
        self.number = number
        self._run = run
        self._void, self._aside = run._void, run._aside

    @property
    def by(self) -> tuple[str, ...]:
        """Columns of the reduced result whose values make up a group; empty: each row is one."""
        then = self.whole_job().then
        assert then is not None, "only a job with `then` has pieces"
        return then.by

    @override
    def whole_job(self) -> Job:
        """Read the job of the run."""
        return self._run.job()

    @override
    def job(self) -> Job:
        """Read the job of the run as that of a map of `then.function` over the pieces."""
        if self._job is None:
            self._job = job_of_pieces(self.whole_job())
        return self._job

    @override
    def record(self) -> RunRecord:
        """Read the run's record, with the figures of this plan."""
        plan = self.plan()
        figures = {"plan": plan.id, "chunks": len(plan), "rows": plan.rows}
        update = {**figures, "columns": (), "types": (), "transform": self.job().transform}
        return self._run.record().model_copy(update=update)

    def result(self) -> str:
        """Return the URI of the reduced result that the plan is of, with a slash at its end."""
        [uri, *_] = self.plan().table("objects")["uri"].to_pylist()
        return str(uri).rpartition("/")[0] + "/"

    def store_plan(self, plan: Plan) -> None:
        """Store the plan, unless another driver has stored one of this number."""
        with suppress(AlreadyExistsError):
            self._storage.put_new(self.prefix + "plan.arrow", plan.to_bytes())


def job_of_pieces(job: Job) -> Job:
    """Return the job that maps the pieces of a job with `then`."""
    assert job.then is not None, "only a job with `then` maps pieces"
    return job.model_copy(
        update={
            "input": Input(uri=job.input.uri),
            "transform": job.then.function,
            "params": job.then.params,
            "reduce": None,
            "then": None,
            "checks": Checks(run=job.checks.run),  # Rules for rows are those of chunks.
        }
    )


def last_then(run: Ledger) -> ThenLedger | None:
    """Return the newest plan of pieces of a run; None if there is none."""
    folder = run.prefix + FOLDER
    names = (info.uri.removeprefix(folder) for info in run._storage.objects(folder))
    numbers = [int(match[1]) for name in names if (match := _NUMBER.fullmatch(name))]
    return ThenLedger(run, max(numbers)) if numbers else None


def open_ledger(storage: Storage, run_uri: str) -> Ledger:
    """Open the ledger of a run, or of the pieces of its `then`, by the URI of its state."""
    match = _RUN_URI.fullmatch(run_uri)
    if match is None:
        return Ledger.open(storage, run_uri)
    return ThenLedger(Ledger.open(storage, match[1]), int(match[2]))
