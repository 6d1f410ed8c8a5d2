"""Define the commands of `chunkmap pipeline`. What they do is in the modules they import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.help import App, examples
from pipeline.cli.options import AcceptCode, Environment, Json, Local, Set

app = App("pipeline", "Run stages of a pipeline: ingest, map, load, call.")

PipelineFile = Annotated[
    Path,
    typer.Argument(
        metavar="PIPELINE.yaml",
        help="The pipeline file; `-` is standard input.",
        show_default=False,
    ),
]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="Value of a parameter; repeatable."),
]
Date = Annotated[
    str | None,
    typer.Option("--date", metavar="DATE", help="Value of the parameter that is a date."),
]
StartFrom = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="Begin here; leave out the stages before."),
]
Only = Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone.")]
Replan = Annotated[bool, typer.Option("--replan", help="Make new plans instead of resuming runs.")]


@app.command(
    epilog=examples(
        "pipeline run daily.yaml --date 2024-03-01",
        "pipeline run daily.yaml --param country=DE --from warehouse",
        "pipeline run daily.yaml --local",
    )
)
def run(  # noqa: PLR0917 - Typer takes them as they stand
    file: PipelineFile,
    change: Set = None,
    param: Param = None,
    date: Date = None,
    start_from: StartFrom = None,
    only: Only = None,
    accept_code: AcceptCode = False,
    replan: Replan = False,
    local: Local = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Run a pipeline, or resume one that stopped."""
    from pipeline.cli.pipelines import run as running

    running.run(
        running.Request(file, tuple(change or ()), tuple(param or ()), date, environment),
        running.options(start_from, only, accept_code=accept_code, replan=replan),
        local=local,
        as_json=json,
    )


@app.command(epilog=examples("pipeline plan daily.yaml --date 2024-03-01"))
def plan(  # noqa: PLR0917 - Typer takes them as they stand
    file: PipelineFile,
    change: Set = None,
    param: Param = None,
    date: Date = None,
    start_from: StartFrom = None,
    only: Only = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show which stages would run, and why. Writes nothing."""
    from pipeline.cli.pipelines import run as running
    from pipeline.cli.pipelines import show

    show.plan(
        running.Request(file, tuple(change or ()), tuple(param or ()), date, environment),
        running.options(start_from, only),
        as_json=json,
    )


@app.command(epilog=examples("pipeline backfill daily.yaml --from 2024-03-01 --to 2024-04-01"))
def backfill(  # noqa: PLR0917 - Typer takes them as they stand
    file: PipelineFile,
    start: Annotated[
        str, typer.Option("--from", metavar="DATE", help="First date.", show_default=False)
    ],
    end: Annotated[
        str, typer.Option("--to", metavar="DATE", help="End, not included.", show_default=False)
    ],
    days: Annotated[int, typer.Option(metavar="N", min=1, help="Days between two dates.")] = 1,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Also look at dates that are done.")
    ] = False,
    change: Set = None,
    param: Param = None,
    local: Local = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Run a pipeline for each date of a range, oldest first."""
    from pipeline.cli.pipelines import run as running

    running.backfill(
        running.Request(file, tuple(change or ()), tuple(param or ()), None, environment),
        start,
        end,
        days,
        recheck=recheck,
        local=local,
        as_json=json,
    )


@app.command(epilog=examples("pipeline status daily.yaml"))
def status(
    file: PipelineFile,
    change: Set = None,
    environment: Environment = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Show the newest N runs.")] = 20,
    json: Json = False,
) -> None:
    """Show the runs of a pipeline and their stages."""
    from pipeline.cli.pipelines import show

    show.status(file, environment, changes=change or (), limit=limit, as_json=json)
