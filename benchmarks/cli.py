"""The commands of `chunkmap bench` and their flags; what they do is in commands.py."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Environment, Json

app = typer.Typer(
    name="bench",
    help="Measure chunkmap beside others who do the same work, and report it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ROOT = "s3://demo/bench/"


class Size(StrEnum):
    """Scale of the datasets."""

    s = "s"
    m = "m"
    l = "l"  # noqa: E741 - as the command line spells it


Root = Annotated[str, typer.Option(help="Prefix under which datasets and reports live.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the workloads, the datasets and the peers."""
    from benchmarks import commands

    commands.list_all(as_json=json)


@app.command()
def run(  # noqa: PLR0917 - Typer takes them as they stand
    suite: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]…", help="Workloads, or main, rest, ci, all. Default: all."),
    ] = None,
    scale: Annotated[Size, typer.Option(help="TPC-H at 1, 4 or 20, and the like.")] = Size.s,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="PEER", help="Only these peers; may be given several times."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Processes of each, interleaved.")] = 1,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=1, help="Times each does the work; the first is cold. Default: 4, some 2."
        ),
    ] = None,
    full: Annotated[bool, typer.Option(help="Every peer on every workload.")] = False,
    count: Annotated[bool, typer.Option(help="Count S3 requests, in an untimed pass.")] = True,
    root: Root = ROOT,
    resume: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with an interrupted session.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Measure, check every result, and write a report. Starts the local stack if it is down."""
    from benchmarks import commands
    from benchmarks.suite.session import Request

    request = Request(
        names=tuple(suite or ()),
        scale=scale.value,
        against=None if against is None else tuple(against),
        repeat=repeat,
        iterations=iterations,
        full=full,
        count=count,
        root=root,
        resume=resume,
    )
    commands.run(request, environment, as_json=json)


@app.command()
def report(
    session: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A session; default: the newest.")
    ] = None,
    docs: Annotated[
        Path | None, typer.Option(help="Put the figures into this Markdown page too.", exists=True)
    ] = None,
    root: Root = ROOT,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Write the report of a session again: HTML, Markdown and JSON."""
    from benchmarks import commands

    commands.report(session, docs, root, environment, as_json=json)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A session or a record's file.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Compare the ratios of two sessions."""
    from benchmarks import commands

    commands.compare(before, after, environment, as_json=json)


@app.command()
def history(environment: Environment = None, json: Json = False) -> None:
    """Show the sessions on this machine, and how the ratios went."""
    from benchmarks import commands

    commands.history(environment, as_json=json)


@app.command()
def gate(
    baseline: Annotated[Path, typer.Option(help="The record to hold against.", exists=True)],
    session: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A session; default: the newest.")
    ] = None,
    least: Annotated[
        float, typer.Option(min=0, help="As a share: a smaller difference is none.")
    ] = 0.0,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Fail if a ratio is worse than the baseline's by more than noise explains."""
    from benchmarks import commands

    raise typer.Exit(commands.gate(baseline, session, least, environment, as_json=json))


@app.command()
def simulate(  # noqa: PLR0917 - Typer takes them as they stand
    workers: Annotated[str, typer.Option(help="Worker threads, each with a core of its own.")],
    chunks: Annotated[str, typer.Option(help="Of equal size; 1e6 and 2.5M are numbers too.")],
    bytes: Annotated[str, typer.Option(help="Stored bytes of the columns that are read: 100TB.")],
    rows: Annotated[str, typer.Option(help="To be told rows a second.")] = "",
    files: Annotated[str, typer.Option(help="Objects of the input. Default: one a chunk.")] = "",
    wait: Annotated[str, typer.Option(help="What the transform waits for on each chunk.")] = "0s",
    prefixes: Annotated[str, typer.Option(help="Over which requests are spread.")] = "1",
    reduce: Annotated[
        bool, typer.Option("--reduce", help="Chunks are combined instead of staged.")
    ] = False,
    store: Annotated[str, typer.Option(help="amazon, or here: as measured.")] = "amazon",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another value of a parameter."),
    ] = None,
    parameters: Annotated[
        Path | None, typer.Option(help="Another file of parameters.", exists=True, dir_okay=False)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts there.")] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Simulate a run on more workers than there are: time, bottlenecks, requests, cost."""
    from benchmarks.simulation import commands

    asked = commands.SimulationOptions(
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
    commands.simulate(asked, environment, as_json=json)
