"""The flags that commands of `chunkmap backfill` share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

RANGE = "Which windows"
HOW = "How"


class Reprocess(StrEnum):
    """Which windows are done again."""

    missing = "missing"
    failed = "failed"
    changed = "changed"
    all = "all"


Id = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Its id or the first letters; `last` is the newest.", show_default=False
    ),
]

From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="DATE", help="First window, such as 2024-01-01.", rich_help_panel=RANGE
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="DATE",
        help="The end, not included: --to 2025-01-01 is up to the end of 2024.",
        rich_help_panel=RANGE,
    ),
]
Last = Annotated[
    str | None,
    typer.Option(
        metavar="SPAN",
        help="The last complete windows before now: 12h, 30d, 2w, 6mo.",
        rich_help_panel=RANGE,
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B", help="These values; may be given several times.", rich_help_panel=RANGE
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B",
        help="Not these: a window, a month of days (2024-02), a range 2024-02-01..2024-02-10.",
        rich_help_panel=RANGE,
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Also where the range reaches beyond the input.",
        rich_help_panel=RANGE,
    ),
]
Again = Annotated[
    Reprocess,
    typer.Option(
        "--reprocess",
        help="missing: what the output lacks. failed: what failed before. changed: that, and "
        "what has other input or code since. all.",
        rich_help_panel=RANGE,
    ),
]
WindowsPerRun = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Windows mapped as one set of chunks, committed one by one. Default: so many that "
        "there are about 50 runs.",
        rich_help_panel=HOW,
    ),
]
MaxActive = Annotated[
    int, typer.Option(min=1, metavar="N", help="Runs at a time.", rich_help_panel=HOW)
]
Backwards = Annotated[
    bool, typer.Option("--backwards", help="Newest window first.", rich_help_panel=HOW)
]
Priority = Annotated[
    int,
    typer.Option(metavar="N", help="Higher goes first on a shared cluster.", rich_help_panel=HOW),
]
Canary = Annotated[
    str | None,
    typer.Option(
        metavar="N|%",
        help="So many windows first, spread over all: 3 or 1%. The rest only if they are fine.",
        rich_help_panel=HOW,
    ),
]
CanaryLimit = Annotated[
    str,
    typer.Option(
        metavar="N|%", help="Chunks of the canary that may fail: 5 or 1%.", rich_help_panel=HOW
    ),
]
CanaryHold = Annotated[
    bool,
    typer.Option(
        "--canary-hold",
        help="Stop after the canary; `resume` goes on.",
        rich_help_panel=HOW,
    ),
]
MaxFailures = Annotated[
    str | None,
    typer.Option(
        metavar="N|%",
        help="Begin nothing more once more windows than this have failed.",
        rich_help_panel=HOW,
    ),
]
AllOrNothing = Annotated[
    bool,
    typer.Option(
        "--all-or-nothing",
        help="Publish all windows together once all are done, or none.",
        rich_help_panel=HOW,
    ),
]
Key = Annotated[
    str,
    typer.Option(
        "--idempotency-key",
        metavar="TEXT",
        help="The same request with the same key is one backfill.",
        rich_help_panel=HOW,
    ),
]
Detach = Annotated[
    bool,
    typer.Option("--detach", "-d", help="Drive it in a process that outlives this terminal."),
]
AcceptCode = Annotated[
    bool, typer.Option("--accept-code", help="Go on although the transform's code has changed.")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Drive although another driver seems to be alive.")
]
WindowNames = Annotated[
    list[str] | None,
    typer.Option(
        "--window",
        "-w",
        metavar="WINDOW",
        help="A window, a month of days, a range A..B; may be given several times.",
    ),
]
