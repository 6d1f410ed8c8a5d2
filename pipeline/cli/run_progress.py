"""Show the progress of a run: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli.progress_bar import LiveBar
from pipeline.report.humanize import byte_rate, byte_size, duration, plural

if TYPE_CHECKING:
    from pipeline.runs.driver.plan import PreparedRun
    from pipeline.runs.driver.summary import MapProgress


WAITS = {
    "plan": "listing the input, reading footers",
    "start": "loading Prefect and Dask, connecting to both",
    "workers": "starting Dask workers on this machine",
    "check": "checking the result",
    "reduce": "combining the chunks' results",
    "then": "planning the groups of the reduced result",
    "merge": "merging the chunks' results into files",
    "publish": "making the files visible",
    "report": "writing the report",
}
"""What is waited for in each phase without a progress of its own."""


class Display(LiveBar):
    """Shows the phases of a run and the progress of its map stage."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet)
        self._phase = ""
        self._watched = False
        self._first: MapProgress | None = None
        self._first_group: MapProgress | None = None
        self._now: MapProgress | None = None

    @property
    def watched(self) -> bool:
        """Whether another process drove the run for a while."""
        return self._watched

    @property
    def bytes_in(self) -> int:
        """Bytes read since this display began, without those of earlier attempts."""
        return self._now.bytes_in - self._first.bytes_in if self._now and self._first else 0

    def phase(self, name: str) -> None:
        """Show the phase that begins."""
        if name == self._phase:
            return
        self._phase = name
        self.settle()
        what = WAITS.get(name, "")
        self.begin(name, what)
        if name == "attached":
            self._watched = True
            self._first = None
            self.line("another process drives this run: watching it (--take-over takes over)")
        elif not self.is_drawn:
            self.line(f"{name} … {what}".rstrip())

    def planned(self, run: PreparedRun) -> None:
        """Show what is going to be mapped."""
        plan, verb = run.plan, "planned" if run.is_new else "found"
        self.line(
            f"{verb} run {run.ledger.run}: {plural(plan.objects, 'object')}, {plan.rows:,} rows in "
            f"{plural(len(plan), 'chunk')}, {byte_size(plan.decoded_bytes)} decoded"
        )

    def mapping(self, now: MapProgress, phase: str = "map") -> None:
        """Show the progress of the map stage, or of that over groups."""
        if phase == "then":
            first = self._first_group = self._first_group or now
        else:
            self._now = now
            first = self._first = self._first or now
        counted = f"{now.done:,}/{plural(now.chunks, now.unit)}"
        self.draw(phase, counted, (now.done, now.chunks), _rest(now, first), now.errors)


def _rest(now: MapProgress, first: MapProgress) -> str:
    """Format failures, speeds and ETA; speeds count only what was done since `first`."""
    seconds = max(now.seconds - first.seconds, 1e-3)
    done = now.done - first.done
    failed = f"{now.failed:,} failed, " if now.failed else ""
    if not done:
        return f"{failed}ETA unknown yet" if now.done < now.chunks else f"{failed}ETA 0 s"
    eta = duration((now.chunks - now.done) * seconds / done)
    return (
        f"{failed}{(now.rows_in - first.rows_in) / seconds:,.0f} rows/s, "
        f"{byte_rate((now.bytes_in - first.bytes_in) / seconds)}, ETA {eta}"
    )
