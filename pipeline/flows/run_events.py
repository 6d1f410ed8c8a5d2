"""Send events about runs, backfills, ingests, loads and pipelines to the Prefect server.

Automations react to them. The resource of an event is the output's URI; that of a load is its
destination, that of a pipeline the prefix of its state. Events are sent in the background; a run
continues without the server. Their payloads hold figures and messages, never parameters or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import orjson

from pipeline.errors import ChecksFailedError
from pipeline.flows.event_sender import (
    FLUSH_SECONDS,
    Origin,
    current_origin,
    event_sender,
    flush_events,
)
from pipeline.masking import mask
from pipeline.pipelines.summary import PipelineSummary
from pipeline.runs.backfill.summary import BackfillSummary
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.ledger import Ledger
from pipeline.table.errors import CommitsConflictError

if TYPE_CHECKING:
    from pipeline.ingest.run import IngestSummary
    from pipeline.load.records import LoadSummary

    Summary = RunSummary | BackfillSummary | IngestSummary | LoadSummary | PipelineSummary

RUN, BACKFILL, INGEST = "chunkmap.run", "chunkmap.backfill", "chunkmap.ingest"
LOAD, PIPELINE = "chunkmap.load", "chunkmap.pipeline"
EVENT_KINDS = (RUN, BACKFILL, INGEST, LOAD, PIPELINE)
"""Starts of the names of events that tell how something went."""
DEADLINE, SWEEP = "chunkmap.deadline", "chunkmap.sweep"
WATCH_KINDS = (DEADLINE, SWEEP)
"""Starts of the names of events about looking at outputs, which only tell that it failed."""
DIED = "died"
"""End of the names of events about a driver that was killed, which the sweep emits."""
STOPPED = "stopped"
"""End of the name of the event of a pipeline that a stage has ended, which has an event itself."""
WINDOW_PUBLISHED = "chunkmap.window.published"
MAX_LABELS = 100
"""Maximum number of windows that an event names."""
MAX_NOTES, MAX_NOTE = 10, 300
"""Maximum number of notes about a backfill's failure, and their length: the last ones."""
QUARANTINED = "chunkmap.rows.quarantined"
LATE = "chunkmap.output.late"
_REPORTED = "_chunkmap_reported"
"""Attribute of errors that an event has told of."""


