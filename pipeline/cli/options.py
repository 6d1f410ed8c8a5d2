"""Define the options that commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.units import parse_seconds
from pipeline.errors import UsageError
from pipeline.processes import is_main_of_container


def age(text: str) -> float:
    """Parse a duration such as `7d` as seconds.

    Raises:
        BadParameter: It is none.
    """
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def refuse_to_end_with_container(detach: bool) -> bool:
    """Refuse a background process that would end with this command.

    Raises:
        UsageError: This command is the main process of a container.
    """
    if detach and is_main_of_container():
        raise UsageError(
            "--detach: this container ends with its command, and so would the driver",
            hint="leave it out, and let the container run in the background: "
            "docker compose run -d …, docker run -d …",
        )
    return detach


def environments(incomplete: str) -> list[str]:
    """Complete the name of an environment: the files of the folder conf."""
    names = sorted(path.stem for path in Path("conf").glob("*.yaml"))
    return [name for name in names if name != "base" and name.startswith(incomplete)]


def outputs(incomplete: str) -> list[str]:
    """Complete an output: those of the runs that were started from this folder."""
    try:
        known = json.loads(Path(".chunkmap", "outputs.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return [uri for uri in known if isinstance(uri, str) and uri.startswith(incomplete)]


def refuse_watching_as_json(*, watch: bool, as_json: bool) -> None:
    """Refuse to print a view that is refreshed as one JSON object.

    Raises:
        UsageError: Both options are given.
    """
    if watch and as_json:
        raise UsageError("--watch and --json exclude each other: use one of them")


JobFile = Annotated[
    Path,
    typer.Argument(
        metavar="JOB.yaml", help="The job file; `-` is standard input.", show_default=False
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a value, e.g. params.rate=1.1; repeatable."
    ),
]
Environment = Annotated[
    str | None,
    typer.Option(
        "--environment",
        "-e",
        metavar="NAME",
        help="Also read conf/NAME.yaml.",
        autocompletion=environments,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Output = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT",
        help="URI of an output prefix.",
        show_default=False,
        autocompletion=outputs,
    ),
]
Prefix = Annotated[
    str, typer.Argument(metavar="PREFIX", help="URI of a prefix.", show_default=False)
]
RunId = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Id of a run, its first letters, or `last`.", show_default=False
    ),
]
LastRun = Annotated[
    str,
    typer.Argument(metavar="[RUN]", help="Id of a run or its first letters; default the newest."),
]
InOutput = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="URI",
        help="Search this output; default all known outputs.",
        autocompletion=outputs,
    ),
]
OnlyOutput = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="URI", help="Show this output only.", autocompletion=outputs
    ),
]
AcceptCode = Annotated[
    bool, typer.Option("--accept-code", help="Resume even if the transform has changed.")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take over even if another driver seems alive.")
]
Local = Annotated[
    bool, typer.Option("--local", help="Use processes of this machine: no Prefect, no Dask.")
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach",
        "-d",
        callback=refuse_to_end_with_container,
        help="Drive it in a background process.",
    ),
]
OnlyFailed = Annotated[bool, typer.Option("--failed", help="Retry failed chunks only.")]
OnlyFailedWindows = Annotated[bool, typer.Option("--failed", help="Retry failed windows only.")]
DebugChunk = Annotated[
    int | None,
    typer.Option(
        "--debug-chunk", metavar="N", min=0, help="Map this chunk here, in Python's debugger."
    ),
]
DebugPiece = Annotated[
    int | None,
    typer.Option(
        "--debug-piece", metavar="N", min=0, help="Map these groups here, in Python's debugger."
    ),
]
