"""Define the commands, their options and their help. What they do is in the modules they import."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import bench, cluster, tls
from pipeline.cli.backfill import commands
from pipeline.cli.errors import quiet_libraries, report_error, show_usage_error
from pipeline.cli.help import JOBS, OUTPUTS, RUNS, SETUP, START, App, examples
from pipeline.cli.hints import given_environment
from pipeline.cli.options import (
    AcceptCode,
    DebugChunk,
    DebugPiece,
    Detach,
    Environment,
    InOutput,
    JobFile,
    Json,
    LastRun,
    Local,
    OnlyFailed,
    OnlyOutput,
    Output,
    Prefix,
    RunId,
    Set,
    TakeOver,
    age,
    outputs,
)
from pipeline.cli.pipelines import commands as pipeline_commands
from pipeline.cli.terminal import guard_streams
from pipeline.errors import UsageError
from pipeline.processes import exit_process

DAY = 86_400.0
INTERRUPTED = 130
"""Exit code of a command that the user stopped with Ctrl-C."""

app = App(
    "chunkmap",
    "Map a Polars function over a Parquet dataset in S3, exactly once.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 bad usage or input, 3 conflict, "
    "130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"chunkmap {metadata.version('chunkmap')}")
        raise typer.Exit


@app.callback()
def chunkmap(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Map a Polars function over a Parquet dataset in S3, exactly once."""


