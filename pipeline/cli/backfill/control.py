"""Control a backfill: `chunkmap backfill pause`, `resume`, `retry`, `cancel` and `set`."""

from __future__ import annotations

from typing import Any

from pipeline.cli.backfill.create import drive
from pipeline.cli.backfill.find import find
from pipeline.cli.output import notes, out, print_json, say
from pipeline.config.settings import load_settings
from pipeline.errors import UsageError
from pipeline.report.humanize import plural
from pipeline.runs.backfill.records import BackfillResumeOptions, Control
from pipeline.runs.backfill.recount import rule_of, windows_named
from pipeline.runs.backfill.status import BackfillStatus, read_status
from pipeline.runs.backfill.store import BackfillStore

CHANGED_BY = "command line"
"""Author of changes to the desired state, as stored."""


def pause(backfill: str, output: str | None, environment: str | None, *, as_json: bool) -> None:
    """Start no more runs; active ones finish."""
    store = find(backfill, output, load_settings(environment))
    status = read_status(store)
    _refuse_cancelled(status)
    control = store.change(CHANGED_BY, lambda _: {"paused": True})
    effect = "active runs finish, no more are started" if status.alive else "it has no driver now"
    _confirm(store, control, f"is paused: {effect}", as_json=as_json)


def resume(
    backfill: str,
    output: str | None,
    environment: str | None,
    *,
    accept_code: bool,
    take_over: bool,
    local: bool = False,
    detach: bool,
    as_json: bool,
) -> None:
    """Resume a backfill after a pause, a canary or a dead driver."""
    settings = load_settings(environment)
    store = find(backfill, output, settings)
    status = read_status(store)
    if status.state == "done":
        _confirm(store, status.control, "is done: nothing is left", as_json=as_json)
        return
    _refuse_cancelled(status)
    changes: dict[str, Any] = {"paused": False}
    if status.state == "held":
        changes["approved"] = True
    control = store.change(CHANGED_BY, lambda _: changes)
    if status.alive and not take_over:
        _confirm(store, control, f"is resumed: {status.who} drives it", as_json=as_json)
        return
    options = BackfillResumeOptions(accept_code=accept_code, take_over=take_over)
    drive(store, settings, options, environment, local=local, detach=detach, as_json=as_json)


def retry(
    backfill: str,
    output: str | None,
    environment: str | None,
    *,
    only_failed: bool,
    windows: list[str],
    accept_code: bool,
    take_over: bool,
    local: bool = False,
    detach: bool,
    as_json: bool,
) -> None:
    """Retry windows that are not done."""
    settings = load_settings(environment)
    store = find(backfill, output, settings)
    status = read_status(store)
    _refuse_cancelled(status)
    only = _windows_to_retry(store, status, windows)
    if status.state == "done":
        _confirm(store, status.control, "is done: there is nothing to retry", as_json=as_json)
        return
    if status.alive and not take_over:
        if only:
            raise UsageError(
                f"{status.who} drives backfill {store.backfill}, and can only retry all failed "
                "windows",
                hint=f"chunkmap backfill retry {store.backfill}",
            )
        control = store.change(CHANGED_BY, lambda now: {"retries": now.retries + 1})
        count = status.counts["failed"]
        effect = f"is driven by {status.who}, which retries the {plural(count, 'failed window')}"
        _confirm(store, control, effect, as_json=as_json)
        return
    store.change(CHANGED_BY, lambda _: {"paused": False})
    options = BackfillResumeOptions(only, only_failed, accept_code=accept_code, take_over=take_over)
    drive(store, settings, options, environment, local=local, detach=detach, as_json=as_json)


def _windows_to_retry(
    store: BackfillStore, status: BackfillStatus, texts: list[str]
) -> tuple[str, ...]:
    """Resolve the windows to retry, without those already done; refuse if none is left."""
    if not texts:
        return ()
    names = [name for text in texts for name in text.split(",") if name]
    labels = windows_named(names, status.windows, rule_of(store))
    states = dict(status.windows.select("label", "state").iter_rows())
    over = [label for label in labels if states[label] in ("done", "skipped", "empty")]
    if len(over) == len(labels):
        raise UsageError(
            f"window {over[0]} is {states[over[0]]}"
            + (f", and so are the {len(over) - 1:,} others" if len(over) > 1 else "")
            + ": there is nothing to retry",
            hint="to process it again: chunkmap backfill create JOB.yaml --reprocess all, with "
            "the range",
        )
    return tuple(label for label in labels if label not in over)


def cancel(backfill: str, output: str | None, environment: str | None, *, as_json: bool) -> None:
    """Stop a backfill for good."""
    store = find(backfill, output, load_settings(environment))
    status = read_status(store)
    if status.state == "done":
        raise UsageError(f"backfill {store.backfill} is done: there is nothing to cancel")
    control = store.change(CHANGED_BY, lambda _: {"cancelled": True})
    how = "its driver stops within seconds" if status.alive else "it had no driver"
    published = status.counts["done"]
    _confirm(
        store,
        control,
        f"is cancelled: {how}; the output keeps {plural(published, 'published window')}",
        as_json=as_json,
    )


def set_(
    backfill: str,
    output: str | None,
    environment: str | None,
    max_active: int | None,
    priority: int | None,
    *,
    as_json: bool,
) -> None:
    """Change concurrency or priority of a backfill."""
    values = {"max_active": max_active, "priority": priority}
    changes = {name: value for name, value in values.items() if value is not None}
    if not changes:
        raise UsageError("nothing to set", hint="--max-active N, or --priority N")
    store = find(backfill, output, load_settings(environment))
    _refuse_cancelled(read_status(store))
    control = store.change(CHANGED_BY, lambda _: changes)
    effect = f"has max-active {control.max_active} and priority {control.priority}"
    _confirm(store, control, effect, as_json=as_json)


def _refuse_cancelled(status: BackfillStatus) -> None:
    backfill = status.record.backfill
    if status.control.cancelled:
        raise UsageError(
            f"backfill {backfill} is cancelled and cannot be resumed",
            hint="create it again: published windows are not processed twice",
        )


def _confirm(store: BackfillStore, control: Control, effect: str, *, as_json: bool) -> None:
    say(f"backfill {store.backfill} {effect}", console=notes if as_json else out)
    if as_json:
        print_json({"backfill": store.backfill, "output": store.output, **control.model_dump()})
