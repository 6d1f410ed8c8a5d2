"""Define the options that commands of `chunkmap backfill` share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

WINDOWS_PANEL = "Which windows"
EXECUTION_PANEL = "How"


class ReprocessMode(StrEnum):
    """Windows to process, with respect to what the output holds."""

    missing = "missing"
    failed = "failed"
    changed = "changed"
    all = "all"


Id = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Id of a backfill, its first letters, or `last`.",
        show_default=False,
    ),
]

From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="DATE",
        help="First window, e.g. 2024-01-01; default the input's.",
        rich_help_panel=WINDOWS_PANEL,
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="DATE",
        help="End, not included; default the input's.",
        rich_help_panel=WINDOWS_PANEL,
    ),
]
Last = Annotated[
    str | None,
    typer.Option(
        metavar="SPAN",
        help="Last complete windows: 12h, 30d, 2w, 6mo.",
        rich_help_panel=WINDOWS_PANEL,
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B", help="Process these values; repeatable.", rich_help_panel=WINDOWS_PANEL
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B",
        help="Exclude a window, 2024-02, or A..B.",
        rich_help_panel=WINDOWS_PANEL,
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Allow a range that exceeds the input.",
        rich_help_panel=WINDOWS_PANEL,
    ),
]
Reprocess = Annotated[
    ReprocessMode,
    typer.Option(
        "--reprocess",
        help="Process missing, failed, changed or all windows.",
        rich_help_panel=WINDOWS_PANEL,
    ),
]
WindowsPerRun = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Map N windows as one run.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
BytesPerRun = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Map windows of SIZE, decoded, as one run; default 1GiB, or about 50 runs.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
MaxActive = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Run at most N runs at once.", rich_help_panel=EXECUTION_PANEL
    ),
]
Backwards = Annotated[
    bool,
    typer.Option(
        "--backwards", help="Process the newest window first.", rich_help_panel=EXECUTION_PANEL
    ),
]
Priority = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Run higher priorities first on the cluster.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
Canary = Annotated[
    str | None,
    typer.Option(
        metavar="N|%",
        help="Process N windows (or N%) first, as a test.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
CanaryLimit = Annotated[
    str,
    typer.Option(
        metavar="N|%",
        help="Stop if more canary chunks than this fail.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
CanaryHold = Annotated[
    bool,
    typer.Option(
        "--canary-hold",
        help="Pause after the canary, until `resume`.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
MaxFailures = Annotated[
    str | None,
    typer.Option(
        metavar="N|%",
        help="Stop once more windows than this fail.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
AllOrNothing = Annotated[
    bool,
    typer.Option(
        "--all-or-nothing",
        help="Publish all windows in one commit, or none.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
Key = Annotated[
    str,
    typer.Option(
        "--idempotency-key",
        metavar="TEXT",
        help="Identify this request by a key.",
        rich_help_panel=EXECUTION_PANEL,
    ),
]
WindowNames = Annotated[
    list[str] | None,
    typer.Option(
        "--window",
        "-w",
        metavar="WINDOW",
        help="Select a window, 2024-02, or A..B; repeatable.",
    ),
]