@app.command(
    rich_help_panel=START,
    epilog=examples("init s3://bucket/sales/", "init s3://bucket/sales/ --name revenue"),
)
def init(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[INPUT]", help="URI of Parquet, whose columns are listed."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the job; default the input's.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="URI", help="Output; default next to the input."),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Write a first job and its transform."""
    from pipeline.cli import init as starting

    starting.init(source, name, output, environment, as_json=json)


@app.command(rich_help_panel=START, epilog=examples("up"))
def up(environment: Environment = None, json: Json = False) -> None:
    """Start S3, Prefect and Dask on this machine."""
    from pipeline.cli import local

    local.up(environment, as_json=json)


@app.command(rich_help_panel=START, epilog=examples("down"))
def down(environment: Environment = None, json: Json = False) -> None:
    """Stop what `up` started, nothing else."""
    from pipeline.cli import local

    local.down(environment, as_json=json)


@app.command(rich_help_panel=START, epilog=examples("env", "env --prefect"))
def env(
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Print those of the Prefect server.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Print variables for the S3 of `up`, for `eval`."""
    from pipeline.cli import local

    local.env(environment, prefect=prefect, as_json=json)


@app.command(rich_help_panel=START, epilog=examples("demo", "demo --keep"))
def demo(
    environment: Environment = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the services running.")] = False,
    json: Json = False,
) -> None:
    """Run the demo job from start to verified output."""
    from pipeline.cli import demo as demonstration

    raise typer.Exit(demonstration.demo(environment, keep=keep, as_json=json))


@app.command(
    rich_help_panel=JOBS,
    epilog=examples("run job.yaml", "run job.yaml --local", "run job.yaml --set params.rate=1.1"),
)
def run(
    job: JobFile,
    change: Set = None,
    environment: Environment = None,
    accept_code: AcceptCode = False,
    replan: Annotated[
        bool, typer.Option("--replan", help="Make a new plan instead of resuming.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Replace what this job published before.")
    ] = False,
    take_over: TakeOver = False,
    debug_chunk: DebugChunk = None,
    local: Local = False,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Run a job, or resume its unfinished run."""
    from pipeline.cli import run

    if debug_chunk is not None:
        flags = {"--accept-code": accept_code, "--take-over": take_over}
        flags |= {"--detach": detach, "--json": json, "--rebuild": rebuild, "--replan": replan}
        raise typer.Exit(run.debug(job, environment, debug_chunk, flags, changes=change or ()))
    run.run(
        job,
        environment,
        changes=change or (),
        accept_code=accept_code,
        replan=replan,
        rebuild=rebuild,
        take_over=take_over,
        local=local,
        detach=detach,
        as_json=json,
    )


@app.command(
    rich_help_panel=JOBS,
    epilog=examples("ingest orders.yaml", "ingest orders.yaml --from 2024-03-01 --to 2024-04-01"),
)
def ingest(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.yaml", help="What to ingest; `-` is standard input.", show_default=False
        ),
    ],
    change: Set = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="Beginning of the window.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DATE", help="End of the window, exclusive.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask again for what is already published.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Turn an HTTP API or files into Parquet, or resume."""
    from pipeline.cli import ingest as ingesting

    ingesting.ingest(
        file,
        environment,
        changes=change or (),
        start=start,
        end=end,
        refresh=refresh,
        as_json=json,
    )


@app.command(rich_help_panel=JOBS, epilog=examples("plan job.yaml --explain"))
def plan(
    job: JobFile,
    change: Set = None,
    environment: Environment = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what was pruned and how chunks are sized.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a job would run. Writes nothing."""
    from pipeline.cli import plan

    plan.plan(job, environment, changes=change or (), explain=explain, as_json=json)


@app.command(rich_help_panel=JOBS, epilog=examples("check job.yaml --rows 20"))
def check(
    job: JobFile,
    change: Set = None,
    environment: Environment = None,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="Rows to print.")] = 5,
    json: Json = False,
) -> None:
    """Try a transform on one small chunk. Writes nothing."""
    from pipeline.cli import plan

    plan.check(job, environment, changes=change or (), rows=rows, as_json=json)


@app.command(
    rich_help_panel=RUNS, epilog=examples("status", "status --state failed", "status last --json")
)
def status(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Id of a run, its first letters, or `last`."),
    ] = None,
    output: OnlyOutput = None,
    every: Annotated[
        bool, typer.Option("--all", help="Show every run, also each of a backfill.")
    ] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE", help="Show runs in this state only; repeatable."),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show the newest runs, or one, from storage alone."""
    from pipeline.cli import status

    status.status(run, output, environment, every=every, states=state or [], as_json=json)


@app.command(rich_help_panel=OUTPUTS, epilog=examples("head s3://bucket/prefix/ --rows 20"))
def head(
    output: Output,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="Rows to print.")] = 10,
    version: Annotated[
        int | None, typer.Option(metavar="N", help="Number of a manifest; default the current.")
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Print the first rows of an output."""
    from pipeline.cli import head as heading

    heading.head(output, environment, rows=rows, version=version, as_json=json)


@app.command(
    rich_help_panel=OUTPUTS,
    epilog=examples("adopt s3://bucket/prefix/ --dry-run", "adopt s3://bucket/prefix/"),
)
def adopt(
    prefix: Prefix,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be adopted.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Make existing Parquet files an output, without touching them."""
    from pipeline.cli import adopt as adopting

    adopting.adopt(prefix, environment, dry_run=dry_run, as_json=json)


@app.command(rich_help_panel=OUTPUTS, epilog=examples("verify s3://bucket/prefix/"))
def verify(output: Output, environment: Environment = None, json: Json = False) -> None:
    """Check every file of an output against its manifest."""
    from pipeline.cli import status

    raise typer.Exit(status.verify(output, environment, as_json=json))


@app.command(rich_help_panel=RUNS, epilog=examples("retry last --failed"))
def retry(
    run: RunId,
    output: InOutput = None,
    accept_code: AcceptCode = False,
    failed: OnlyFailed = False,
    debug_chunk: DebugChunk = None,
    debug_piece: DebugPiece = None,
    take_over: TakeOver = False,
    local: Local = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Resume a run by its id, with the chunks that failed."""
    from pipeline.cli import runs

    flags = {"--accept-code": accept_code, "--take-over": take_over}
    flags |= {"--failed": failed, "--json": json}
    if debug_chunk is not None:
        flags["--debug-piece"] = debug_piece is not None
        raise typer.Exit(runs.debug(run, output, environment, debug_chunk, flags))
    if debug_piece is not None:
        raise typer.Exit(runs.debug(run, output, environment, debug_piece, flags, of_then=True))
    runs.retry(
        run,
        output,
        environment,
        accept_code=accept_code,
        only_failed=failed,
        take_over=take_over,
        local=local,
        as_json=json,
    )


@app.command(rich_help_panel=RUNS, epilog=examples("logs last --failed", "logs 3f2a --chunk 12"))
def logs(
    run: LastRun = "last",
    chunk: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=0, help="Show attempts at this chunk; repeatable."),
    ] = None,
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
    """Show every attempt at the chunks of a run."""
    from pipeline.cli import run_details

    run_details.logs(
        run, output, environment, chunk or [], only_failed=failed, limit=limit, as_json=json
    )


@app.command(rich_help_panel=RUNS, epilog=examples("report last --open"))
def report(
    run: LastRun = "last",
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    output: InOutput = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Fetch the report of a run, or make it now."""
    from pipeline.cli import run_details

    run_details.report(run, output, environment, open_page=open_page, as_json=json)


@app.command(rich_help_panel=RUNS, epilog=examples("cancel last"))
def cancel(
    run: RunId,
    output: InOutput = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Also abort its staged outputs.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Stop a run and keep its staged outputs."""
    from pipeline.cli import runs

    runs.cancel(run, output, environment, discard=discard, as_json=json)


@app.command(rich_help_panel=RUNS, epilog=examples("publish 3f2a --without-failed"))
def publish(
    run: RunId,
    output: InOutput = None,
    without_failed: Annotated[
        bool, typer.Option("--without-failed", help="Leave out chunks that are not done.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Publish the completed chunks of a run."""
    from pipeline.cli import runs

    runs.publish(run, output, environment, without_failed=without_failed, as_json=json)


@app.command(rich_help_panel=OUTPUTS, epilog=examples("history s3://bucket/prefix/"))
def history(output: Output, environment: Environment = None, json: Json = False) -> None:
    """List the versions of an output, newest first."""
    from pipeline.cli import runs

    runs.history(output, environment, as_json=json)


@app.command(rich_help_panel=OUTPUTS, epilog=examples("rollback s3://bucket/prefix/ --to 3"))
def rollback(
    output: Output,
    to: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of a manifest; default the previous version."),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Make an older version of an output current again."""
    from pipeline.cli import runs

    runs.rollback(output, to, environment, as_json=json)


@app.command(
    rich_help_panel=OUTPUTS,
    epilog=examples("repair s3://bucket/prefix/", "repair s3://bucket/prefix/ --yes"),
)
def repair(
    output: Output,
    yes: Annotated[bool, typer.Option("--yes", help="Repair; default only diagnoses.")] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Diagnose and repair the state of an output."""
    from pipeline.cli import repair as repairing

    raise typer.Exit(repairing.repair(output, environment, yes=yes, as_json=json))


@app.command(
    rich_help_panel=OUTPUTS,
    epilog=examples(
        "vacuum s3://bucket/prefix/ --older-than 2d --dry-run",
        "vacuum s3://bucket/prefix/ --state --older-than 90d",
    ),
)
def vacuum(
    output: Output,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="AGE", parser=age, help="Keep what is younger; default 7d, with --state 90d."
        ),
    ] = None,
    state: Annotated[
        bool, typer.Option("--state", help="Expire plans, completions, reports of old runs.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change.")
    ] = False,
    discard: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Give up this unfinished run; repeatable."),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Abort abandoned uploads and move orphan files aside."""
    from pipeline.cli import runs

    if state and discard:
        raise UsageError("--discard gives up unfinished runs, which --state keeps: use one of them")
    if state:
        runs.vacuum_state(
            output,
            environment,
            older_than=90 * DAY if older_than is None else older_than,
            dry_run=dry_run,
            as_json=json,
        )
        return
    runs.vacuum(
        output,
        environment,
        older_than=7 * DAY if older_than is None else older_than,
        dry_run=dry_run,
        discard=discard or [],
        as_json=json,
    )


@app.command(
    rich_help_panel=OUTPUTS,
    epilog=examples(
        "load load.yaml",
        "load s3://bucket/prefix/ --into warehouse.duckdb --table revenue",
        "load load.yaml --mode replace --dry-run",
    ),
)
def load(
    source: Annotated[
        str,
        typer.Argument(
            metavar="LOAD.yaml|OUTPUT",
            help="The load file; with --into, URI of an output prefix.",
            show_default=False,
            autocompletion=outputs,
        ),
    ],
    into: Annotated[
        str | None,
        typer.Option(metavar="URI", help="FILE.duckdb, postgresql://…, delta:s3://… or https://…"),
    ] = None,
    table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Table, or schema.table.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="append, replace or merge; default append.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Merge by this column; repeatable."),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="match, or widen to add columns; default match."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(metavar="N", help="Number of a manifest; default the current.")
    ] = None,
    change: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would load.")] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Load the new commits of an output into a database, a Delta table or an endpoint."""
    from pipeline.cli import load as loading

    options = {
        "into.uri": into,
        "into.table": table,
        "into.mode": mode,
        "into.key": tuple(key or ()),
        "into.schema": schema,
        "input.version": version,
    }
    loading.load(source, options, environment, changes=change or (), dry_run=dry_run, as_json=json)


app.command("clean", hidden=True, deprecated=True)(vacuum)


@app.command(
    rich_help_panel=SETUP,
    epilog=examples(
        "schema > job.schema.json",
        "schema --load > load.schema.json",
        "schema --pipeline > pipeline.schema.json",
    ),
)
def schema(
    ingest: Annotated[
        bool, typer.Option("--ingest", help="Print the schema of the ingest file.")
    ] = False,
    load: Annotated[
        bool, typer.Option("--load", help="Print the schema of the load file.")
    ] = False,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Print the schema of the pipeline file.")
    ] = False,
) -> None:
    """Print the JSON Schema of the job file, for editors."""
    from pipeline.cli import init as starting

    starting.print_schema(of_ingests=ingest, of_loads=load, of_pipelines=pipeline)


@app.command(rich_help_panel=SETUP, epilog=examples("config -e compose"))
def config(environment: Environment = None, json: Json = False) -> None:
    """Show every setting and where it comes from."""
    from pipeline.cli import status

    status.config(environment, as_json=json)


@app.command(
    rich_help_panel=SETUP,
    epilog=examples(
        "deploy dev --dry-run",
        "deploy prod",
        'deploy job.yaml --cron "0 2 * * *" --timezone Europe/Berlin',
        'deploy pipeline.yaml --cron "0 5 * * *" --param country=DE',
    ),
)
def deploy(
    what: Annotated[
        str,
        typer.Argument(metavar="ENV|FILE", help="Environment in conf/deploy, or file."),
    ],
    cron: Annotated[str | None, typer.Option(metavar="CRON", help="Schedule of the file.")] = None,
    interval: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Time between two runs of the file.")
    ] = None,
    rrule: Annotated[
        str | None, typer.Option(metavar="RRULE", help="Recurrence rule of the file.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Time zone of the schedule; default UTC.")
    ] = None,
    lookback: Annotated[
        str | None,
        typer.Option(metavar="SPAN", help="Windows to compare with late input again, e.g. 3d."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="ENV", help="Environment of the file; default dev."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Parameter of the pipeline file."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the changes, make none.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take over what was not made by this command.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what the environment has made.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Deploy an environment, or a job or pipeline with a schedule, to Prefect."""
    from pipeline.cli import deploy as deploying

    deploying.deploy(
        what,
        environment,
        {"cron": cron, "interval": interval, "rrule": rrule, "timezone": timezone},
        lookback=lookback,
        params=param or (),
        to=to,
        dry_run=dry_run,
        adopt=adopt,
        remove=remove,
        as_json=json,
    )


@app.command(rich_help_panel=SETUP, epilog=examples("receive prod --port 8321"))
def receive(
    what: Annotated[str, typer.Argument(metavar="ENV", help="Environment in conf/deploy.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8321,
    token_env: Annotated[
        str, typer.Option("--token-env", metavar="NAME", help="Variable that holds the token.")
    ] = "RECEIVER_TOKEN",
    quiet: Annotated[
        str, typer.Option(metavar="DURATION", help="Time without objects that ends a burst.")
    ] = "10s",
    longest: Annotated[
        str, typer.Option(metavar="DURATION", help="Longest time that a burst is gathered.")
    ] = "5min",
    environment: Environment = None,
) -> None:
    """Receive S3's notifications about new objects and start runs."""
    from pipeline.cli import deploy as deploying

    deploying.receive(
        what, environment, host=host, port=port, token_env=token_env, quiet=quiet, longest=longest
    )


app.add_typer(commands.app, name="backfill", rich_help_panel=JOBS)
app.add_typer(pipeline_commands.app, name="pipeline", rich_help_panel=JOBS)
app.add_typer(cluster.app, name="cluster", rich_help_panel=SETUP)
app.add_typer(tls.app, name="tls", rich_help_panel=SETUP)
bench.add_bench(app)


def main() -> None:
    """Run the command line; a chunkmap error becomes a message and an exit code."""
    guard_streams()
    quiet_libraries()
    # Searched for in the raw arguments, since parsing them may be what fails.
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
    except SystemExit as end:
        exit_process(end.code if isinstance(end.code, int) else int(end.code is not None))
    except (Exception, KeyboardInterrupt) as error:
        if not as_json and hasattr(error, "format_message"):
            exit_process(show_usage_error(error))
        environment = given_environment(sys.argv[1:])
        ended = report_error(error, as_json=as_json, environment=environment)
        if ended is None:
            raise
        exit_process(ended)
    else:
        if code == INTERRUPTED and as_json:
            report_error(KeyboardInterrupt(), as_json=True)
        elif code == INTERRUPTED:
            print("interrupted", file=sys.stderr)
        exit_process(code if isinstance(code, int) else 0)
