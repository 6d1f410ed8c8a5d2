"""The commands, their flags and their help. What they do is in the modules they import."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.cli import bench, cluster, tls
from pipeline.cli.backfill import commands
from pipeline.cli.errors import quiet_libraries, report_error, show_usage_error
from pipeline.cli.options import Environment, InOutput, JobFile, Json, Output, RunId
from pipeline.cli.terminal import guard_streams
from pipeline.processes import exit_process

INTERRUPTED = 130
"""The exit code of a command that the user stopped with Ctrl-C."""

app = typer.Typer(
    name="chunkmap",
    help="Map a Polars function over every chunk of a Parquet dataset in S3, exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 the run failed, 2 bad usage or input, 3 conflict, "
    "130 interrupted.",
)


@app.command()
def up(environment: Environment = None, json: Json = False) -> None:
    """Start S3, a Prefect server and a Dask cluster on this machine."""
    from pipeline.cli import local

    local.up(environment, as_json=json)


@app.command()
def down(environment: Environment = None, json: Json = False) -> None:
    """Stop exactly what `up` started."""
    from pipeline.cli import local

    local.down(environment, as_json=json)


@app.command()
def demo(environment: Environment = None, json: Json = False) -> None:
    """Run the main job end to end: start everything, TPC-H, plan, map, publish, verify, stop."""
    from pipeline.cli import demo as demonstration

    raise typer.Exit(demonstration.demo(environment, as_json=json))


@app.command()
def run(
    job: JobFile,
    environment: Environment = None,
    accept_code: Annotated[
        bool, typer.Option(help="Go on although the transform's code has changed.")
    ] = False,
    replan: Annotated[
        bool, typer.Option(help="Plan anew instead of going on with an unfinished run's plan.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option(help="Drive the run although another driver seems to be alive.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a job, or go on with it: maps what is left, publishes when nothing is."""
    from pipeline.cli import run

    run.run(
        job,
        environment,
        accept_code=accept_code,
        replan=replan,
        take_over=take_over,
        as_json=json,
    )


@app.command()
def plan(
    job: JobFile,
    environment: Environment = None,
    explain: Annotated[
        bool, typer.Option(help="Say what was pruned, and how chunks are sized.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a job would run: objects, row groups, chunks, bytes. Writes nothing."""
    from pipeline.cli import plan

    plan.plan(job, environment, explain=explain, as_json=json)


@app.command()
def check(
    job: JobFile,
    environment: Environment = None,
    rows: Annotated[int, typer.Option(help="Rows to print.")] = 5,
    json: Json = False,
) -> None:
    """Try a job's transform on one small chunk, whole and cut in two. Writes nothing."""
    from pipeline.cli import plan

    plan.check(job, environment, rows=rows, as_json=json)


@app.command()
def status(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's id, or the first letters of it."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Look at this output only.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show runs and how far they are, from storage alone."""
    from pipeline.cli import status

    status.status(run, output, environment, as_json=json)


@app.command()
def verify(output: Output, environment: Environment = None, json: Json = False) -> None:
    """Read an output again and hold every file against the manifest: rows, size, checksum."""
    from pipeline.cli import status

    raise typer.Exit(status.verify(output, environment, as_json=json))


@app.command()
def retry(
    run: RunId,
    output: InOutput = None,
    accept_code: Annotated[
        bool, typer.Option(help="Go on although the transform's code has changed.")
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Leave alone what was never tried.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Take a run up again by its id: what failed, and what was never tried."""
    from pipeline.cli import runs

    runs.retry(run, output, environment, accept_code=accept_code, only_failed=failed, as_json=json)


@app.command()
def cancel(
    run: RunId,
    output: InOutput = None,
    discard: Annotated[bool, typer.Option(help="Abort what is staged, too.")] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Stop a run, wherever its driver is; what is staged is kept."""
    from pipeline.cli import runs

    runs.cancel(run, output, environment, discard=discard, as_json=json)


@app.command()
def publish(
    run: RunId,
    output: InOutput = None,
    without_failed: Annotated[
        bool, typer.Option("--without-failed", help="Leave out the chunks that are not done.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Publish what a run has completed; a later retry adds what is missing."""
    from pipeline.cli import runs

    runs.publish(run, output, environment, without_failed=without_failed, as_json=json)


@app.command()
def history(output: Output, environment: Environment = None, json: Json = False) -> None:
    """List what was published to an output, newest first."""
    from pipeline.cli import runs

    runs.history(output, environment, as_json=json)


@app.command()
def rollback(
    output: Output,
    to: Annotated[
        int | None, typer.Option(help="A manifest's number; default the one before.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Make an older version of an output current again."""
    from pipeline.cli import runs

    runs.rollback(output, to, environment, as_json=json)


@app.command()
def repair(
    output: Output,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; default is to say what.")] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Diagnose and repair an output whose state is damaged."""
    from pipeline.cli import repair as repairing

    raise typer.Exit(repairing.repair(output, environment, yes=yes, as_json=json))


@app.command()
def vacuum(
    output: Output,
    older_than: Annotated[str, typer.Option(help="Spare younger uploads.")] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    discard: Annotated[
        list[str] | None, typer.Option(help="An unfinished run to give up; may be repeated.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Abort abandoned uploads and move orphan files away."""
    from pipeline.cli import runs

    runs.vacuum(
        output,
        environment,
        older_than=older_than,
        dry_run=dry_run,
        discard=discard or [],
        as_json=json,
    )


app.command("clean", hidden=True, deprecated=True)(vacuum)


@app.command()
def config(environment: Environment = None, json: Json = False) -> None:
    """Show every setting, secrets masked, and where it comes from."""
    from pipeline.cli import status

    status.config(environment, as_json=json)


app.add_typer(commands.app, name="backfill")
app.add_typer(bench.bench_app(), name="bench")
app.add_typer(cluster.app, name="cluster")
app.add_typer(tls.app, name="tls")


def main() -> None:
    """Run the command line; every error of ours becomes a message and an exit code."""
    guard_streams()
    quiet_libraries()
    # Anywhere on the line: also when the line itself is what is wrong.
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
    except SystemExit as end:
        exit_process(end.code if isinstance(end.code, int) else int(end.code is not None))
    except (Exception, KeyboardInterrupt) as error:
        if not as_json and hasattr(error, "format_message"):
            exit_process(show_usage_error(error))
        ended = report_error(error, as_json=as_json)
        if ended is None:
            raise
        exit_process(ended)
    else:
        if code == INTERRUPTED and as_json:
            report_error(KeyboardInterrupt(), as_json=True)
        elif code == INTERRUPTED:
            print("interrupted", file=sys.stderr)
        exit_process(code if isinstance(code, int) else 0)
