"""Define the options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[
    Path, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)
]
Environment = Annotated[
    str | None,
    typer.Option("--environment", "-e", help="Also read conf/<environment>.yaml."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Output = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="URI of an output prefix.", show_default=False)
]
RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Id of a run, or its first letters.", show_default=False),
]
InOutput = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Search this output; default all known outputs."),
]
OnlyOutput = Annotated[str | None, typer.Option("--output", "-o", help="Show this output only.")]
AcceptCode = Annotated[
    bool, typer.Option("--accept-code", help="Resume even if the transform has changed.")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take over even if another driver seems alive.")
]
OnlyFailed = Annotated[bool, typer.Option("--failed", help="Retry failed chunks only.")]
