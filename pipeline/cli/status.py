"""`chunkmap status`, `verify` and `config`: what is, from storage and settings alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.cli.output import bad, columns, out, plural, print_json, say, show_pairs, size
from pipeline.config.settings import explain, load_settings
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.runs.admin.status import RunStatus

_RUNS = ("run", "job", "state", "done", "chunks", "rows out", "created")


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
            "no output is known here", hint="name one: chunkmap status --output s3://bucket/prefix/"
        )
    with explain_unreachable_s3(settings):
        storage = open_storage(settings)
        found = [one for uri in outputs for one in list_runs(storage, uri)]
    if run is not None:
        one = find_run(found, run)
        print_json(one) if as_json else _one(one)
    elif as_json:
        print_json({"runs": [asdict(one) for one in found]})
    else:
        _all(found, outputs)


def _all(found: Sequence[RunStatus], outputs: Sequence[str]) -> None:
    """A table for each output: a line then has room for whole ids at 80 columns."""
    if not found:
        say(f"no runs of {', '.join(outputs)}")
    for output, runs in groupby(found, key=lambda one: one.output):
        say(output, mark="[bold]")
        rows = [
            (
                one.run,
                one.job,
                one.state,
                f"{one.done:,}" + (f" ({one.failed:,} failed)" if one.failed else ""),
                f"{one.chunks:,}",
                f"{one.rows_out:,}",
                time.strftime("%m-%d %H:%M", time.localtime(one.created)),
            )
            for one in runs
        ]
        out.print(columns(_RUNS, rows, right=("done", "chunks", "rows out")))
    for one in found:
        for problem in one.problems:
            bad(f"run {one.run}: {problem}")


def _one(one: RunStatus) -> None:
    rows = {
        "state": one.state,
        "chunks": f"{one.done:,} of {one.chunks:,} done, {one.failed:,} failed",
        "rows": f"{one.rows_in:,} in, {one.rows_out:,} out",
        "bytes": f"{size(one.bytes_in)} read, {size(one.bytes_out)} written",
        "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.created)),
        "driver": one.driver,
        "output": one.output,
        "report": one.report or "none yet",
        "Prefect UI": one.page or "unknown",
    }
    show_pairs(f"{one.job} · run {one.run}", rows)
    for line in (*one.errors, *one.problems):
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
        verdict = "is NOT as its manifest says" if found.problems else "is as its manifest says"
        say(
            f"{found.output} {verdict}: manifest {found.manifest}, "
            f"{plural(found.files, 'file')}, {found.rows:,} rows, {size(found.bytes)}"
        )
        for problem in (*found.problems, *found.notes):
            bad(problem)
        if found.left_out:
            say(f"  {plural(found.left_out, 'object')} that could not be read left out")
        for uri in found.quarantine:
            say(f"  in quarantine: {uri}")
        if found.missing_chunks:
            say(f"  {plural(found.missing_chunks, 'planned chunk')} left out, as its manifest says")
    return 1 if found.problems else 0


def config(environment: str | None, *, as_json: bool) -> None:
    """Show the settings and their sources."""
    lines = explain(load_settings(environment))
    if as_json:
        print_json({key: {"value": value, "source": source} for key, value, source in lines})
        return
    rows = [(key, value or "–", source) for key, value, source in lines]
    out.print(columns(("setting", "value", "from"), rows))
