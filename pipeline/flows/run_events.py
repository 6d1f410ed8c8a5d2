"""Send events about runs and backfills to the Prefect server, so that automations can react.

The resource of each event is the output's URI. Events are sent in the background; a run continues
without the server. Their payloads hold figures and messages, never parameters or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson

from pipeline.errors import ChecksFailedError, ChunkmapError
from pipeline.flows.event_sender import Origin, current_origin, event_sender
from pipeline.masking import mask
from pipeline.runs.backfill.summary import BackfillSummary
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.ledger import Ledger
from pipeline.table.errors import CommitsConflictError

Summary = RunSummary | BackfillSummary

RUN, BACKFILL = "chunkmap.run", "chunkmap.backfill"
WINDOW_PUBLISHED = "chunkmap.window.published"
MAX_LABELS = 100
"""Maximum number of windows that an event names."""
QUARANTINED = "chunkmap.rows.quarantined"
LATE = "chunkmap.output.late"


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
    """Emit that a run or backfill has started, and how it ended.

    Args:
        kind: `RUN` or `BACKFILL`.
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
    except ChunkmapError as error:
        emit(f"{kind}.{error.end_state}", output, {**payload, **_error(error)}, origin)
        raise
    except KeyboardInterrupt:
        emit(f"{kind}.interrupted", output, payload, origin)
        raise
    except Exception as error:
        emit(f"{kind}.failed", output, {**payload, **_error(error)}, origin)
        raise
    for summary in summaries:
        emit(f"{kind}.completed", output, {**payload, **_figures(summary)}, origin)
        if isinstance(summary, RunSummary) and summary.quarantine + summary.rejected:
            found = {"objects": list(summary.quarantine), "rows": list(summary.rejected)}
            emit(QUARANTINED, output, {**payload, **found}, origin)


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
            published = [label for label in windows if label not in error.windows]
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


def _error(error: Exception) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "message": str(error),
        "hint": getattr(error, "hint", None) or "",
    }


def _figures(summary: Summary) -> dict[str, Any]:
    if isinstance(summary, BackfillSummary):
        return {"windows": summary.todo, "seconds": summary.seconds, **summary.counts}
    return {
        "manifest": summary.manifest,
        "chunks": summary.chunks,
        "rows": summary.rows_out,
        "bytes": summary.bytes_out,
        "seconds": summary.seconds,
        "report": summary.report,
    }
