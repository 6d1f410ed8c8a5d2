"""Find the runs and backfills whose driver has died, from storage alone, without Prefect."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Literal

from pipeline.concurrency import map_concurrently
from pipeline.runs.backfill.records import BackfillRecord
from pipeline.runs.backfill.status import state_of
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.heartbeat import AttemptRecord, DriverRecord, Heartbeat, read_driver
from pipeline.runs.driver.session import follow, is_driven_elsewhere
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage

DEAD_SECONDS = 300.0
"""Seconds without a heartbeat after which a driver is reported: what resumes it sooner, such as
Prefect's automations, has had its turn."""
MAX_DEATHS = 3
"""Drivers in a row that died after which no other is started: it would die too."""

Kind = Literal["run", "backfill"]


@dataclass(frozen=True, slots=True)
class DeadDriver:
    """A run or backfill that nobody drives, although it is neither finished nor stopped."""

    kind: Kind
    id: str
    job: str
    output: str
    driver: str
    """Id of the driver."""
    host: str
    seen: float
    """Its last heartbeat, in Unix seconds."""
    page: str | None
    """URL of its flow run in Prefect's UI; None if it was driven without Prefect."""
    deaths: int
    """Number of its drivers, the last ones in a row, that have died."""

    @property
    def command(self) -> str:
        """Command that shows what is left."""
        return f"chunkmap {'' if self.kind == 'run' else 'backfill '}status {self.id}"


def find_dead_drivers(storage: Storage, output: str, now: float | None = None) -> list[DeadDriver]:
    """List the runs and backfills of an output whose driver has died.

    Those that are published, cancelled, paused or interrupted are left out, and of the runs of one
    job all but the newest, which replaces the others.

    Args:
        storage: Where the output is.
        output: URI of the output prefix.
        now: Unix seconds; default now.
    """
    now = time.time() if now is None else now
    newest: dict[str, RunRecord] = {}
    for record in runs_of(storage, output):
        if record.backfill is None:
            newest[record.job] = record  # They come oldest first.
    read_run = partial(_of_run, storage, now)
    read_backfill = partial(_of_backfill, storage, now)
    runs = map_concurrently(read_run, list(newest.values()))
    backfills = map_concurrently(read_backfill, backfills_of(storage, output))
    return [found for found in (*runs, *backfills) if found is not None]


def _of_run(storage: Storage, now: float, record: RunRecord) -> DeadDriver | None:
    if record.output != record.first_output:
        return None  # The first output has the driver's record.
    ledger = Ledger(storage, record.output, record.run)
    driver = read_driver(storage, ledger.prefix)
    if not _is_dead(driver, now) or _reason_of_run(ledger):
        return None
    assert driver is not None, "it is dead"
    return _dead("run", record.run, record, driver)


def _of_backfill(storage: Storage, now: float, record: BackfillRecord) -> DeadDriver | None:
    store = BackfillStore(storage, record.output, record.backfill)
    driver = store.driver()
    if not _is_dead(driver, now) or _reason_of_backfill(store):
        return None
    assert driver is not None, "it is dead"
    return _dead("backfill", record.backfill, record, driver)


def _dead(
    kind: Kind, name: str, record: RunRecord | BackfillRecord, driver: DriverRecord
) -> DeadDriver:
    return DeadDriver(
        kind=kind,
        id=name,
        job=record.job,
        output=record.output,
        driver=driver.driver,
        host=driver.host,
        seen=driver.seen,
        page=driver.flow_run,
        deaths=_deaths(driver.attempts),
    )


def _is_dead(driver: DriverRecord | None, now: float) -> bool:
    """Whether a driver has died long ago."""
    if driver is None or driver.state != "running" or now - driver.seen < DEAD_SECONDS:
        return False
    return not is_driven_elsewhere(driver, "")


def _deaths(attempts: Sequence[AttemptRecord]) -> int:
    """Count the attempts, from the last, that did not record an end."""
    return len(list(takewhile(lambda attempt: attempt.state == "running", reversed(attempts))))


def reason_not_to_resume_run(storage: Storage, ledger: Ledger) -> str:
    """Return why a run needs no other driver; empty if its driver has died.

    While a driver seems alive, this waits for its end, or until its heartbeat expires.

    Args:
        storage: Where the run's state is.
        ledger: Ledger of the run, at the first of its outputs.
    """
    for _ in follow(Heartbeat.of(storage, ledger.prefix)):
        pass
    return _reason_of_run(ledger) or _reason_ended(read_driver(storage, ledger.prefix))


def reason_not_to_resume(store: BackfillStore) -> str:
    """Return why a backfill needs no other driver; empty if its driver has died.

    While a driver seems alive, this waits for its end, or until its heartbeat expires: the driver
    of another machine that has just died seems alive for a minute.
    """
    for _ in follow(Heartbeat.of(store.storage, store.prefix)):
        pass
    driver = store.driver()
    return _reason_ended(driver) or ("" if driver is None else _reason_of_backfill(store))


def _reason_ended(driver: DriverRecord | None) -> str:
    if driver is None or driver.state == "running":
        return ""
    return f"its driver ended ({driver.state})"


def _reason_of_run(ledger: Ledger) -> str:
    if ledger.published() is not None:
        return "it is published"
    return "it was cancelled" if ledger.is_cancelled() else ""


def _reason_of_backfill(store: BackfillStore) -> str:
    control, driver = store.control(), store.driver()
    stored = driver.progress.items() if driver is not None else ()
    counts = {name: value for name, value in stored if isinstance(value, int)}
    if control.paused:
        return "it is paused"
    if control.cancelled:
        return "it is cancelled"
    is_done = bool(counts) and state_of(control, driver, counts, alive=False) == "done"
    return "it is done" if is_done else ""
