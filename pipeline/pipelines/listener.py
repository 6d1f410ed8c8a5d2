"""Hear how far a pipeline is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.ingest.run import IngestProgress
    from pipeline.load.records import LoadProgress
    from pipeline.pipelines.summary import StageResult
    from pipeline.runs.driver.summary import MapProgress


class PipelineListener:
    """Hears how far a pipeline is; this one ignores it."""

    def begin(self, name: str, kind: str, source: str) -> None:
        """Hear that a stage begins."""

    def ingesting(self, progress: IngestProgress) -> None:
        """Hear how far an ingest is."""

    def mapping(self, phase: str, progress: MapProgress | None) -> None:
        """Hear how far a run is."""

    def loading(self, progress: LoadProgress) -> None:
        """Hear how far a load is."""

    def end(self, result: StageResult) -> None:
        """Hear what a stage has done."""
