"""Define the commands of `chunkmap backfill`. What they do is in the modules they import."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.backfill.options import (
    AllOrNothing,
    AllowMissing,
    Backwards,
    BytesPerRun,
    Canary,
    CanaryHold,
    CanaryLimit,
    Exclude,
    From,
    Id,
    Key,
    Last,
    MaxActive,
    MaxFailures,
    Priority,
    Reprocess,
    ReprocessMode,
    To,
    Values,
    WindowNames,
    WindowsPerRun,
)
from pipeline.cli.help import App, examples
from pipeline.cli.options import (
    AcceptCode,
    Detach,
    Environment,
    InOutput,
    JobFile,
    Json,
    Local,
    OnlyFailedWindows,
    OnlyOutput,
    Set,
    TakeOver,
)

app = App("backfill", "Run a job over many windows of its input.")


@app.command(epilog=examples("backfill plan job.yaml --last 30d"))
def plan(  # noqa: PLR0917 - Typer takes them as they stand
    job: JobFile,
    change: Set = None,
    start: From = None,
    end: To = None,
    last: Last = None,
    values: Values = None,
    exclude: Exclude = None,
    allow_missing: AllowMissing = False,
    reprocess: Reprocess = ReprocessMode.missing,
    windows_per_run: WindowsPerRun = None,
    bytes_per_run: BytesPerRun = None,
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
    """Show what a backfill would do. Writes nothing."""
    from pipeline.cli.backfill import create

    create.plan(
        job,
        create.selection(start, end, last, values, exclude, allow_missing=allow_missing),
        create.options(
            reprocess=reprocess.value,
            windows_per_run=windows_per_run,
            bytes_per_run=bytes_per_run,
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
        changes=change or (),
        accept_code=accept_code,
        as_json=json,
    )


@app.command(
    epilog=examples(
        "backfill create job.yaml --from 2024-01-01 --to 2025-01-01",
        "backfill create job.yaml --canary 1% --detach",
    )
)
def create(  # noqa: PLR0917 - Typer takes them as they stand
    job: JobFile,
    change: Set = None,
    start: From = None,
    end: To = None,
    last: Last = None,
    values: Values = None,
    exclude: Exclude = None,
    allow_missing: AllowMissing = False,
    reprocess: Reprocess = ReprocessMode.missing,
    windows_per_run: WindowsPerRun = None,
    bytes_per_run: BytesPerRun = None,
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
    local: Local = False,
    detach: Detach = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Create a backfill, or resume it, and drive it."""
    from pipeline.cli.backfill import create

    create.create(
        job,
        create.selection(start, end, last, values, exclude, allow_missing=allow_missing),
        create.options(
            reprocess=reprocess.value,
            windows_per_run=windows_per_run,
            bytes_per_run=bytes_per_run,
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
        changes=change or (),
        accept_code=accept_code,
        take_over=take_over,
        local=local,
        detach=detach,
        as_json=json,
    )


@app.command("list", epilog=examples("backfill list"))
def list_(output: OnlyOutput = None, environment: Environment = None, json: Json = False) -> None:
    """List backfills, from storage alone."""
    from pipeline.cli.backfill import show

    show.list_all(output, environment, as_json=json)


@app.command(epilog=examples("backfill status last --watch"))
def status(
    backfill: Id,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds until its driver ends.")
    ] = False,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show the progress of a backfill as a calendar."""
    from pipeline.cli.backfill import show

    show.status(backfill, output, environment, watch=watch, as_json=json)


@app.command(epilog=examples("backfill pause last"))
def pause(
    backfill: Id, output: InOutput = None, environment: Environment = None, json: Json = False
) -> None:
    """Start no more runs; finish active ones."""
    from pipeline.cli.backfill import control

    control.pause(backfill, output, environment, as_json=json)


@app.command(epilog=examples("backfill resume last --detach"))
def resume(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    accept_code: AcceptCode = False,
    take_over: TakeOver = False,
    local: Local = False,
    detach: Detach = False,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Resume after a pause, a canary or a dead driver."""
    from pipeline.cli.backfill import control

    control.resume(
        backfill,
        output,
        environment,
        accept_code=accept_code,
        take_over=take_over,
        local=local,
        detach=detach,
        as_json=json,
    )


@app.command(
    epilog=examples("backfill retry last --window 2024-02", "backfill retry last --failed")
)
def retry(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    failed: OnlyFailedWindows = False,
    window: WindowNames = None,
    accept_code: AcceptCode = False,
    take_over: TakeOver = False,
    local: Local = False,
    detach: Detach = False,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Retry windows that are not done."""
    from pipeline.cli.backfill import control

    control.retry(
        backfill,
        output,
        environment,
        only_failed=failed,
        windows=window or [],
        accept_code=accept_code,
        take_over=take_over,
        local=local,
        detach=detach,
        as_json=json,
    )


@app.command(epilog=examples("backfill cancel 3f2a"))
def cancel(
    backfill: Id, output: InOutput = None, environment: Environment = None, json: Json = False
) -> None:
    """Stop for good; published windows stay."""
    from pipeline.cli.backfill import control

    control.cancel(backfill, output, environment, as_json=json)


@app.command("set", epilog=examples("backfill set last --max-active 8"))
def set_(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    max_active: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Run at most N runs at once.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help="Run higher priorities first on the cluster.")
    ] = None,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Change concurrency or priority, even while it runs."""
    from pipeline.cli.backfill import control

    control.set_(backfill, output, environment, max_active, priority, as_json=json)


@app.command(epilog=examples("backfill logs last --window 2024-02-29 --failed"))
def logs(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    window: WindowNames = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Show failed attempts only, with their tracebacks.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Show at most the last N attempts.")
    ] = 200,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show every attempt at the chunks of windows."""
    from pipeline.cli.backfill import show

    show.logs(
        backfill, output, environment, window or [], only_failed=failed, limit=limit, as_json=json
    )


@app.command(epilog=examples("backfill report last", "backfill report last --serve"))
def report(  # noqa: PLR0917 - Typer takes them as they stand
    backfill: Id,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve a page that follows it, on this machine.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Serve at this port; 0 is any free.")
    ] = 0,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Write its report now, or serve it while it runs."""
    from pipeline.cli.backfill import show

    show.report(backfill, output, environment, serve=serve, port=port, as_json=json)


@app.command(hidden=True)
def drive(
    backfill: Id,
    again: Annotated[str, typer.Option(help="How to resume, as JSON.")] = "{}",
    local: Local = False,
    output: InOutput = None,
    environment: Environment = None,
) -> None:
    """Drive a stored backfill (started by `--detach`)."""
    from pipeline.cli.backfill import create

    create.drive_stored(backfill, output, environment, again, local=local)
