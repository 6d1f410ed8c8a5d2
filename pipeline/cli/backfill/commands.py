"""`chunkmap backfill …`: the commands and their flags; what they do is in backfilling*.py."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.backfill.options import (
    AcceptCode,
    Again,
    AllOrNothing,
    AllowMissing,
    Backwards,
    Canary,
    CanaryHold,
    CanaryLimit,
    Detach,
    Exclude,
    From,
    Id,
    Key,
    Last,
    MaxActive,
    MaxFailures,
    Priority,
    Reprocess,
    TakeOver,
    To,
    Values,
    WindowNames,
    WindowsPerRun,
)
from pipeline.cli.options import Environment, InOutput, JobFile, Json

app = typer.Typer(
    name="backfill",
    help="Run a job over many windows (days, hours, months, values) of its input.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def plan(  # noqa: PLR0917 - Typer takes them as they stand
    job: JobFile,
    start: From = None,
    end: To = None,
    last: Last = None,
    values: Values = None,
    exclude: Exclude = None,
    allow_missing: AllowMissing = False,
    reprocess: Again = Reprocess.missing,
    windows_per_run: WindowsPerRun = None,
    max_active: MaxActive = 4,
    backwards: Backwards = False,
    priority: Priority = 0,
    canary: Canary = None,
    canary_limit: CanaryLimit = "0",
    canary_hold: CanaryHold = False,
    max_failures: MaxFailures = None,
    all_or_nothing: AllOrNothing = False,
    idempotency_key: Key = "",
    accept_code: AcceptCode = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show what a backfill would do: windows, chunks, bytes, time, memory. Writes nothing."""
    from pipeline.cli.backfill import create

    create.plan(
        job,
        create.asked(start, end, last, values, exclude, allow_missing=allow_missing),
        create.options(
            reprocess=reprocess.value,
            windows_per_run=windows_per_run,
            max_active=max_active,
            backwards=backwards,
            priority=priority,
            canary=canary,
            canary_limit=canary_limit,
            canary_hold=canary_hold,
            max_failures=max_failures,
            all_or_nothing=all_or_nothing,
            idempotency_key=idempotency_key,
        ),
        environment,
        accept_code=accept_code,
        as_json=json,
    )


@app.command()
def create(  # noqa: PLR0917 - Typer takes them as they stand
    job: JobFile,
    start: From = None,
    end: To = None,
    last: Last = None,
    values: Values = None,
    exclude: Exclude = None,
    allow_missing: AllowMissing = False,
    reprocess: Again = Reprocess.missing,
    windows_per_run: WindowsPerRun = None,
    max_active: MaxActive = 4,
    backwards: Backwards = False,
    priority: Priority = 0,
    canary: Canary = None,
    canary_limit: CanaryLimit = "0",
    canary_hold: CanaryHold = False,
    max_failures: MaxFailures = None,
    all_or_nothing: AllOrNothing = False,
    idempotency_key: Key = "",
    accept_code: AcceptCode = False,
    take_over: TakeOver = False,
    detach: Detach = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Create a backfill and drive it to its end. The same request again goes on with it."""
    from pipeline.cli.backfill import create

    create.create(
        job,
        create.asked(start, end, last, values, exclude, allow_missing=allow_missing),
        create.options(
            reprocess=reprocess.value,
            windows_per_run=windows_per_run,
            max_active=max_active,
            backwards=backwards,
            priority=priority,
            canary=canary,
            canary_limit=canary_limit,
            canary_hold=canary_hold,
            max_failures=max_failures,
            all_or_nothing=all_or_nothing,
            idempotency_key=idempotency_key,
        ),
        environment,
        accept_code=accept_code,
        take_over=take_over,
        detach=detach,
        as_json=json,
    )


@app.command("list")
def list_(
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Look at this output only.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """List the backfills of the known outputs, from storage alone."""
    from pipeline.cli.backfill import show

    show.list_all(output, environment, as_json=json)


@app.command()
def status(
    backfill: Id,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds until its driver ends.")
    ] = False,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show how far a backfill is, as a calendar, from storage alone."""
    from pipeline.cli.backfill import show

    show.status(backfill, output, environment, watch=watch, as_json=json)


@app.command()
def pause(
    backfill: Id, output: InOutput = None, environment: Environment = None, json: Json = False
) -> None:
    """Hand out no further work; what is at hand is finished."""
    from pipeline.cli.backfill import control

    control.pause(backfill, output, environment, as_json=json)


@app.command()
def resume(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    accept_code: AcceptCode = False,
    take_over: TakeOver = False,
    detach: Detach = False,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Go on: after a pause, after a canary, after a driver that died."""
    from pipeline.cli.backfill import control

    control.resume(
        backfill,
        output,
        environment,
        accept_code=accept_code,
        take_over=take_over,
        detach=detach,
        as_json=json,
    )


@app.command()
def retry(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    failed: Annotated[
        bool, typer.Option("--failed", help="Leave alone what was never tried.")
    ] = False,
    window: WindowNames = None,
    accept_code: AcceptCode = False,
    take_over: TakeOver = False,
    detach: Detach = False,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Try again what is not done: all of it, what failed, or some windows."""
    from pipeline.cli.backfill import control

    control.retry(
        backfill,
        output,
        environment,
        only_failed=failed,
        windows=window or [],
        accept_code=accept_code,
        take_over=take_over,
        detach=detach,
        as_json=json,
    )


@app.command()
def cancel(
    backfill: Id, output: InOutput = None, environment: Environment = None, json: Json = False
) -> None:
    """Stop for good, wherever its driver is; windows that are published stay."""
    from pipeline.cli.backfill import control

    control.cancel(backfill, output, environment, as_json=json)


@app.command("set")
def set_(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    max_active: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at a time.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help="Higher goes first on a shared cluster.")
    ] = None,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Change how it goes about its windows, while it runs or before it goes on."""
    from pipeline.cli.backfill import control

    control.set_(backfill, output, environment, max_active, priority, as_json=json)


@app.command()
def logs(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    window: WindowNames = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only tries that failed, with their traces.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The last so many tries.")] = 200,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show every try of a window's chunks: when, where, how long, and what went wrong."""
    from pipeline.cli.backfill import show

    show.logs(
        backfill, output, environment, window or [], only_failed=failed, limit=limit, as_json=json
    )


@app.command()
def report(
    backfill: Id, output: InOutput = None, environment: Environment = None, json: Json = False
) -> None:
    """Write its report as it stands now: HTML with the heat map, and JSON."""
    from pipeline.cli.backfill import show

    show.report(backfill, output, environment, as_json=json)


@app.command(hidden=True)
def drive(
    backfill: Id,
    again: Annotated[str, typer.Option(help="What to go on with, as JSON.")] = "{}",
    output: InOutput = None,
    environment: Environment = None,
) -> None:
    """Drive it in this process; what `--detach` starts."""
    from pipeline.cli.backfill import create

    create.drive_stored(backfill, output, environment, again)
