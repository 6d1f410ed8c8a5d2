"""`chunkmap run`: from the job file to the summary."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.screen import (
    Display,
    complain,
    out,
    pairs,
    print_json,
    quiet_libraries,
    size,
)
from pipeline.errors import RunInterruptedError
from pipeline.job import Job, load_job
from pipeline.settings import Settings, load_settings


def run(
    path: Path,
    environment: str | None,
    *,
    accept_code: bool,
    replan: bool,
    take_over: bool,
    as_json: bool,
) -> None:
    """Run a job file and show what came of it."""
    quiet_libraries()
    job = load_job(path)
    settings = load_settings(environment)
    run_job(
        job,
        settings,
        str(path),
        accept_code=accept_code,
        replan=replan,
        take_over=take_over,
        as_json=as_json,
    )


def run_job(
    job: Job,
    settings: Settings,
    name: str,
    *,
    accept_code: bool = False,
    replan: bool = False,
    take_over: bool = False,
    as_json: bool = False,
    run: str | None = None,
) -> None:
    """Run a job; `name` is what the user calls its file, `run` a run to take up by its id.

    Raises:
        RunIncompleteError: some chunks failed; the summary has been shown.
        RunInterruptedError: the user pressed Ctrl-C.
    """
    from pipeline.driver import RunIncompleteError, RunSummary
    from pipeline.flows.launch import launch
    from pipeline.planning import Resume
    from pipeline.rounds import MapProgress

    def show(summary: RunSummary) -> None:
        if as_json:
            print_json(summary)
        else:
            _print(summary)

    with Display(quiet=as_json) as display:

        def listen(phase: str, progress: MapProgress | None) -> None:
            display.phase(phase)
            if progress is not None:
                display.mapping(progress)

        try:
            summary = launch(job, settings, listen, Resume(accept_code, replan, take_over, run))
        except RunIncompleteError as error:
            show(error.summary)
            raise
        except KeyboardInterrupt as error:
            raise RunInterruptedError(
                "interrupted: what is done is kept",
                hint=f"go on with: chunkmap {'retry' if run else 'run'} {name}",
            ) from error
    show(summary)


def _print(summary: object) -> None:
    from pipeline.driver import RunSummary

    assert isinstance(summary, RunSummary)
    for note in summary.notes:
        complain(note)
    speed = summary.bytes_in / max(summary.seconds, 1e-9) / 1e6
    if summary.mapped == 0 and summary.state == "done":
        out.print(
            f"Run {summary.run} is complete: 0 of {summary.chunks:,} chunks were left to map "
            f"({summary.seconds:.1f} s)."
        )
    rows = {
        "state": summary.state + (f", manifest {summary.manifest}" if summary.manifest else ""),
        "rows": f"{summary.rows_in:,} in, {summary.rows_out:,} out",
        "bytes": f"{size(summary.bytes_in)} read, {size(summary.bytes_out)} written",
        "chunks": f"{summary.chunks:,} ({summary.mapped:,} mapped now, {summary.failed:,} failed)",
        "batches": f"{summary.batches:,} in {summary.rounds} rounds",
        "time": f"{summary.seconds:.1f} s"
        + (f", {speed:,.1f} MB/s" if summary.mapped == summary.chunks else ""),
        "output": summary.output,
        "report": summary.local_report or summary.report,
    }
    out.print(pairs(f"{summary.job} · run {summary.run}", rows))
    for line in summary.errors:
        out.print(f"  [red]✗[/] {line}")
