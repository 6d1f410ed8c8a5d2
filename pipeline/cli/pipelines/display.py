"""Show the progress of a pipeline: the display of the stage that runs, and a line per stage."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from pipeline.cli.ingest import IngestDisplay
from pipeline.cli.load import LoadDisplay
from pipeline.cli.output import notes, say
from pipeline.cli.progress_bar import LiveBar
from pipeline.cli.run_progress import Display
from pipeline.pipelines.listener import PipelineListener
from pipeline.processes import was_interrupted
from pipeline.report.humanize import duration, plural

if TYPE_CHECKING:
    from pipeline.ingest.run import IngestProgress
    from pipeline.load.records import LoadProgress
    from pipeline.pipelines.summary import StageResult
    from pipeline.runs.driver.summary import MapProgress

_BARS = {"ingest": IngestDisplay, "map": Display, "load": LoadDisplay}


class PipelineDisplay(PipelineListener):
    """Shows how far a pipeline is, for as long as its `with` block lasts."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: LiveBar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.__exit__(None, None, None)

    def stopping(self) -> None:
        """Tell that Ctrl-C was noticed."""
        if self._bar is not None:
            self._bar.stopping()

    @override
    def begin(self, name: str, kind: str, source: str) -> None:
        self._raise_interrupt()
        self._close()
        self._bar = _BARS.get(kind, LiveBar)(self._quiet).__enter__()
        self._bar.begin(name, f"{kind} {source}")

    @override
    def ingesting(self, progress: IngestProgress) -> None:
        self._raise_interrupt()
        if isinstance(self._bar, IngestDisplay):
            self._bar.show(progress)

    @override
    def mapping(self, phase: str, progress: MapProgress | None) -> None:
        self._raise_interrupt()
        if isinstance(self._bar, Display):
            self._bar.phase(phase)
            if progress is not None:
                self._bar.mapping(progress, "then" if phase == "then" else "map")

    @override
    def loading(self, progress: LoadProgress) -> None:
        if isinstance(self._bar, LoadDisplay):
            self._bar.loading(progress)

    @override
    def end(self, result: StageResult) -> None:
        self._close()
        if not self._quiet:
            reason = f" ({result.reason})" if result.reason and result.state != "failed" else ""
            took = f" in {duration(result.seconds)}" if result.state == "done" else ""
            say(f"{result_line(result)}{took}{reason}", console=notes)

    def _raise_interrupt(self) -> None:
        if was_interrupted():
            raise KeyboardInterrupt  # A library swallowed the first one.


def result_line(result: StageResult) -> str:
    """Say in a few words what a stage has done."""
    has_rows = result.published and result.state in ("done", "unchanged")
    rows = f", {plural(result.rows, 'row')}" if has_rows else ""
    return f"{result.name} {result.state}{rows}"
