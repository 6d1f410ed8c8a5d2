"""The flow `deadline`: report an output that is late, as object storage knows it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect import flow, runtime
from prefect._vendor.croniter import croniter  # type: ignore[attr-defined]
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventOccurredFilter,
    EventResourceFilter,
)
from prefect.states import Completed

from pipeline.config.job import parse_job
from pipeline.config.settings import load_settings
from pipeline.flows.event_sender import FLUSH_SECONDS, flush_events
from pipeline.flows.run_events import DEADLINE, LATE, RUN, emit, failures_reported
from pipeline.logs import set_up_driver
from pipeline.report.humanize import duration
from pipeline.runs.backfill.scheduled import reason_late
from pipeline.storage import open_storage
from pipeline.table.log import TableLog


@flow(
    name="deadline",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def check_deadline(
    job: str,
    within: float | None = None,
    start: str | None = None,
    cron: str | None = None,
    timezone: str = "UTC",
) -> Any:
    """Emit the event `chunkmap.output.late` unless a job's output is done in time.

    Args:
        job: The text of the job file. With a `window`, the window that was the last complete one
            at the scheduled start of the job's run must be published; otherwise something must
            have been published, or a run that found nothing to do must have ended, since then.
        within: Seconds from the scheduled start of this run, which is also that of the job's,
            until the output is to be done; None: until the scheduled start. This run then only
            schedules another, since the cron expression of that moment need not exist.
        start: Scheduled start of the job's run, in ISO 8601: given to that other run.
        cron: Schedule of the job's runs, of which the last before this one counts. Without it
            and `within`, the last complete window is that of now, and the start is a day ago.
        timezone: Time zone of `cron`.
    """
    settings = load_settings()
    set_up_driver(settings.logs.format, settings.logs.level)
    parsed = parse_job(job)
    scheduled = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    if within is None:
        by = f"by {scheduled:%Y-%m-%d %H:%M %Z}"
        since = scheduled - timedelta(days=1)
        if cron is not None:
            scheduled = since = last_start(cron, timezone, scheduled)
    elif start is None and runtime.deployment.id:
        due = scheduled + timedelta(seconds=within)
        check_later(due, scheduled)
        return Completed(message=f"checks the output at {due:%Y-%m-%d %H:%M %Z}")
    else:
        scheduled = since = datetime.fromisoformat(start) if start else scheduled
        by = f"within {duration(within)} of its start at {scheduled:%Y-%m-%d %H:%M %Z}"
    output = next(iter(parsed.all_outputs.values())).uri
    table_log = TableLog(open_storage(settings), output)
    has_completed = partial(has_completed_since, table_log.output, since)
    with failures_reported(DEADLINE, table_log.output, {"job": f"deadline of {parsed.name}"}):
        why = reason_late(parsed, table_log, scheduled, since, has_completed)
    if why is None:
        return Completed(message="on time")
    message = f"{why} {by}"
    emit(LATE, table_log.output, {"job": parsed.name, "message": message})
    flush_events(FLUSH_SECONDS)
    return Completed(name="Late", message=message)


def last_start(cron: str, timezone: str, before: datetime) -> datetime:
    """Return the last moment of a schedule before another: a run of that moment has no time yet."""
    # Without a zone, since croniter does not know those of the standard library.
    local = before.astimezone(ZoneInfo(timezone)).replace(tzinfo=None)
    times: Any = croniter
    found: datetime = times(cron, local).get_prev(datetime)
    return found.replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC)


def check_later(due: datetime, scheduled: datetime) -> None:
    """Schedule a run of this deployment that looks at what was to start at `scheduled`; once."""
    deployment = runtime.deployment.id
    start_later: Any = run_deployment
    start_later(
        UUID(deployment),
        parameters={"start": scheduled.isoformat()},
        scheduled_time=due,
        timeout=0,
        as_subflow=False,
        idempotency_key=f"{deployment} {scheduled.isoformat()}",
    )


def has_completed_since(output: str, since: datetime) -> bool:
    """Whether the server knows of a run of an output that has completed since a moment.

    A run that finds its input unchanged publishes nothing.
    """
    completed = EventFilter(
        occurred=EventOccurredFilter(since=since),
        event=EventNameFilter(name=[f"{RUN}.completed"]),
        resource=EventResourceFilter(id=[output]),
    )
    with get_client(sync_client=True) as client:
        return bool(client.read_events(completed, limit=1).events)
