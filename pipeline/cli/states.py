"""`chunkmap status`, `verify` and `config`: what is, from storage and settings alone."""

from __future__ import annotations

import time
from dataclasses import asdict

from rich.table import Table

from pipeline.cli.screen import notes, out, pairs, print_json, size
from pipeline.errors import UsageError
from pipeline.settings import explain, load_settings


def status(run: str | None, output: str | None, environment: str | None, *, as_json: bool) -> None:
    """Show all known runs, or one."""
    from pipeline.overview import find_run, known_outputs, overview
    from pipeline.storage import open_storage

    settings = load_settings(environment)
    storage = open_storage(settings)
    outputs = [output] if output else known_outputs(settings.state_dir)
    if not outputs:
        raise UsageError(
            "no output is known here", hint="name one: chunkmap status --output s3://bucket/prefix/"
        )
    found = [one for uri in outputs for one in overview(storage, uri)]
    if run is not None:
        found = [find_run(found, run)]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if run is not None:
        _one(found[0])
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "job", "state", "chunks done", "rows out", "created", "output"):
        table.add_column(name, justify="right" if name in ("chunks done", "rows out") else "left")
    for one in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created))
        chunks = f"{one.done:,} / {one.chunks:,}"
        table.add_row(one.run, one.job, one.state, chunks, f"{one.rows_out:,}", when, one.output)
    out.print(table if found else "no runs")


def _one(one: object) -> None:
    from pipeline.overview import RunState

    assert isinstance(one, RunState)
    rows = {
        "state": one.state,
        "chunks": f"{one.done:,} of {one.chunks:,} done, {one.failed:,} failed",
        "rows": f"{one.rows_in:,} in, {one.rows_out:,} out",
        "bytes": f"{size(one.bytes_in)} read, {size(one.bytes_out)} written",
        "driver": one.driver,
        "output": one.output,
        "report": one.report,
    }
    out.print(pairs(f"{one.job} · run {one.run}", rows))
    for line in one.errors:
        out.print(f"  [red]✗[/] {line}")


def verify(
    output: str, environment: str | None, *, as_json: bool = False, quiet: bool = False
) -> int:
    """Verify an output; returns the exit code. `quiet` prints problems only."""
    from pipeline.checking import verify_output
    from pipeline.storage import open_storage

    found = verify_output(open_storage(load_settings(environment)), output)
    if as_json:
        print_json(found)
    else:
        for problem in found.problems:
            notes.print(f"[red]✗[/] {problem}")
    if not as_json and not quiet:
        verdict = "as its manifest says" if not found.problems else "NOT as its manifest says"
        out.print(
            f"{found.output} is {verdict}: manifest {found.manifest}, {found.files:,} files, "
            f"{found.rows:,} rows, {size(found.bytes)}"
        )
    return 1 if found.problems else 0


def config(environment: str | None, *, as_json: bool) -> None:
    """Show the settings and their sources."""
    lines = explain(load_settings(environment))
    if as_json:
        print_json({key: {"value": value, "source": source} for key, value, source in lines})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("setting", "value", "from"):
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*line)
    out.print(table)
