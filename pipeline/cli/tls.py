"""`chunkmap tls …`: certificates for the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="tls",
    help="Make the certificates with which a cluster's processes know each other.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def tls() -> None:
    """Make the certificates with which a cluster's processes know each other."""


@app.command()
def init(
    directory: Annotated[Path, typer.Option(help="Where they go; made for you alone.")] = Path(
        "certs"
    ),
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A host's name or address; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long they are valid.")] = 365,
    force: Annotated[
        bool, typer.Option("--force", help="Make them anew; the authority stays as it is.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Make a private CA and certificates of scheduler, workers and clients. Overwrites nothing."""
    from pipeline.cli.output import print_json, say
    from pipeline.cluster.certificates import expires, make

    made = make(directory, host or (), days, force=force)
    until = expires(directory / "client.pem")
    if json:
        print_json(
            {
                "written": [str(path) for path in made.written],
                "kept": [str(path) for path in made.kept],
                "expires": until.isoformat(),
            }
        )
        return
    for path in made.written:
        say(f"{path}: made")
    for path in made.kept:
        say(f"{path}: was there, and is kept")
    say(f"They are valid until {until:%Y-%m-%d}. Keep ca-key.pem where no process can read it.")
