"""Read the status of a backfill from storage alone, without Prefect or Dask.

A driver saves the windows' progress every few seconds, and when it ends (`progress.arrow`). If it
was killed, windows are counted again: published ones from the manifests, the others from the
ledgers of the runs that had been started.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.quality.results import CheckResult, refused
from pipeline.report.backfill_model import BackfillFailure
from pipeline.report.humanize import clock_time
from pipeline.runs.backfill.progress import WindowProgress
from pipeline.runs.backfill.records import BackfillRecord, Control
from pipeline.runs.backfill.recount import LedgerCache, Recount
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.driver.heartbeat import DriverRecord
from pipeline.runs.driver.session import is_driven_elsewhere
from pipeline.runs.driver.summary import failure_kinds
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import FAILURES

MAX_LEDGERS_READ = 20
"""Maximum number of runs whose failures are read for the table of errors."""
MAX_REFUSED_READ = 20
"""Maximum number of refused windows whose checks are read."""


@dataclass(frozen=True, slots=True, eq=False)
class BackfillStatus:
    """Status of one backfill."""

    record: BackfillRecord
    control: Control
    state: str
    """State: new, running, paused, cancelling, silent since …, interrupted, held, failed, cancelled
    or done."""
    driver: DriverRecord | None
    """Record of the last driver."""
    alive: bool
    """Whether a driver is running now."""
    at: float
    """Time of the figures, in Unix seconds."""
    windows: pl.DataFrame
    """Windows (schemas WINDOWS and PROGRESS), one row each, in the order of time."""
    counts: dict[str, int]
    """Windows by state; chunks, chunks_done, chunks_failed, rows and bytes."""
    rows_per_second: float | None
    """Rows read per second since the driver began; None if nothing is done yet."""
    bytes_per_second: float | None
    """Bytes read per second since the driver began; None if nothing is done yet."""
    eta_seconds: float | None
    """Seconds until all is mapped, at this speed; None if unknown, or no driver is running."""
    errors: tuple[BackfillFailure, ...]
    """Kinds of failures, the most frequent first."""
    reasons: Mapping[str, str]
    """Error of a failed chunk of each window that has some, by label."""
    refused: Mapping[str, tuple[CheckResult, ...]]
    """Checks that refuse windows, by the window's label; of at most MAX_REFUSED_READ windows."""
    errors_of: int
    """Number of runs whose failures were read."""
    errors_in: int
    """Number of runs that have failures."""

    @property
    def who(self) -> str:
        """Description of the driver."""
        driver = self.driver
        return f"process {driver.pid} on {driver.host}" if driver else "none yet"

    @property
    def todo(self) -> int:
        """Number of windows that were to be done."""
        return self.record.todo

    @property
    def next_command(self) -> str:
        """Command to type next; empty while a driver runs, and when the backfill is over."""
        if self.state != "paused" and (self.alive or self.state in ("done", "cancelled")):
            return ""
        verb = "retry" if self.state == "failed" else "resume"
        record = self.record
        return f"chunkmap backfill {verb} {record.backfill} --output {shlex.quote(record.output)}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "backfill": self.record.backfill,
            "state": self.state,
            "record": self.record.model_dump(),
            "control": self.control.model_dump(),
            "driver": self.driver.model_dump() if self.driver else None,
            "alive": self.alive,
            "at": self.at,
            "counts": self.counts,
            "rows_per_second": self.rows_per_second,
            "bytes_per_second": self.bytes_per_second,
            "eta_seconds": self.eta_seconds,
            "errors": [asdict(error) for error in self.errors],
            "errors_of": self.errors_of,
            "errors_in": self.errors_in,
            "reasons": dict(self.reasons),
            "refused": {
                label: [result.model_dump(mode="json") for result in results]
                for label, results in self.refused.items()
            },
            "next_command": self.next_command,
            "windows": self.windows.to_dicts(),
        }


def read_status(store: BackfillStore) -> BackfillStatus:
    """Read the current status of a backfill."""
    with ThreadPoolExecutor(5) as pool:
        parts = [
            pool.submit(part) for part in (store.record, store.control, store.driver, store.windows)
        ]
        stored = pool.submit(store.progress)
        record, control, driver, windows = (part.result() for part in parts)
        progress = stored.result()
    assert isinstance(record, BackfillRecord) and isinstance(control, Control)
    assert isinstance(windows, pl.DataFrame)
    assert driver is None or isinstance(driver, DriverRecord)
    alive = is_driven_elsewhere(driver, "")
    window_progress = WindowProgress(windows)
    if progress is not None:
        window_progress.restore(progress)
    ledgers = LedgerCache(store)
    # A driver that ended properly has saved the windows' progress.
    if not alive and (progress is None or driver is None or driver.state == "running"):
        recount = Recount(ledgers, record, windows, window_progress)
        recount.recount(driver if progress is not None else None)
    joined = windows.join(window_progress.frame(), on="label", how="left", maintain_order="left")
    failing = _failing(joined)
    failures = _failures(ledgers, failing[:MAX_LEDGERS_READ])
    by_checks = _refused(store, joined)
    at = driver.seen if alive and driver is not None else time.time()
    speed = _speed(joined, driver, at)
    return BackfillStatus(
        record=record,
        control=control,
        state=state_of(control, driver, window_progress.counts(), alive=alive),
        driver=driver,
        alive=alive,
        at=at,
        windows=joined,
        counts=window_progress.counts(),
        rows_per_second=speed.rows if speed else None,
        bytes_per_second=speed.bytes if speed else None,
        eta_seconds=speed.eta if speed and alive and not control.paused else None,
        errors=_errors(failures),
        reasons=_reasons(failures) | _refusals(by_checks),
        refused=by_checks,
        errors_of=len(failing[:MAX_LEDGERS_READ]),
        errors_in=len(failing),
    )


