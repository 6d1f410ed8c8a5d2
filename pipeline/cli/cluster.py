"""`chunkmap cluster …`: inspect, scale and diagnose the Dask cluster."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from pipeline.cli.options import Environment, Json
from pipeline.cli.output import (
    columns,
    live,
    marked,
    notes,
    out,
    plural,
    print_json,
    say,
    size,
)
from pipeline.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline.cluster.client import ClusterClient, WorkerView
    from pipeline.cluster.process_info import ProcessInfo

app = typer.Typer(
    name="cluster",
    help="Inspect, scale and diagnose the Dask cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

WATCH_SECONDS = 2.0
_WORKERS = ("worker", "state", "threads", "memory", "CPU", "Polars", "what runs there")
_MARKS = {"ok": "[green]✓[/] ", "warning": "[yellow]![/] ", "error": "[red]✗[/] "}


@app.command()
def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh every two seconds, until Ctrl-C.")
    ] = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Show the workers: threads, memory, versions, and what runs where."""
    from pipeline.cluster.client import cluster_of

    settings = load_settings(environment)
    with cluster_of(settings.dask) as cluster:
        if not watch:
            seen = _look(cluster)
            print_json(_object(settings, cluster, seen)) if json else out.print(
                _page(settings, cluster, seen)
            )
        elif json:
            while True:
                print_json(_object(settings, cluster, _look(cluster)))
                time.sleep(WATCH_SECONDS)
        else:
            with live(Text(), out, auto_refresh=False) as page:
                while True:
                    page.update(_page(settings, cluster, _look(cluster)), refresh=True)
                    time.sleep(WATCH_SECONDS)


@app.command()
def scale(
    workers: Annotated[int, typer.Argument(metavar="N", min=0, help="Number of workers.")],
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Start or retire workers, where the cluster supports it. No chunk is lost."""
    from pipeline.cluster.scaling import scale_cluster

    settings = load_settings(environment)
    before = scale_cluster(settings.dask, workers)
    if json:
        print_json({"before": before, "workers": workers})
        return
    if workers < before:
        say(f"from {before} to {plural(workers, 'worker')}: the others hand back their chunks")
    else:
        say(f"from {before} to {plural(workers, 'worker')}: new ones take work within seconds")


@app.command()
def doctor(
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Test S3 rights next to this output; default a known one."
        ),
    ] = None,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Check reachability, versions, clocks, TLS, limits, and S3 rights from every worker."""
    from pipeline.flows.doctor import examine
    from pipeline.runs.admin.known_outputs import known_outputs

    settings = load_settings(environment)
    known = known_outputs(settings.state_dir)
    findings = []
    for finding in examine(settings, output or (known[-1] if known else None)):
        findings.append(finding)
        if not json:
            say(f"{finding.what}: {finding.said}", mark=_MARKS[finding.level])
            if finding.fix:
                say(f"  {finding.fix}", mark="[dim]→[/] ")
    errors = sum(one.level == "error" for one in findings)
    warnings = sum(one.level == "warning" for one in findings)
    if json:
        print_json({"findings": [asdict(one) for one in findings], "errors": errors})
    elif errors or warnings:
        say(f"{plural(errors, 'error')}, {plural(warnings, 'warning')}", console=notes)
    raise typer.Exit(1 if errors else 0)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker, and what it says of itself."""

    view: WorkerView
    about: ProcessInfo | None
    problem: str = ""
    """Why it says nothing."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        said = asdict(self.about) if self.about else {}
        return {**asdict(self.view), "about": said or None, "problem": self.problem}


def _look(cluster: ClusterClient) -> list[WorkerRow]:
    from pipeline.cluster.process_info import ProcessInfo, about

    views, answers = cluster.workers(), cluster.ask(about)
    found = []
    for view in views:
        answer = answers.get(view.address, "it came just now")
        known = answer if isinstance(answer, ProcessInfo) else None
        found.append(WorkerRow(view, known, "" if known else str(answer)))
    return found


def _object(settings: Settings, cluster: ClusterClient, seen: list[WorkerRow]) -> dict[str, Any]:
    return {
        "scheduler": cluster.scheduler,
        "dashboard": cluster.dashboard,
        "prefect": _prefect_page(settings),
        "threads": sum(one.view.threads for one in seen),
        "workers": [one.to_dict() for one in seen],
    }


def _prefect_page(settings: Settings) -> str:
    return (settings.prefect.api_url or "").removesuffix("/api")


def _page(settings: Settings, cluster: ClusterClient, seen: list[WorkerRow]) -> Group:
    threads = sum(one.view.threads for one in seen)
    from pipeline.cluster.local import prefect_login

    login = prefect_login(settings)
    prefect = (_prefect_page(settings) or "none set") + (f" ({login})" if login else "")
    size_of_it = f": {plural(len(seen), 'worker')}, {plural(threads, 'thread')}"
    lines = [
        Text.assemble((cluster.scheduler, "bold"), size_of_it),
        marked(cluster.dashboard or "none", "[dim]Dask's pages[/]  "),
        marked(prefect, "[dim]Prefect's UI[/]  "),
        marked(_versions(seen), "[dim]versions[/]      "),
    ]
    return Group(*lines, columns(_WORKERS, [_row(one) for one in seen], right=("threads", "CPU")))


def _versions(seen: list[WorkerRow]) -> str:
    """Each set of versions, with its workers where there are several."""
    sets: dict[str, list[str]] = {}
    for one in seen:
        if one.about:
            words = " ".join(f"{name} {value}" for name, value in one.about.versions.items())
            sets.setdefault(words, []).append(one.view.name)
    if len(sets) < 2:
        return next(iter(sets), "unknown")
    return "; ".join(f"{words} ({', '.join(names)})" for words, names in sets.items())


def _row(one: WorkerRow) -> tuple[str, ...]:
    view = one.view
    limit = f" of {size(view.memory_limit)}" if view.memory_limit else ""
    polars = plural(one.about.polars_threads, "thread") if one.about else "?"
    return (
        view.name,
        view.status.replace("_", " "),
        str(view.threads),
        size(view.memory) + limit,
        f"{view.cpu:.0f}%",
        polars,
        one.problem or _work(one) or ("other tasks" if view.running else ""),
    )


def _work(one: WorkerRow) -> str:
    work = one.about.at_work if one.about else []
    return "\n".join(
        f"{each['batch']} of run {each['run']}: {each['done']:,} of "
        f"{plural(each['chunks'], 'chunk')}, for {max(0.0, time.time() - each['since']):.0f} s"
        for each in work
    )