def emit(
    event: str,
    output: str,
    payload: Mapping[str, Any],
    origin: Origin | None = None,
    event_id: UUID | None = None,
) -> None:
    """Queue an event about an output.

    Args:
        event: Its name, e.g. `chunkmap.run.completed`.
        output: URI of the output.
        payload: JSON values; secrets in them are masked.
        origin: The flow run; default the current one.
        event_id: Id of the event; default a new one.
    """
    sender = event_sender()
    if sender is None:
        return
    body = {
        "id": str(event_id or uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": output, "prefect.resource.name": output},
        "related": [],
        "payload": mask(payload),
    }
    sender.send(origin or current_origin(), [orjson.dumps(body)])


@contextmanager
def reported(
    kind: str, output: str, payload: Mapping[str, Any]
) -> Iterator[Callable[[Summary], None]]:
    """Emit that something has started, and how it ended.

    Args:
        kind: One of `EVENT_KINDS`.
        output: URI of the output.
        payload: What identifies it: its id and its job. The id may be added in the block.

    Yields:
        A function to call with the summary of one that is complete.
    """
    origin = current_origin()
    emit(f"{kind}.started", output, payload, origin)
    summaries: list[Summary] = []
    try:
        yield summaries.append
    except KeyboardInterrupt:
        emit(f"{kind}.interrupted", output, payload, origin)
        raise
    except Exception as error:
        _emit_end(kind, output, payload, error, origin)
        raise
    for summary in summaries:
        emit(f"{kind}.completed", output, {**payload, **_figures(summary)}, origin)
        if isinstance(summary, RunSummary) and summary.quarantine + summary.rejected:
            found = {"objects": list(summary.quarantine), "rows": list(summary.rejected)}
            more = {**payload, **found, "command": _command(kind, output, payload)}
            emit(QUARANTINED, output, more, origin)


@contextmanager
def failures_reported(kind: str, output: str, payload: Mapping[str, Any]) -> Iterator[None]:
    """Emit that something failed before it has begun, or that an output cannot be read.

    Errors that an event has told of (see `reported`) are passed on. Arguments are as there; the
    kind may also be one of `WATCH_KINDS`.
    """
    try:
        yield
    except Exception as error:
        if not _is_reported(error):
            _emit_end(kind, output, payload, error, current_origin())
            flush_events(FLUSH_SECONDS)
        raise


def _emit_end(
    kind: str, output: str, payload: Mapping[str, Any], error: Exception, origin: Origin
) -> None:
    """Emit the end of something with an error: people are told once of each error."""
    state = STOPPED if _is_reported(error) else getattr(error, "end_state", "failed")
    told = {
        "error": type(error).__name__,
        "message": str(error),
        "hint": getattr(error, "hint", None) or "",
        "notes": _notes(error),
        "command": _command(kind, output, payload),
    }
    emit(f"{kind}.{state}", output, {**payload, **told}, origin)
    setattr(error, _REPORTED, True)


def _is_reported(error: BaseException) -> bool:
    """Whether an event has told of an error, or of its cause."""
    if getattr(error, _REPORTED, False):
        return True
    return error.__cause__ is not None and _is_reported(error.__cause__)


def _notes(error: Exception) -> list[str]:
    """Return which windows of a backfill failed and why, and whether too many did."""
    summary = getattr(error, "summary", None)
    if not isinstance(summary, BackfillSummary):
        return []
    return [note.partition("\n")[0][:MAX_NOTE] for note in summary.notes[-MAX_NOTES:]]


def _command(kind: str, output: str, payload: Mapping[str, Any]) -> str:
    """Return the command that shows more."""
    if kind == RUN:
        return f"chunkmap status {payload.get('run', '')}".rstrip() + f" -o {output}"
    if kind == BACKFILL:
        name = payload.get("backfill")
        return f"chunkmap backfill {f'status {name}' if name else 'list'} -o {output}"
    if kind == PIPELINE:
        return "chunkmap pipeline status FILE.yaml"
    return f"chunkmap history {payload.get('output', output)}"


def reporting_windows(
    publish: Callable[..., int], payload: Mapping[str, Any]
) -> Callable[..., int]:
    """Return a function like `publish_run` that emits an event about the windows it publishes.

    There is one event for all windows of one publish, since the server takes milliseconds for each.

    Args:
        publish: The function.
        payload: What identifies the backfill.
    """
    origin = current_origin()

    def publish_and_emit(storage: Any, ledger: Ledger, *args: Any, **options: Any) -> int:
        windows = list(options.get("windows") or ())
        more = {**payload, "run": ledger.run}
        try:
            manifest = publish(storage, ledger, *args, **options)
        except (CommitsConflictError, ChecksFailedError) as error:
            held = set(error.windows)
            if isinstance(error, CommitsConflictError) and error.refusal is not None:
                held.update(error.refusal.windows)
            published = [label for label in windows if label not in held]
            if published and not options.get("together"):
                emit(WINDOW_PUBLISHED, ledger.output, {**more, **_named(published)}, origin)
            raise
        if windows:
            named = {**more, "manifest": manifest, **_named(windows)}
            emit(WINDOW_PUBLISHED, ledger.output, named, origin)
        return manifest

    return publish_and_emit


def _named(windows: list[str]) -> dict[str, Any]:
    return {"windows": len(windows), "labels": windows[:MAX_LABELS]}


def _figures(summary: Summary) -> dict[str, Any]:
    if isinstance(summary, BackfillSummary):
        return {"windows": summary.todo, "seconds": summary.seconds, **summary.counts}
    if isinstance(summary, PipelineSummary):
        stages = {stage.name: stage.state for stage in summary.stages}
        return {"stages": stages, "seconds": summary.seconds}
    if isinstance(summary, RunSummary):
        return {
            "manifest": summary.manifest,
            "chunks": summary.chunks,
            "rows": summary.rows_out,
            "bytes": summary.bytes_out,
            "seconds": summary.seconds,
            "report": summary.report,
        }
    return {"manifest": summary.manifest, "rows": summary.rows, "seconds": summary.seconds}