def state_of(
    control: Control, driver: DriverRecord | None, counts: dict[str, int], *, alive: bool
) -> str:
    """Return a backfill's state in one word, or `silent since …`."""
    if alive:
        if control.cancelled:
            return "cancelling"
        return "paused" if control.paused else "running"
    left = sum(counts.get(state, 0) for state in ("waiting", "mapping", "staged", "failed"))
    if driver is not None and not left:
        return "done"
    if control.cancelled:
        return "cancelled"
    if driver is None:
        return "new"
    if driver.state == "running":
        return f"silent since {clock_time(driver.seen)}"
    # It was done and something is left: its windows were replaced or rolled back since.
    return "failed" if driver.state == "done" else driver.state


def _failing(joined: pl.DataFrame) -> list[str]:
    """List the runs that have failures, those with most first."""
    failed = joined.filter((pl.col("failed") > 0) & pl.col("run").is_not_null())
    counted = failed.group_by("run", maintain_order=True).agg(pl.col("failed").sum())
    ordered = counted.sort("failed", descending=True, maintain_order=True)
    return ordered["run"].to_list()


def _failures(ledgers: LedgerCache, runs: Sequence[str]) -> pl.DataFrame:
    """Return the failed chunks of some runs (schema FAILURES), with their `window`."""
    frames = [FAILURES.to_frame().with_columns(window=pl.lit(None, pl.String))]
    for run, progress in ledgers.read(runs).items():
        failed = progress.failed() if progress is not None else None
        if failed is None or failed.is_empty():
            continue
        windows = ledgers.windows_of(run)
        label = pl.Series([windows[index] for index in failed["index"].to_list()])
        frames.append(failed.with_columns(window=label))
    return pl.concat(frames)


def _reasons(failures: pl.DataFrame) -> dict[str, str]:
    """Return the error of the first failed chunk of each window."""
    first = failures.unique("window", keep="first", maintain_order=True)
    return {
        label: f"{error}: {message.partition(chr(10))[0]}"
        for label, error, message in first.select("window", "error", "message").iter_rows()
    }


def _refused(store: BackfillStore, joined: pl.DataFrame) -> dict[str, tuple[CheckResult, ...]]:
    """Read which checks refuse the windows that have failed without a failed chunk."""
    is_mapped = (pl.col("done") == pl.col("chunks")) & (pl.col("failed") == 0)
    held = joined.filter((pl.col("state") == "failed") & is_mapped & pl.col("run").is_not_null())

    def read(row: tuple[str, str]) -> list[CheckResult]:
        label, run = row
        return refused(Ledger(store.storage, store.output, run).check_results(label))

    rows = held.select("label", "run").head(MAX_REFUSED_READ).rows()
    results = zip(rows, map_concurrently(read, rows), strict=True)
    return {label: tuple(found) for (label, _), found in results if found}


def _refusals(by_window: Mapping[str, Sequence[CheckResult]]) -> dict[str, str]:
    """Return the reason why checks refuse each window."""
    return {
        label: "ChecksFailedError: " + "; ".join(result.line for result in results)
        for label, results in by_window.items()
    }


def _errors(failures: pl.DataFrame) -> tuple[BackfillFailure, ...]:
    """Group failures by error and message."""
    if failures.is_empty():
        return ()
    kinds = failure_kinds(failures, pl.col("window").n_unique().alias("windows"))
    names = [field.name for field in fields(BackfillFailure)]
    return tuple(
        BackfillFailure(**{name: row[name] for name in names})
        for row in kinds.iter_rows(named=True)
    )


@dataclass(frozen=True, slots=True)
class _Speed:
    rows: float
    bytes: float
    eta: float | None


def _speed(joined: pl.DataFrame, driver: DriverRecord | None, at: float) -> _Speed | None:
    """Measure the speed since the driver began; of windows begun before, count the share since."""
    if driver is None:
        return None
    mine = joined.filter(pl.col("ended") > driver.started)
    if mine.is_empty():
        return None
    length = (pl.col("ended") - pl.col("started")).clip(1e-3)
    since = pl.max_horizontal("started", pl.lit(driver.started))
    share = ((pl.col("ended") - since) / length).clip(0.0, 1.0)
    part = pl.col("decoded_bytes") / pl.col("chunks").clip(1)
    done, left = pl.col("done") * part, (pl.col("chunks") - pl.col("done")) * part
    sums = mine.select(
        rows=(pl.col("rows_in") * share).sum(),
        bytes=(pl.col("bytes_in") * share).sum(),
        done=(done * share).sum(),
    ).row(0, named=True)
    # Measure until the last chunk if the driver has ended, otherwise until now.
    until = at if driver.state == "running" else float(mine["ended"].max() or at)  # type: ignore[arg-type]
    seconds = max(min(until, driver.seen + 60.0) - driver.started, 1e-3)
    rest = float(joined.filter(pl.col("run").is_not_null()).select(left.sum()).item())
    eta = rest * seconds / sums["done"] if sums["done"] else None
    return _Speed(sums["rows"] / seconds, sums["bytes"] / seconds, eta)
