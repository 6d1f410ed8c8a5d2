"""Make the certificates of a cluster: `chunkmap tls …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.help import App, examples
from pipeline.cli.options import Json

app = App("tls", "Make TLS certificates for a cluster.")


@app.callback()
def tls() -> None:
    """Make TLS certificates for a cluster."""


@app.command(epilog=examples("tls init --host scheduler --days 90"))
def init(
    directory: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Write to this folder, readable by you alone.")
    ] = Path("certs"),
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name or address of a host; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(metavar="N", min=1, help="Days that they are valid.")] = 365,
    force: Annotated[
        bool, typer.Option("--force", help="Replace certificates, but keep the CA.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a private CA and certificates signed by it."""
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
        say(f"{path}: kept (it exists)")
    say(f"They are valid until {until:%Y-%m-%d}. Keep ca-key.pem where no process can read it.")
