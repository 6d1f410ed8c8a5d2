"""Write the texts that page and Markdown share: headline, figures, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from pipeline.report.humanize import (
    byte_rate,
    byte_size,
    count,
    duration,
    instant,
    percent,
    plural,
    rate,
    short_count,
)
from pipeline.report.page import Card, Notice, Tone
from pipeline.report.run_figures import Totals
from pipeline.report.run_model import MappedGroups, Pruned, Requests, RunInfo

STATES: Mapping[str, tuple[str, Tone]] = {
    "done": ("Done", "good"),
    "failed": ("Failed", "bad"),
    "running": ("Running", "plain"),
    "interrupted": ("Interrupted", "warn"),
}


def summary(run: RunInfo, totals: Totals) -> str:
    """Summarise the run in one sentence."""
    took = duration(totals.active_seconds)
    if run.state == "done":
        if run.chunks_planned == 0:
            return "The plan has no chunks, so there was nothing to map."
        return (
            f"{_rows(totals.rows_in)} of {run.input} became {_rows(totals.rows_out)} "
            f"in {run.output}, in {took}."
        )
    published = "Nothing is published."
    if run.chunks_published:
        verb = "is" if run.chunks_published == 1 else "are"
        published = f"{plural(run.chunks_published, 'chunk')} of them {verb} published."
    share = totals.chunks_done / run.chunks_planned if run.chunks_planned else 0.0
    done = (
        f"{count(totals.chunks_done)} of {plural(run.chunks_planned, 'chunk')} "
        f"({percent(share)}) of {run.input}"
    )
    if not totals.chunks_done and run.state != "running":
        ended = "the run failed" if run.state == "failed" else "the run was stopped"
        whole = f"None of {plural(run.chunks_planned, 'chunk')} of {run.input} was mapped"
        return f"{whole} before {ended}, after {took}. {published}"
    if run.state == "running":
        return f"{done} mapped so far, in {took}."
    if run.state == "interrupted":
        return f"{done} were mapped in {took} before the run was stopped. {published}"
    return f"{done} were mapped in {took}, then the run failed. {published}"


CHECK_OUTCOMES: Mapping[str, str] = {
    "passed": "passed",
    "warned": "failed, warns only",
    "quarantined": "rows in quarantine",
    "refused": "failed, nothing was published",
}


def groups_text(by: Sequence[str]) -> str:
    """Say what a function gets: the rows of a group, or each row."""
    return f"per group of {', '.join(by)}" if by else "per row"


def notice(
    run: RunInfo, totals: Totals, groups: MappedGroups | None = None, *, is_refused: bool = False
) -> Notice | None:
    """Tell what to do next; None while the run is active."""
    if run.state == "running":
        return None
    if is_refused and run.state != "done":
        return Notice(
            "What to do next: checks refuse the result (see below). If the data are wrong, correct "
            "them or the transform and run the job with --replan; if a check is, change it in the "
            "job and run that again. Every chunk is mapped, and kept.",
            "",
            "bad",
        )
    if run.state == "done":
        command = f"chunkmap verify {shlex.quote(run.output)}"
        return Notice("Every planned chunk is mapped and published. To check it:", command, "good")
    if groups is not None and groups.failed:
        return Notice(
            f"What to do next: {plural(groups.failed, 'piece')} of groups failed. Fix the cause "
            "(see the groups below), then run this. Every chunk and the "
            f"{plural(groups.done, 'completed piece')} are kept.",
            run.resume_command or "",
            "bad",
        )
    left, kept = plural(totals.chunks_left, "chunk"), totals.chunks_done
    what = f"What to do next: {left} left. "
    if totals.chunks_failed:
        what += "Fix the cause (see the failures below), then run this. "
    elif totals.chunks_left == 0:
        what = "What to do next: every chunk is mapped, but not published. Run this. "
    else:
        what += "To resume, run this. "
    if kept:
        what += f"The {plural(kept, 'completed chunk')} {'is' if kept == 1 else 'are'} kept."
    tone: Tone = "bad" if run.state == "failed" else "warn"
    return Notice(what.strip(), run.resume_command or "", tone)


def cards(
    run: RunInfo, totals: Totals, pruned: Pruned | None = None, cost: str = ""
) -> tuple[Card, ...]:
    """Make the headline figures; their number is a multiple of four, which fills the rows."""
    return (
        _chunks_card(totals),
        Card("Rows in", short_count(totals.rows_in), _rows_note(run, totals)),
        Card("Rows out", short_count(totals.rows_out), _kept(totals)),
        _time_card(run, totals),
        Card("Read", byte_size(totals.bytes_in), _read_note(pruned)),
        Card("Written", byte_size(totals.bytes_out), _ratio(totals)),
        Card("Rows/s", short_count(totals.rows_per_second), "of input, over the whole run"),
        Card("Bytes/s", byte_rate(totals.bytes_per_second), "of input, over the whole run"),
        _redone_card(totals),
        requests_card(totals.requests),
        _memory_card(run, totals),
        _workers_card(totals, cost),
    )


def _read_note(pruned: Pruned | None) -> str:
    return f"of {byte_size(pruned.bytes_listed)} stored" if pruned is not None else "compressed"


def _ratio(totals: Totals) -> str:
    return f"{percent(totals.bytes_out / totals.bytes_in)} of read" if totals.bytes_in else ""


def requests_card(requests: Requests) -> Card:
    """Make the figure of requests to S3."""
    sent = requests.reads + requests.writes
    if not sent:
        return Card("Requests to S3", "–", "not recorded")
    retried = f"{count(requests.retries)} retried" if requests.retries else "none retried"
    if requests.throttled:
        least = f"down to {requests.request_limit} at a time"
        retried += f"; {count(requests.throttled)} throttled, {least}"
    kinds = f"{short_count(requests.reads)} read, {short_count(requests.writes)} write or list"
    tone: Tone = "warn" if requests.retries > sent / 50 else "plain"
    return Card("Requests to S3", short_count(sent), f"{kinds}; {retried}", tone)


def _memory_card(run: RunInfo, totals: Totals) -> Card:
    if not totals.memory:
        return Card("Memory", "–", "not recorded")
    limit = f"; its limit is {byte_size(run.memory_limit)}" if run.memory_limit else ""
    return Card("Memory", byte_size(totals.memory), f"of the largest worker{limit}")


def _workers_card(totals: Totals, cost: str) -> Card:
    note = f"{duration(totals.worker_seconds)} of worker time" if totals.worker_seconds else ""
    return Card("Workers", count(totals.workers), f"{note}, {cost}" if cost else note)


def _chunks_card(totals: Totals) -> Card:
    tone: Tone = "bad" if totals.chunks_failed else "plain"
    note = f"of {count(totals.chunks_planned)} planned"
    if totals.chunks_failed:
        note += f"; {count(totals.chunks_failed)} failed"
    elif totals.chunks_left:
        note += f"; {count(totals.chunks_left)} left"
    return Card("Chunks done", count(totals.chunks_done), note, tone)


def _time_card(run: RunInfo, totals: Totals) -> Card:
    if totals.paused_seconds:
        note = f"and {duration(totals.paused_seconds)} paused"
    elif run.started is not None:
        note = f"from {instant(run.started)}"
    else:
        note = "never started"
    return Card("Time", duration(totals.active_seconds), note)


def _redone_card(totals: Totals) -> Card:
    if not totals.attempts_redone:
        note = "every chunk was mapped once" if totals.chunks_done else ""
        return Card("Repeated work", "None", note)
    share = totals.attempts_redone / max(1, totals.chunks_planned)
    note = f"{percent(share)} of the chunks" if share <= 1 else f"{share:.1f} per chunk"
    if totals.seconds_redone:
        note += f"; {duration(totals.seconds_redone)} in duplicates"
    return Card("Repeated work", plural(totals.attempts_redone, "attempt"), note, "warn")


def _rows_note(run: RunInfo, totals: Totals) -> str:
    """Say where the planned rows are that no transform has seen."""
    missing = run.rows_planned - totals.rows_in - totals.rows_filtered
    notes = []
    if totals.rows_filtered:
        notes.append(f"{short_count(totals.rows_filtered)} filtered out")
    if missing > 0:
        notes.append(f"{short_count(missing)} left of {short_count(run.rows_planned)} planned")
    if not notes:
        return count(totals.rows_in) if totals.rows_in >= 1_000_000 else "all that were planned"
    return "; ".join(notes)


def _kept(totals: Totals) -> str:
    if not totals.rows_in:
        return ""
    share = totals.rows_out / totals.rows_in
    return f"{percent(share)} of rows in" if share <= 1 else f"{share:,.2f} times the rows in"


def _rows(number: int) -> str:
    return f"{short_count(number)} {'row' if number == 1 else 'rows'}"


def rows_rate(value: float) -> str:
    """Format rows per second."""
    return rate(value, "rows")
