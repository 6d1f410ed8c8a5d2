"""What `chunkmap bench …` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report.write import Written, update_docs, write_report
from benchmarks.suite.compare import changes, comparisons, lost
from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.environments import PEERS, REFERENCE
from benchmarks.suite.record import Record, load_record, records_in
from benchmarks.suite.session import Request, Session, records_folder
from benchmarks.suite.settings import load_suite_settings
from benchmarks.suite.stats import Interval
from benchmarks.suite.subjects import stopped_by_sigterm
from benchmarks.suite.workloads import WORKLOADS
from pipeline.cli.output import columns, notes, out, print_json, say, show_pairs
from pipeline.cluster import local
from pipeline.config.settings import Settings
from pipeline.errors import UsageError


def list_all(*, as_json: bool) -> None:
    """Print workloads, datasets and peers."""
    if as_json:
        print_json(
            {
                "workloads": {one.name: one.says for one in WORKLOADS.values()},
                "datasets": {one.name: one.says for one in DATASETS.values()},
                "peers": {one.name: one.title for one in PEERS.values()},
            }
        )
        return
    rows = [
        (one.name, one.suite, one.says, ", ".join(one.peers) or "–") for one in WORKLOADS.values()
    ]
    out.print(columns(("workload", "suite", "what it does", "against"), rows))
    show_pairs("\nDatasets", {one.name: one.says for one in DATASETS.values()})
    peers = {one.name: one.title for one in PEERS.values() if one.name != REFERENCE}
    show_pairs("\nPeers", peers)


def run(request: Request, environment: str | None, *, as_json: bool) -> None:
    """Measure what is requested, write the report, and show the ratios."""
    with stopped_by_sigterm(), _stack(environment) as settings:
        session = Session(settings, request, tell)
        tell(f"session {session.record.id}: {session.path}")
        record = session.run()
        written = write_report(record, settings, request.root, _earlier(settings, record))
    _show(record, written, as_json=as_json)


def report(
    session: str | None, docs: Path | None, root: str, environment: str | None, *, as_json: bool
) -> None:
    """Write a session's report again, and its figures into a page of the documentation."""
    with _stack(environment) as settings:
        record = find_record(settings, session)
        if docs is not None:
            update_docs(docs, record)
        written = write_report(record, settings, root, _earlier(settings, record))
    _show(record, written, as_json=as_json)


def compare(before: str, after: str, environment: str | None, *, as_json: bool) -> None:
    """Print how each ratio went from one session to another."""
    settings = load_suite_settings(environment)
    first, second = find_record(settings, before), find_record(settings, after)
    found = changes(first, second)
    if as_json:
        rows = [
            {
                "workload": one.workload,
                "peer": one.peer,
                "before": one.before.value,
                "after": one.after.value,
                "says": one.says,
            }
            for one in found
        ]
        print_json({"before": first.id, "after": second.id, "changes": rows})
        return
    lines = [
        (one.workload, one.peer, _said(one.before), _said(one.after), one.says) for one in found
    ]
    out.print(columns(("workload", "peer", first.id, second.id, ""), lines))


def history(environment: str | None, *, as_json: bool) -> None:
    """Print the sessions of this machine, each with its ratios."""
    settings = load_suite_settings(environment)
    records = records_in(records_folder(settings))
    ratios = [
        {
            f"{one.workload}/{one.theirs.subject}": round(one.found.value, 3)
            for one in comparisons(record)
            if one.found is not None
        }
        for record in records
    ]
    if as_json:
        print_json(
            [
                {
                    "id": record.id,
                    "commit": record.machine.commit,
                    "scale": record.scale,
                    "complete": record.complete,
                    "ratios": said,
                }
                for record, said in zip(records, ratios, strict=True)
            ]
        )
        return
    lines = [
        (
            record.id,
            record.machine.commit,
            record.scale,
            ", ".join(f"{name} {value:.2f}" for name, value in said.items()) or "–",
        )
        for record, said in zip(records, ratios, strict=True)
    ]
    out.print(columns(("session", "commit", "scale", "ratios (ours over theirs)"), lines))


def gate(
    baseline: Path, session: str | None, least: float, environment: str | None, *, as_json: bool
) -> int:
    """Hold a session against a baseline; returns the exit code."""
    settings = load_suite_settings(environment)
    before, after = load_record(baseline), find_record(settings, session)
    found = changes(before, after, least)
    worse = [one for one in found if one.is_regression]
    gone = lost(before, after)
    if not found and not gone:
        raise UsageError(
            f"{baseline} and session {after.id} have no ratio in common",
            hint="measure the same workloads against the same peers",
        )
    if as_json:
        names = [f"{one.workload} against {one.peer}" for one in worse]
        print_json({"compared": len(found), "worse": names, "lost": gone})
    else:
        for one in found:
            said = f"{one.workload} against {one.peer}: {_said(one.before)} → {_said(one.after)}"
            mark = "[red]✗[/] " if one.is_regression else "[green]✓[/] "
            say(f"{said}, {one.says}", mark=mark)
        for name in gone:
            say(name, mark="[red]✗[/] ")
    return 1 if worse or gone else 0


def find_record(settings: Settings, name: str | None) -> Record:
    """A record by its file, its id or the beginning of it; without a name the newest.

    Raises:
        UsageError: there is none, or more than one.
    """
    if name is not None and Path(name).is_file():
        return load_record(Path(name))
    folder = records_folder(settings)
    found = [one for one in records_in(folder) if one.id.startswith(name or "")]
    if not found:
        raise UsageError(
            f"no session {name or ''} in {folder}".replace("  ", " "),
            hint="run one with: chunkmap bench run",
        )
    if name is not None and len(found) > 1:
        raise UsageError(f"{name} may be {', '.join(one.id for one in found)}")
    return found[-1]


@contextmanager
def _stack(environment: str | None) -> Iterator[Settings]:
    """The local stack, stopped afterwards unless it ran before."""
    before = load_suite_settings(environment)
    ran = all(one.state == "running" for one in local.status(before))
    if not ran:
        local.up(before, tell)
    try:
        yield load_suite_settings(environment)
    finally:
        if not ran:
            local.down(before, tell)


def _earlier(settings: Settings, record: Record) -> list[Record]:
    """Earlier sessions of the same scale, for the report's history."""
    return [
        one
        for one in records_in(records_folder(settings))
        if one.scale == record.scale and one.created < record.created
    ]


def _show(record: Record, written: Written, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": record.id, "report": written.uri, "html": str(written.html)})
        return
    rows = []
    for one in comparisons(record):
        ratio = _said(one.found) if one.found else "–"
        side = one.ours if one.ours.state != "ok" else one.theirs
        said = one.said or f"{side.title} {side.state}: {side.error[:80]}"
        aim = ""
        if one.aim is not None:
            aim = f"at most {one.aim:.2f}" + ("" if one.met is None else " ✓" if one.met else " ✗")
        rows.append((one.workload, one.theirs.title, ratio, said, aim))
    if rows:
        out.print(columns(("workload", "against", "ours / theirs", "", "aim"), rows))
    show_pairs("", {"report": written.html, "stored": written.uri})


def tell(line: str) -> None:
    """What goes on, beside the results."""
    say(line, console=notes)


def _said(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
