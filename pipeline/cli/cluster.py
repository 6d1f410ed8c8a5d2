"""`chunkmap cluster …`: the commands and their flags."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="cluster",
    help="Look at the Dask cluster, scale it, and find out what ails it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Environment = Annotated[
    str | None,
    typer.Option("--environment", "-e", help="Take settings from conf/<environment>.yaml too."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


@app.command()
def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again every two seconds, until Ctrl-C.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show the workers: threads, memory, versions, and what runs where."""
    from pipeline.cli import clustering

    clustering.status(environment, watch=watch, as_json=json)


@app.command()
def scale(
    workers: Annotated[int, typer.Argument(metavar="N", min=0, help="Wanted workers.")],
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Start or retire workers, where the cluster lets itself be told. No chunk is lost."""
    from pipeline.cli import clustering

    clustering.scale(workers, environment, as_json=json)


@app.command()
def doctor(
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Try S3 rights beside this output; default any known."),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Check reachability, versions, clocks, TLS, limits, and S3 rights from every worker."""
    from pipeline.cli import clustering

    raise typer.Exit(clustering.doctor(output, environment, as_json=json))
