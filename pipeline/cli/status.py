"""Show runs, verify outputs, show settings: `chunkmap status`, `verify` and `config`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.cli.output import bad, columns, out, print_json, say, show_pairs
from pipeline.config.settings import explain, load_settings
from pipeline.errors import UsageError
from pipeline.quality.results import checks_text
from pipeline.report.humanize import byte_size, instant, plural, short_instant

if TYPE_CHECKING:
    from pipeline.runs.admin.status import RunStatus
    from pipeline.runs.backfill.listing import Entry, Listing
    from pipeline.runs.driver.summary import ThenFigures

_COLUMNS = ("run", "job", "state", "done", "chunks", "rows out", "created (UTC)")
NEWEST = 20
"""Number of runs that are listed by default."""


def status(
    run: str | None,
    output: str | None,
    environment: str | None,
    *,
    every: bool = False,
    states: Sequence[str] = (),
    as_json: bool,
) -> None:
    """Show the newest known runs, or all of them, or one."""
    from pipeline.runs.admin.known_outputs import named_outputs
    from pipeline.runs.backfill.listing import KnownRuns
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    if run is not None and (every or states):
        option = "--state" if states else "--all"
        raise UsageError(f"{option} and the id of a run exclude each other: use one of them")
    settings = load_settings(environment)
    outputs = named_outputs(settings.state_dir, output)
    _refuse_unknown(states)
    with explain_unreachable_s3(settings):
        known = KnownRuns(open_storage(settings), outputs)
        if run is not None:
            found = known.find(run)
            print_json(found) if as_json else _show_run(found)
            return
        listing = known.all(states) if every else known.newest(NEWEST, states)
    if as_json:
        print_json(_listing_json(listing))
    else:
        _show_listing(listing, outputs, states)


def _refuse_unknown(states: Sequence[str]) -> None:
    from pipeline.runs.backfill.listing import STATES

    for state in states:
        if state not in STATES:
            near = get_close_matches(state, STATES, 1)
            raise UsageError(
                f"there is no state {state!r}",
                hint=f"did you mean {near[0]}?" if near else f"states: {', '.join(STATES)}",
            )


def _listing_json(listing: Listing) -> dict[str, Any]:
    from pipeline.runs.admin.status import RunStatus

    runs = [asdict(entry) for entry in listing.entries if isinstance(entry, RunStatus)]
    others = [asdict(entry) for entry in listing.entries if not isinstance(entry, RunStatus)]
    return {"runs": runs, "backfills": others, "more": listing.more}


def _show_listing(listing: Listing, outputs: Sequence[str], states: Sequence[str]) -> None:
    """Show one table per output, so that whole run ids fit into 80 columns."""
    which = f" in state {' or '.join(states)}" if states else ""
    if not listing.entries:
        say(f"no runs of {', '.join(outputs)}{which}")
    for output in dict.fromkeys(entry.output for entry in listing.entries):
        say(output, mark="[bold]")
        rows = [_row(entry) for entry in listing.entries if entry.output == output]
        out.print(columns(_COLUMNS, rows, right=("done", "chunks", "rows out")))
    if listing.more:
        say(f"{listing.more:,} older ones are not shown (--all)", mark="[dim]")
    for entry in listing.entries:
        for problem in getattr(entry, "problems", ()):
            bad(f"run {getattr(entry, 'run', '')}: {problem}")


def _row(entry: Entry) -> tuple[str, ...]:
    from pipeline.runs.admin.status import RunStatus

    created = short_instant(entry.created)
    if isinstance(entry, RunStatus):
        done = f"{entry.done:,}" + (f" ({entry.failed:,} failed)" if entry.failed else "")
        figures = (done, f"{entry.chunks:,}", f"{entry.rows_out:,}")
        return (entry.run, entry.job, entry.state, *figures, created)
    failed = f" ({entry.chunks_failed:,} failed)" if entry.chunks_failed else ""
    return (
        entry.backfill,
        f"{entry.job}, backfill of {plural(entry.windows, 'window')}",
        entry.state,
        f"{entry.chunks_done:,}{failed}",
        f"{entry.chunks:,}",
        f"{entry.rows_out:,}",
        created,
    )


def _show_run(run: RunStatus) -> None:
    rows = {
        "state": run.state,
        "chunks": f"{run.done:,} of {run.chunks:,} done, {run.failed:,} failed",
        **({"groups": _groups(run.then)} if run.then is not None else {}),
        "rows": f"{run.rows_in:,} in, {run.rows_out:,} out",
        "bytes": f"{byte_size(run.bytes_in)} read, {byte_size(run.bytes_out)} written",
        "created": instant(run.created),
        "driver": run.driver,
        "output": run.output,
        "report": run.report or "none yet",
        "Prefect UI": run.page or "unknown",
    }
    show_pairs(f"{run.job} · run {run.run}", rows)
    for line in (*run.errors, *run.problems):
        bad(line)


def _groups(then: ThenFigures) -> str:
    pieces = plural(then.pieces, "piece")
    return f"{then.done:,} of {pieces} of the reduced result mapped, {then.failed:,} failed"


def verify(output: str, environment: str | None, *, as_json: bool = False) -> int:
    """Verify an output; returns the exit code."""
    from pipeline.runs.admin.verify import verify_output
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    settings = load_settings(environment)
    with explain_unreachable_s3(settings):
        found = verify_output(open_storage(settings), output)
    if as_json:
        print_json(found)
    else:
        verdict = "does NOT match its manifest" if found.problems else "matches its manifest"
        say(
            f"{found.output} {verdict}: manifest {found.manifest}, "
            f"{plural(found.files, 'file')}, {found.rows:,} rows, {byte_size(found.bytes)}"
        )
        for problem in (*found.problems, *found.notes):
            bad(problem)
        if found.adopted:
            say(
                f"  adopted: {plural(found.adopted, 'file')} without a digest; sizes, rows and "
                "versions were compared"
            )
        if found.left_out:
            say(f"  left out: {plural(found.left_out, 'unreadable object')}")
        made = len(found.checks)
        warned = [check for check in found.checks if check.outcome == "warned"]
        if made:
            say(f"  checks: {checks_text(made, len(warned), found.rejected)}")
        for check in warned:
            window = f"window {check.window}: " if check.window else ""
            say(f"  {window}check {check.name}: {check.message}")
        for uri in found.rejected_in:
            say(f"  rows in quarantine: {uri}")
        for uri in found.quarantine:
            say(f"  in quarantine: {uri}")
        if found.missing_chunks:
            say(f"  left out, and recorded so: {plural(found.missing_chunks, 'planned chunk')}")
    return 1 if found.problems else 0


def config(environment: str | None, *, as_json: bool) -> None:
    """Show the settings and their sources."""
    lines = explain(load_settings(environment))
    if as_json:
        print_json({key: {"value": value, "source": source} for key, value, source in lines})
        return
    rows = [(key, value or "–", source) for key, value, source in lines]
    out.print(columns(("setting", "value", "from"), rows))
