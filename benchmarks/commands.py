"""Run the commands of `chunkmap bench`, except `simulate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report.aims import HEAD, aim_rows, aims_object, build_aims_markdown, summary
from benchmarks.report.markdown import build_markdown
from benchmarks.report.write import Written, update_docs, write_report
from benchmarks.suite.aims import AIMS, judge
from benchmarks.suite.compare import Change, Comparison, changes, comparisons, lost
from benchmarks.suite.datasets import DATASETS
from benchmarks.suite.environments import PEERS, REFERENCE
from benchmarks.suite.record import Record, load_record, records_in
from benchmarks.suite.session import (
    DEFAULT_ROOT,
    Request,
    Session,
    chosen,
    find_record,
    peers_of,
    records_folder,
)
from benchmarks.suite.settings import suite_settings
from benchmarks.suite.stats import Interval
from benchmarks.suite.subjects import stopped_by_sigterm
from benchmarks.suite.workloads import WORKLOADS
from pipeline.cli.output import columns, notes, out, print_json, say, show_pairs
from pipeline.cluster import local
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import UsageError


def list_all(*, as_json: bool) -> None:
    """Print workloads, datasets and peers."""
    if as_json:
        print_json(
            {
                "workloads": {
                    workload.name: {
                        "suite": workload.suite,
                        "says": workload.says,
                        "peers": list(workload.peers),
                    }
                    for workload in WORKLOADS.values()
                },
                "datasets": {dataset.name: dataset.says for dataset in DATASETS.values()},
                "peers": {peer.name: peer.title for peer in PEERS.values()},
            }
        )
        return
    rows = [
        (workload.name, workload.suite, workload.says, ", ".join(workload.peers) or "–")
        for workload in WORKLOADS.values()
    ]
    out.print(columns(("workload", "suite", "what it does", "against"), rows))
    show_pairs("\nDatasets", {dataset.name: dataset.says for dataset in DATASETS.values()})
    peers = {peer.name: peer.title for peer in PEERS.values() if peer.name != REFERENCE}
    show_pairs("\nPeers", peers)


def run(request: Request, environment: str | None, *, as_json: bool) -> None:
    """Measure what is requested, write the report, and show the ratios."""
    for workload in chosen(request.names):
        peers_of(workload, request)  # Refuse unknown names before anything is started.
    with stopped_by_sigterm(), _stack(environment) as settings:
        session = Session(settings, request, tell)
        tell(f"session {session.record.id}: {session.path}")
        record = session.run()
        written = write_report(record, settings, session.request.root, _earlier(settings, record))
    _show(record, written, as_json=as_json)


def report(
    session: str | None,
    docs: Path | None,
    root: str | None,
    environment: str | None,
    *,
    as_json: bool,
) -> None:
    """Write a session's report again, and its figures into a page of the documentation."""
    with _stack(environment) as settings:
        record = find_record(settings, session)
        if docs is not None:
            update_docs(docs, "figures", build_markdown(record))
        root = root or record.request.get("root", DEFAULT_ROOT)
        written = write_report(record, settings, root, _earlier(settings, record))
    _show(record, written, as_json=as_json)


def aims(
    sessions: Sequence[str], docs: Path | None, environment: str | None, *, as_json: bool
) -> None:
    """Judge every aim by sessions, and by the simulation; print the table."""
    from benchmarks.simulation.aims import judge_simulated

    settings = load_settings(environment)
    records = [find_record(settings, name) for name in sessions]
    records = records or records_in(records_folder(settings))
    judgements = judge(AIMS, records) + judge_simulated(records)
    if docs is not None:
        update_docs(docs, "aims", build_aims_markdown(judgements))
    if as_json:
        print_json({"aims": aims_object(judgements)})
        return
    out.print(columns(HEAD, aim_rows(judgements)))
    say(summary(judgements))


def fit(groups: Sequence[str], parameters: Path | None, environment: str | None) -> None:
    """Measure the parameters of the simulation on the local stack, and store them."""
    from benchmarks.simulation import fitting
    from benchmarks.simulation.parameters import FILE

    path = parameters or FILE
    fitting.check_groups(groups)  # Before anything is started.
    fitting.parameters_to_change(path)
    with stopped_by_sigterm(), _stack(environment) as settings:
        fitting.fit(path, groups, settings)
    say(f"parameters: {path}")


def compare(before: str, after: str, environment: str | None, *, as_json: bool) -> None:
    """Print the change of each ratio from one session to another."""
    settings = load_settings(environment)
    first, second = find_record(settings, before), find_record(settings, after)
    _refuse_incomparable(first, second)
    ratio_changes = changes(first, second)
    if as_json:
        print_json(
            {"before": first.id, "after": second.id, "changes": _changes_object(ratio_changes)}
        )
        return
    lines = [
        (
            change.workload,
            change.peer,
            change.what,
            _format(change.before),
            _format(change.after),
            change.says,
        )
        for change in ratio_changes
    ]
    out.print(columns(("workload", "peer", "of", first.id, second.id, ""), lines))


