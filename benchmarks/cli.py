"""Define the commands of `chunkmap bench`. What they do is in commands.py."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.help import App
from pipeline.cli.options import Environment, Json

app = App("bench", "Compare chunkmap with its peers.")

ROOT = "s3://demo/bench/"
BASELINE = Path(__file__).parent / "baseline.json"
"""The record that `make bench-gate` compares with."""


class Size(StrEnum):
    """Scale of the datasets."""

    s = "s"
    m = "m"
    l = "l"  # noqa: E741 - as the command line spells it


Root = Annotated[str, typer.Option(metavar="URI", help="Prefix of datasets and reports.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List workloads, datasets and peers."""
    from benchmarks import commands

    commands.list_all(as_json=json)


@app.command()
def run(  # noqa: PLR0917 - Typer takes them as they stand
    suite: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]…", help="Workloads, or main, rest, ci; default all."),
    ] = None,
    scale: Annotated[Size, typer.Option(help="Size of data: TPC-H 1, 4, 20.")] = Size.s,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="PEER", help="Measure only these peers; repeatable."),
    ] = None,
    repeat: Annotated[
        int, typer.Option(metavar="N", min=1, help="Run N interleaved processes of each.")
    ] = 1,
    iterations: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Repeat the work per process; default 4 (some 2)."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Measure every peer on every workload.")
    ] = False,
    no_count: Annotated[
        bool, typer.Option("--no-count", help="Skip the untimed pass that counts S3 requests.")
    ] = False,
    max_noise: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0.01, help="Repeat the A/A run until it is this quiet."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Add flame graphs of chunkmap (needs py-spy).")
    ] = False,
    root: Root = ROOT,
    resume: Annotated[
        str | None, typer.Option(metavar="ID", help="Resume an interrupted session.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Measure, check every result, write a report."""
    from benchmarks import commands
    from benchmarks.suite.session import Request

    request = Request(
        names=tuple(suite or ()),
        scale=scale.value,
        against=None if against is None else tuple(against),
        repeat=repeat,
        iterations=iterations,
        full=full,
        count=not no_count,
        root=root,
        resume=resume,
        profile=profile,
        max_noise=max_noise,
    )
    commands.run(request, environment, as_json=json)


@app.command()
def report(
    session: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Id of a session; default the newest.")
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also update the figures in this page.", exists=True),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Prefix of reports; default that of the session."),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Write the report of a session again."""
    from benchmarks import commands

    commands.report(session, docs, root, environment, as_json=json)


@app.command()
def aims(
    sessions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]…", help="Judge by these sessions; default the newest."),
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also update the table in this page.", exists=True),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show which aims are met."""
    from benchmarks import commands

    commands.aims(sessions or (), docs, environment, as_json=json)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A session, or a record file.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another session or record file.")],
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Compare the ratios of two sessions."""
    from benchmarks import commands

    commands.compare(before, after, environment, as_json=json)


@app.command()
def history(environment: Environment = None, json: Json = False) -> None:
    """Show sessions of this machine with their ratios."""
    from benchmarks import commands

    commands.history(environment, as_json=json)


@app.command()
def gate(
    session: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Id of a session; default the newest.")
    ] = None,
    baseline: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Record to compare with; default the committed one.",
            exists=True,
            show_default=False,
        ),
    ] = BASELINE,
    least: Annotated[
        float, typer.Option(metavar="SHARE", min=0, help="Ignore differences below this share.")
    ] = 0.0,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Fail if a ratio became worse than the baseline's."""
    from benchmarks import commands

    raise typer.Exit(commands.gate(baseline, session, least, environment, as_json=json))


@app.command()
def fit(
    groups: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GROUP]…", help="engine, worker, planning, ledger, store; default all."
        ),
    ] = None,
    parameters: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write to this file; default that of the suite.", dir_okay=False
        ),
    ] = None,
    environment: Environment = None,
) -> None:
    """Measure the parameters of the simulation."""
    from benchmarks import commands

    commands.fit(groups or (), parameters, environment)


@app.command()
def simulate(  # noqa: PLR0917 - Typer takes them as they stand
    workers: Annotated[str, typer.Option(metavar="N", help="Worker threads, each with one core.")],
    chunks: Annotated[
        str, typer.Option(metavar="N", help="Chunks of equal size, e.g. 1e6 or 2.5M.")
    ],
    bytes: Annotated[str, typer.Option(metavar="SIZE", help="Stored bytes to read, e.g. 100TB.")],
    rows: Annotated[str, typer.Option(metavar="N", help="Rows, to show rows per second.")] = "",
    files: Annotated[
        str, typer.Option(metavar="N", help="Objects of the input; default the chunks.")
    ] = "",
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="Time the transform waits per chunk.")
    ] = "0s",
    prefixes: Annotated[
        str, typer.Option(metavar="N", help="Prefixes that share the requests.")
    ] = "1",
    reduce: Annotated[
        bool, typer.Option("--reduce", help="Combine chunks instead of staging them.")
    ] = False,
    store: Annotated[
        str, typer.Option(metavar="STORE", help="Object store: amazon, or here (measured).")
    ] = "amazon",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a parameter; repeatable."),
    ] = None,
    parameters: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use this parameter file.", exists=True, dir_okay=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with charts.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Simulate a run on any number of workers."""
    from benchmarks.simulation import commands

    options = commands.SimulationOptions(
        workers=workers,
        chunks=chunks,
        bytes=bytes,
        rows=rows,
        files=files,
        wait=wait,
        prefixes=prefixes,
        reduces=reduce,
        store=store,
        changes=tuple(change or ()),
        parameters=parameters,
        html=html,
    )
    commands.simulate(options, environment, as_json=json)
