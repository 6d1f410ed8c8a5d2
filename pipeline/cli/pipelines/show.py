"""Show what a pipeline would run, and its runs: `chunkmap pipeline plan` and `status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.output import columns, out, print_json, say
from pipeline.cli.pipelines.run import Request
from pipeline.config.pipeline_file import read_pipeline
from pipeline.config.settings import load_settings

if TYPE_CHECKING:
    from pipeline.pipelines.driver import PipelineOptions
    from pipeline.pipelines.state import PipelineRecord


def plan(request: Request, chosen: PipelineOptions, *, as_json: bool) -> None:
    """Show which stages would run."""
    source, settings = request.read(), load_settings(request.environment)
    pipeline = source.resolve(request.values(source))
    from pipeline.pipelines.preview import preview_stages
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    with explain_unreachable_s3(settings):
        plans = preview_stages(pipeline, settings, open_storage(settings), chosen)
    if as_json:
        print_json(
            {"pipeline": pipeline.name, "run": pipeline.run, "stages": [asdict(p) for p in plans]}
        )
        return
    label = f" · {pipeline.label}" if pipeline.label else ""
    say(f"{pipeline.name} · run {pipeline.run}{label} (nothing was written)", mark="[bold]")
    rows = [(p.name, f"{p.kind} {p.source}", p.action, p.reason) for p in plans]
    out.print(columns(("stage", "does", "plan", "why"), rows))


def status(
    path: Path, environment: str | None, *, changes: Sequence[str], limit: int, as_json: bool
) -> None:
    """Show the runs of a pipeline, newest first."""
    source, settings = read_pipeline(path, changes), load_settings(environment)
    from pipeline.pipelines.state import PipelineStore
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    with explain_unreachable_s3(settings):
        records = PipelineStore.of(open_storage(settings), source.file.state).all()
    records.sort(key=lambda record: record.updated, reverse=True)
    records = [r for r in records if r.pipeline == source.file.name][:limit]
    if as_json:
        shown = [{**r.model_dump(exclude={"writer"}), "state": r.state} for r in records]
        print_json({"pipeline": source.file.name, "runs": shown})
        return
    if not records:
        say(f"{source.file.name} has not been run (its notes are in {source.file.state})")
        return
    rows = [
        (
            record.run,
            ", ".join(f"{name} {value}" for name, value in record.parameters.items()),
            record.state,
            ", ".join(_stages(record)),
            f"{datetime.fromtimestamp(record.updated, UTC):%Y-%m-%d %H:%M}",
        )
        for record in records
    ]
    out.print(columns(("run", "parameters", "state", "stages", "updated (UTC)"), rows))


def _stages(record: PipelineRecord) -> list[str]:
    return [
        f"{name} {note.state if note.attempt == record.attempt else 'not yet'}"
        for name in record.names
        if (note := record.stages.get(name)) is not None
    ]