def history(environment: str | None, *, as_json: bool) -> None:
    """Print the sessions of this machine, each with its ratios."""
    settings = load_settings(environment)
    records = records_in(records_folder(settings))
    ratios = [
        {
            f"{comparison.workload}/{comparison.theirs.subject}": round(comparison.found.value, 3)
            for comparison in comparisons(record)
            if comparison.found is not None
        }
        for record in records
    ]
    if as_json:
        sessions = [
            {
                "id": record.id,
                "commit": record.machine.commit,
                "scale": record.scale,
                "complete": record.complete,
                "ratios": by_name,
            }
            for record, by_name in zip(records, ratios, strict=True)
        ]
        print_json({"sessions": sessions})
        return
    lines = [
        (
            record.id,
            record.machine.commit,
            record.scale + ("" if record.complete else ", not complete"),
            ", ".join(f"{name} {value:.2f}" for name, value in by_name.items()) or "–",
        )
        for record, by_name in zip(records, ratios, strict=True)
    ]
    out.print(columns(("session", "commit", "scale", "ratios (chunkmap / peer)"), lines))


def gate(
    baseline: Path, session: str | None, least: float, environment: str | None, *, as_json: bool
) -> int:
    """Compare a session with a baseline; returns the exit code."""
    settings = load_settings(environment)
    before, after = load_record(baseline), find_record(settings, session)
    _refuse_incomparable(before, after)
    ratio_changes = changes(before, after, least)
    worse = [change for change in ratio_changes if change.is_regression]
    missing = lost(before, after)
    if not ratio_changes and not missing:
        raise UsageError(
            f"{baseline} and session {after.id} have no ratio in common",
            hint="measure the same workloads against the same peers",
        )
    if as_json:
        print_json(
            {
                "before": before.id,
                "after": after.id,
                "compared": len(ratio_changes),
                "worse": [change.name for change in worse],
                "lost": missing,
                "changes": _changes_object(ratio_changes),
            }
        )
    else:
        for change in ratio_changes:
            mark = "[red]✗[/] " if change.is_regression else "[green]✓[/] "
            say(
                f"{change.name}: {_format(change.before)} → {_format(change.after)}, {change.says}",
                mark=mark,
            )
        for name in missing:
            say(name, mark="[red]✗[/] ")
    return 1 if worse or missing else 0


def _refuse_incomparable(before: Record, after: Record) -> None:
    """Refuse sessions whose ratios cannot be compared.

    Raises:
        UsageError: Their scales differ, or the later one has not measured everything.
    """
    if before.scale != after.scale:
        raise UsageError(
            f"session {before.id} is of scale {before.scale}, and {after.id} of {after.scale}",
            hint="compare sessions of one scale; list them: chunkmap bench history",
        )
    if not after.complete:
        raise UsageError(
            f"session {after.id} is not complete", hint=f"chunkmap bench run --resume {after.id}"
        )


@contextmanager
def _stack(environment: str | None) -> Iterator[Settings]:
    """Start the local stack, and stop it afterwards unless it ran before."""
    with suite_settings(environment) as settings:
        ran = all(service.state == "running" for service in local.status(settings))
        if not ran:
            local.up(settings, tell)
        try:
            yield load_settings(environment)
        finally:
            if not ran:
                local.down(settings, tell)


def _earlier(settings: Settings, record: Record) -> list[Record]:
    """List earlier sessions of the same scale, for the report's history."""
    return [
        earlier
        for earlier in records_in(records_folder(settings))
        if earlier.scale == record.scale and earlier.created < record.created
    ]


def _show(record: Record, written: Written, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "id": record.id,
                "report": written.uri,
                "html": str(written.html),
                "comparisons": [_comparison_object(each) for each in comparisons(record)],
            }
        )
        return
    rows = []
    for comparison in comparisons(record):
        ours, theirs = comparison.ours, comparison.theirs
        ratio = _format(comparison.found) if comparison.found else "–"
        side = ours if ours.state != "ok" else theirs
        verdict = comparison.said or f"{side.title} {side.state}: {side.error[:80]}"
        aim = ""
        if comparison.aim is not None:
            mark = {None: "", True: " ✓", False: " ✗"}[comparison.met]
            aim = f"at most {comparison.aim:.2f}{mark}"
        rows.append((comparison.workload, theirs.title, ratio, verdict, aim))
    if rows:
        out.print(columns(("workload", "against", "chunkmap / peer", "", "aim"), rows))
    show_pairs("", {"report": written.html, "stored": written.uri})


def _comparison_object(comparison: Comparison) -> dict[str, object]:
    found = comparison.found
    return {
        "workload": comparison.workload,
        "peer": comparison.theirs.subject,
        "ratio": None if found is None else found.value,
        "low": None if found is None else found.low,
        "high": None if found is None else found.high,
        "verdict": comparison.said or None,
        "aim": comparison.aim,
        "met": comparison.met,
    }


def _changes_object(ratio_changes: Sequence[Change]) -> list[dict[str, object]]:
    return [
        {
            "workload": change.workload,
            "peer": change.peer,
            "what": change.what,
            "before": change.before.value,
            "after": change.after.value,
            "says": change.says,
        }
        for change in ratio_changes
    ]


def tell(line: str) -> None:
    """Print a line of progress."""
    say(line, console=notes)


def _format(ratio: Interval) -> str:
    if ratio.low == ratio.high:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
