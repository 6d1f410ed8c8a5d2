"""Inspect, scale and diagnose the Dask cluster: `chunkmap cluster …`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from pipeline.cli.help import App, examples
from pipeline.cli.hints import with_environment
from pipeline.cli.options import Environment, Json, refuse_watching_as_json
from pipeline.cli.output import columns, live, marked, notes, out, print_json, say, warn
from pipeline.config.settings import Settings, load_settings
from pipeline.report.humanize import byte_size, duration, plural

if TYPE_CHECKING:
    from pipeline.cluster.client import ClusterClient, WorkerView
    from pipeline.cluster.process_info import ProcessInfo
    from pipeline.flows.finding import Finding

app = App("cluster", "Inspect, scale and diagnose the Dask cluster.")

WATCH_SECONDS = 2.0
_COLUMNS = ("worker", "state", "threads", "memory", "CPU", "Polars", "running")
_MARKS = {"ok": "[green]✓[/] ", "warning": "[yellow]![/] ", "error": "[red]✗[/] "}


@app.command(epilog=examples("cluster status --watch"))
def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh every two seconds until Ctrl-C.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show workers, their resources and their work."""
    from pipeline.cluster.client import cluster_of

    refuse_watching_as_json(watch=watch, as_json=json)
    settings = load_settings(environment)
    with cluster_of(settings.dask) as cluster:
        if not watch:
            rows = _worker_rows(cluster)
            print_json(_to_dict(settings, cluster, rows)) if json else out.print(
                _page(settings, cluster, rows)
            )
        else:
            with live(Text(), out, auto_refresh=False) as page:
                while True:
                    page.update(_page(settings, cluster, _worker_rows(cluster)), refresh=True)
                    time.sleep(WATCH_SECONDS)


@app.command(epilog=examples("cluster scale 8"))
def scale(
    workers: Annotated[int, typer.Argument(metavar="N", min=0, help="Number of workers.")],
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Start or retire workers without losing chunks."""
    from pipeline.cluster.resources import NO_WORKERS_SECONDS
    from pipeline.cluster.scaling import scale_cluster

    settings = load_settings(environment)
    before = scale_cluster(settings.dask, workers)
    if not workers:
        warn(f"no worker is left: runs wait {duration(NO_WORKERS_SECONDS)} for one, then they fail")
    if json:
        print_json({"before": before, "workers": workers})
        return
    if workers < before:
        say(f"from {before} to {plural(workers, 'worker')}: the others hand back their chunks")
    elif before == workers:
        say(f"{plural(workers, 'worker')}, as before")
    else:
        say(f"from {before} to {plural(workers, 'worker')}: new ones take work within seconds")


@app.command(epilog=examples("cluster doctor -o s3://bucket/prefix/"))
def doctor(
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="URI",
            help="Test S3 rights on this output; default a known one.",
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option("--job", metavar="JOB.yaml", help="Load this job's code on every worker."),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Diagnose the cluster from the driver and every worker."""
    from pipeline.config.job import load_job
    from pipeline.flows.doctor import examine
    from pipeline.runs.admin.known_outputs import known_outputs

    settings = load_settings(environment)
    known = known_outputs(settings.state_dir)
    findings = []
    loaded = load_job(job) if job is not None else None
    for finding in examine(settings, output or (known[-1] if known else None), loaded):
        findings.append(replace(finding, fix=with_environment(finding.fix, environment) or ""))
        if not json:
            _show_finding(findings[-1])
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if json:
        print_json({"findings": [asdict(finding) for finding in findings], "errors": errors})
    elif errors or warnings:
        say(f"{plural(errors, 'error')}, {plural(warnings, 'warning')}", console=notes)
    raise typer.Exit(1 if errors else 0)


def _show_finding(finding: Finding) -> None:
    say(f"{finding.what}: {finding.said}", mark=_MARKS[finding.level])
    if finding.fix:
        say(f"  {finding.fix}", mark="[dim]→[/] ")


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker as the scheduler sees it, with what its process reports."""

    view: WorkerView
    about: ProcessInfo | None
    problem: str = ""
    """Reason why the process did not answer."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        about = asdict(self.about) if self.about else None
        return {**asdict(self.view), "about": about, "problem": self.problem}


def _worker_rows(cluster: ClusterClient) -> list[WorkerRow]:
    from pipeline.cluster.process_info import ProcessInfo, about

    views, answers = cluster.workers(), cluster.ask(about)
    rows = []
    for view in views:
        answer = answers.get(view.address, "it has just joined")
        info = answer if isinstance(answer, ProcessInfo) else None
        rows.append(WorkerRow(view, info, "" if info else str(answer)))
    return rows


def _to_dict(settings: Settings, cluster: ClusterClient, rows: list[WorkerRow]) -> dict[str, Any]:
    return {
        "scheduler": cluster.scheduler,
        "dashboard": cluster.dashboard,
        "prefect": _prefect_page(settings),
        "threads": sum(row.view.threads for row in rows),
        "workers": [row.to_dict() for row in rows],
    }


def _prefect_page(settings: Settings) -> str:
    return (settings.prefect.api_url or "").removesuffix("/api")


def _page(settings: Settings, cluster: ClusterClient, rows: list[WorkerRow]) -> Group:
    threads = sum(row.view.threads for row in rows)
    from pipeline.cluster.local import prefect_login

    login = prefect_login(settings)
    prefect = (_prefect_page(settings) or "none set") + (f" ({login})" if login else "")
    totals = f": {plural(len(rows), 'worker')}, {plural(threads, 'thread')}"
    lines = [
        Text.assemble((cluster.scheduler, "bold"), totals),
        marked(cluster.dashboard or "none", "[dim]dashboard[/]   "),
        marked(prefect, "[dim]Prefect UI[/]  "),
        marked(_versions(rows), "[dim]versions[/]    "),
    ]
    return Group(*lines, columns(_COLUMNS, [_cells(row) for row in rows], right=("threads", "CPU")))


def _versions(rows: list[WorkerRow]) -> str:
    """Format the versions; if they differ, each set with the names of its workers."""
    workers: dict[str, list[str]] = {}
    for row in rows:
        if row.about:
            versions = " ".join(f"{name} {value}" for name, value in row.about.versions.items())
            workers.setdefault(versions, []).append(row.view.name)
    if len(workers) < 2:
        return next(iter(workers), "unknown")
    return "; ".join(f"{versions} ({', '.join(names)})" for versions, names in workers.items())


def _cells(row: WorkerRow) -> tuple[str, ...]:
    view = row.view
    limit = f" of {byte_size(view.memory_limit)}" if view.memory_limit else ""
    polars = plural(row.about.polars_threads, "thread") if row.about else "?"
    return (
        view.name,
        view.status.replace("_", " "),
        str(view.threads),
        byte_size(view.memory) + limit,
        f"{view.cpu:.0f}%",
        polars,
        row.problem or _batches(row) or ("other tasks" if view.running else ""),
    )


def _batches(row: WorkerRow) -> str:
    batches = row.about.at_work if row.about else []
    return "\n".join(
        f"{batch['batch']} of run {batch['run']}: {batch['done']:,} of "
        f"{plural(batch['chunks'], 'chunk')}, for {duration(time.time() - batch['since'])}"
        for batch in batches
    )
