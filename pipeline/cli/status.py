"""Show runs, verify outputs, show settings: `chunkmap status`, `verify` and `config`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.cli.output import bad, columns, out, print_json, say, show_pairs
from pipeline.config.settings import explain, load_settings
from pipeline.errors import UsageError
from pipeline.report.humanize import byte_size, plural

if TYPE_CHECKING:
    from pipeline.runs.admin.status import RunStatus

_COLUMNS = ("run", "job", "state", "done", "chunks", "rows out", "created")


def status(run: str | None, output: str | None, environment: str | None, *, as_json: bool) -> None:
    """Show all known runs, or one."""
    from pipeline.runs.admin.known_outputs import known_outputs
    from pipeline.runs.admin.status import find_run, list_runs
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    settings = load_settings(environment)
    outputs = [output] if output else known_outputs(settings.state_dir)
    if not outputs:
        raise UsageError(
            "no output is known on this machine",
            hint="name one: chunkmap status --output s3://bucket/prefix/",
        )
    with explain_unreachable_s3(settings):
        storage = open_storage(settings)
        runs = [found for uri in outputs for found in list_runs(storage, uri)]
    if run is not None:
        found = find_run(runs, run)
        print_json(found) if as_json else _show_run(found)
    elif as_json:
        print_json({"runs": [asdict(found) for found in runs]})
    else:
        _show_runs(runs, outputs)


def _show_runs(runs: Sequence[RunStatus], outputs: Sequence[str]) -> None:
    """Show one table per output, so that whole run ids fit into 80 columns."""
    if not runs:
        say(f"no runs of {', '.join(outputs)}")
    for output, of_output in groupby(runs, key=lambda run: run.output):
        say(output, mark="[bold]")
        rows = [
            (
                run.run,
                run.job,
                run.state,
                f"{run.done:,}" + (f" ({run.failed:,} failed)" if run.failed else ""),
                f"{run.chunks:,}",
                f"{run.rows_out:,}",
                time.strftime("%m-%d %H:%M", time.localtime(run.created)),
            )
            for run in of_output
        ]
        out.print(columns(_COLUMNS, rows, right=("done", "chunks", "rows out")))
    for run in runs:
        for problem in run.problems:
            bad(f"run {run.run}: {problem}")


def _show_run(run: RunStatus) -> None:
    rows = {
        "state": run.state,
        "chunks": f"{run.done:,} of {run.chunks:,} done, {run.failed:,} failed",
        "rows": f"{run.rows_in:,} in, {run.rows_out:,} out",
        "bytes": f"{byte_size(run.bytes_in)} read, {byte_size(run.bytes_out)} written",
        "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.created)),
        "driver": run.driver,
        "output": run.output,
        "report": run.report or "none yet",
        "Prefect UI": run.page or "unknown",
    }
    show_pairs(f"{run.job} · run {run.run}", rows)
    for line in (*run.errors, *run.problems):
        bad(line)


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
        if found.left_out:
            say(f"  left out: {plural(found.left_out, 'unreadable object')}")
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
