"""`chunkmap bench …`: the commands and their flags; the work is in the package benchmarks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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


Environment = Annotated[
    str | None,
    typer.Option("--environment", "-e", help="Take settings from conf/<environment>.yaml too."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
Root = Annotated[str, typer.Option(help="Prefix under which datasets and reports live.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the workloads, the datasets and the peers."""
    from pipeline.cli import benching

    benching.list_all(as_json=json)


@app.command()
def run(  # noqa: PLR0917 - Typer takes them as they stand
    suite: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE]…", help="Workloads, or main, rest, all. Default: all."),
    ] = None,
    scale: Annotated[Size, typer.Option(help="TPC-H at 1, 4 or 20, and the like.")] = Size.s,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="PEER", help="Only these peers; may be given several times."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Processes of each, interleaved.")] = 5,
    iterations: Annotated[
        int, typer.Option(min=1, help="Times each process does the work; the first is cold.")
    ] = 2,
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
    from benchmarks.session import Request
    from pipeline.cli import benching

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
    benching.run(request, environment, as_json=json)


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
    from pipeline.cli import benching

    benching.report(session, docs, root, environment, as_json=json)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A session or a record's file.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Compare the ratios of two sessions."""
    from pipeline.cli import benching

    benching.compare(before, after, environment, as_json=json)


@app.command()
def history(environment: Environment = None, json: Json = False) -> None:
    """Show the sessions on this machine, and how the ratios went."""
    from pipeline.cli import benching

    benching.history(environment, as_json=json)


@app.command()
def gate(
    baseline: Annotated[Path, typer.Option(help="The record to hold against.", exists=True)],
    session: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A session; default: the newest.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Fail if a ratio is worse than the baseline's by more than noise explains."""
    from pipeline.cli import benching

    raise typer.Exit(benching.gate(baseline, session, environment, as_json=json))
