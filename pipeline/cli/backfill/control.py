"""`chunkmap backfill pause`, `resume`, `retry`, `cancel` and `set`: what users wish of one."""

from __future__ import annotations

from typing import Any

from pipeline.cli.backfill.create import drive
from pipeline.cli.backfill.find import find
from pipeline.cli.output import notes, out, print_json, say
from pipeline.config.settings import load_settings
from pipeline.errors import UsageError
from pipeline.runs.backfill.records import BackfillResumeOptions, Control
from pipeline.runs.backfill.recount import rule_of, windows_named
from pipeline.runs.backfill.status import BackfillStatus, read_status
from pipeline.runs.backfill.store import BackfillStore

BY = "command line"


def pause(backfill: str, output: str | None, environment: str | None, *, as_json: bool) -> None:
    """Hand out nothing more."""
    store = find(backfill, output, load_settings(environment))
    status = read_status(store)
    _refuse_over(status)
    control = store.change(BY, lambda _: {"paused": True})
    said = (
        "what is at hand is finished, nothing more is handed out"
        if status.alive
        else ("nobody drives it now")
    )
    _told(store, control, f"is paused: {said}", as_json=as_json)


def resume(
    backfill: str,
    output: str | None,
    environment: str | None,
    *,
    accept_code: bool,
    take_over: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Go on with it, whatever it stopped for."""
    settings = load_settings(environment)
    store = find(backfill, output, settings)
    status = read_status(store)
    if status.state == "done":
        _told(store, status.control, "is done: nothing is left", as_json=as_json)
        return
    _refuse_over(status)
    wished: dict[str, Any] = {"paused": False}
    if status.state == "held":
        wished["approved"] = True
    control = store.change(BY, lambda _: wished)
    if status.alive and not take_over:
        _told(store, control, f"goes on: {status.who} drives it", as_json=as_json)
        return
    options = BackfillResumeOptions(accept_code=accept_code, take_over=take_over)
    drive(store, settings, options, environment, detach=detach, as_json=as_json)


def retry(
    backfill: str,
    output: str | None,
    environment: str | None,
    *,
    only_failed: bool,
    windows: list[str],
    accept_code: bool,
    take_over: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Try again what is not done."""
    settings = load_settings(environment)
    store = find(backfill, output, settings)
    status = read_status(store)
    _refuse_over(status)
    only = _windows(store, status, windows)
    if status.state == "done":
        _told(store, status.control, "is done: nothing is left to retry", as_json=as_json)
        return
    if status.alive and not take_over:
        if only:
            raise UsageError(
                f"{status.who} drives backfill {store.backfill}, and retries all that failed or "
                "nothing",
                hint=f"chunkmap backfill retry {store.backfill}",
            )
        control = store.change(BY, lambda now: {"retries": now.retries + 1})
        count = status.counts["failed"]
        said = f"{status.who} drives it, and tries the {count:,} failed windows again"
        _told(store, control, said, as_json=as_json)
        return
    store.change(BY, lambda _: {"paused": False})
    options = BackfillResumeOptions(only, only_failed, accept_code=accept_code, take_over=take_over)
    drive(store, settings, options, environment, detach=detach, as_json=as_json)


def _windows(store: BackfillStore, status: BackfillStatus, texts: list[str]) -> tuple[str, ...]:
    """The windows that are to be retried; refuses those that there is nothing to do for."""
    if not texts:
        return ()
    listed = [one for text in texts for one in text.split(",") if one]
    named = windows_named(listed, status.windows, rule_of(store))
    states = dict(status.windows.select("label", "state").iter_rows())
    over = [label for label in named if states[label] in ("done", "skipped", "empty")]
    if len(over) == len(named):
        raise UsageError(
            f"window {over[0]} is {states[over[0]]}"
            + (f", and so are the {len(over) - 1:,} others" if len(over) > 1 else "")
            + ": there is nothing to retry",
            hint="to do it again: chunkmap backfill create JOB.yaml --reprocess all, and the range",
        )
    return tuple(label for label in named if label not in over)


def cancel(backfill: str, output: str | None, environment: str | None, *, as_json: bool) -> None:
    """Stop for good."""
    store = find(backfill, output, load_settings(environment))
    status = read_status(store)
    if status.state == "done":
        raise UsageError(f"backfill {store.backfill} is done: there is nothing to cancel")
    control = store.change(BY, lambda _: {"cancelled": True})
    how = "its driver stops within seconds" if status.alive else "nobody was driving it"
    published = status.counts["done"]
    _told(
        store,
        control,
        f"is cancelled: {how}; the {published:,} windows that are published stay",
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
    """Change how it goes about its windows."""
    wished = {"max_active": max_active, "priority": priority}
    wished = {name: value for name, value in wished.items() if value is not None}
    if not wished:
        raise UsageError("nothing to set", hint="--max-active N, or --priority N")
    store = find(backfill, output, load_settings(environment))
    _refuse_over(read_status(store))
    control = store.change(BY, lambda _: wished)
    said = f"has max-active {control.max_active} and priority {control.priority}"
    _told(store, control, said, as_json=as_json)


def _refuse_over(status: BackfillStatus) -> None:
    backfill = status.record.backfill
    if status.control.cancelled:
        raise UsageError(
            f"backfill {backfill} was cancelled, for good",
            hint="create it again: what is published is not done twice",
        )


def _told(store: BackfillStore, control: Control, said: str, *, as_json: bool) -> None:
    say(f"backfill {store.backfill} {said}", console=notes if as_json else out)
    if as_json:
        print_json({"backfill": store.backfill, "output": store.output, **control.model_dump()})
