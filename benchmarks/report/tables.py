"""The benchmark report's tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape

import polars as pl
from markupsafe import Markup

from benchmarks.report.text import shown_ratio
from benchmarks.suite.compare import Comparison
from benchmarks.suite.environments import PEERS
from benchmarks.suite.record import Record, Result
from benchmarks.suite.stats import Interval, median
from pipeline.report import humanize
from pipeline.report.tables import table_html

_TONES = {
    "faster": "var(--good)",
    "slower": "var(--bad)",
    "no difference": "var(--soft)",
    "too few samples": "var(--soft)",
}


def ratios(found: Sequence[Comparison]) -> Markup:
    """A row a workload, a column a peer: ours over theirs."""
    peers = [name for name in PEERS if any(one.theirs.subject == name for one in found)]
    rows = []
    for workload in dict.fromkeys(one.workload for one in found):
        row = {"workload": workload}
        for one in found:
            if one.workload == workload:
                row[one.theirs.subject] = _cell(one)
        rows.append(row)
    labels = {"workload": "Workload", **{name: PEERS[name].title for name in peers}}
    return _table(rows, labels, numbers=peers, markup=peers)


def aims(found: Sequence[Comparison]) -> Markup:
    """Every aim, what was reached, and by how much it is missed."""
    rows = []
    for one in found:
        if one.aim is None:
            continue
        reached = "–" if one.found is None else shown_ratio(one.found.value)
        if one.met:
            said = _coloured("met", "var(--good)")
        elif one.found is None:
            said = _coloured(f"{one.theirs.title} {one.theirs.state}", "var(--warn)")
        elif one.met is None:
            said = _coloured("too few samples", "var(--soft)")
        else:
            said = _coloured(f"missed by {one.found.value / one.aim:.2f} times", "var(--bad)")
        rows.append(
            {
                "workload": one.workload,
                "against": one.theirs.title,
                "aim": f"at most {one.aim:.2f}",
                "reached": reached,
                "said": said,
            }
        )
    labels = {
        "workload": "Workload",
        "against": "Against",
        "aim": "Aim (ours / theirs)",
        "reached": "Reached",
        "said": "",
    }
    return _table(rows, labels, numbers=("aim", "reached"), markup=("said",))


def subjects(record: Record, results: Sequence[Result]) -> Markup:
    """Everybody on one workload, with all that was measured."""
    rows = [_subject(record, one) for one in results]
    labels = {
        "who": "Who",
        "points": "",
        "startup": "Start-up",
        "cold": "Cold",
        "warm": "Warm [95%]",
        "memory": "Peak memory",
        "cpu": "CPU",
        "requests": "S3 requests",
        "read": "Read",
        "written": "Written",
        "again": "To reproduce",
    }
    if not any(row["points"] for row in rows):
        del labels["points"]
    numbers = ("startup", "cold", "warm", "memory", "cpu", "requests", "read", "written")
    return _table(rows, labels, numbers=numbers, markup=("who", "again"))


def requests(results: Sequence[Result]) -> Markup:
    """S3 requests of one iteration by kind, a column a subject."""
    counted = [one for one in results if one.traffic is not None]
    kinds = sorted({kind for one in counted if one.traffic for kind in one.traffic.requests})
    rows = []
    for kind in kinds:
        row = {"kind": kind}
        for one in counted:
            assert one.traffic is not None
            by_status = one.traffic.requests.get(kind, {})
            failed = sum(n for status, n in by_status.items() if status >= "400")
            said = humanize.count(sum(by_status.values())) if by_status else "–"
            row[one.subject] = said + (f" ({failed} failed)" if failed else "")
        rows.append(row)
    labels = {"kind": "Request", **{one.subject: one.title for one in counted}}
    return _table(rows, labels, numbers=[one.subject for one in counted], markup=())


def datasets(record: Record) -> Markup:
    """The datasets' cards."""
    rows = [
        {
            "name": f"{card.name}-{card.scale}",
            "rows": humanize.short_count(card.rows),
            "files": humanize.count(card.files),
            "groups": humanize.count(card.row_groups),
            "bytes": humanize.byte_size(card.bytes),
            "columns": humanize.count(len(card.columns)),
            "uri": card.uri,
        }
        for card in record.datasets
    ]
    labels = {
        "name": "Dataset",
        "rows": "Rows",
        "files": "Files",
        "groups": "Row groups",
        "bytes": "Stored",
        "columns": "Columns",
        "uri": "Where",
    }
    numbers = ("rows", "files", "groups", "bytes", "columns")
    return _table(rows, labels, numbers=numbers, markup=())


def versions(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return each subject with the versions that it reported."""
    told = {
        one.title: ", ".join(f"{name} {version}" for name, version in one.versions.items())
        for one in results
        if one.versions
    }
    return list(told.items())


def reproduce(record: Record, result: Result) -> str:
    """The command that measures one row again."""
    words = ["chunkmap", "bench", "run", result.workload, "--scale", record.scale]
    if result.subject != "chunkmap":
        words += ["--against", result.subject]
    words += ["--repeat", str(record.repeat)] * ((record.repeat or 1) != 1)
    words += ["--iterations", str(record.iterations)] * (record.iterations is not None)
    return shlex.join(words)


def repeats(record: Record) -> str:
    """How often things were measured, in words."""
    processes = {len(one.processes) for one in record.results if one.processes}
    times = {len(each.iterations) for one in record.results for each in one.processes}
    return (
        f"Processes of each: {_range(processes)}, in another order each time. Each does the work "
        f"{_range(times)} times, the first cold, the others warm."
    )


def _range(numbers: Iterable[int]) -> str:
    least, most = min(numbers, default=0), max(numbers, default=0)
    return f"{least}" if least == most else f"{least} to {most}"


def seconds(found: Interval) -> str:
    """An interval of seconds in words."""
    if found.value < 0.001:
        return f"{found.value * 1e6:.0f} µs [{found.low * 1e6:.0f}, {found.high * 1e6:.0f}]"
    if found.value < 1:
        return f"{found.value * 1e3:.1f} ms [{found.low * 1e3:.1f}, {found.high * 1e3:.1f}]"
    return f"{found.value:.2f} s [{found.low:.2f}, {found.high:.2f}]"


def _cell(one: Comparison) -> str:
    if one.found is None:
        side = one.ours if one.ours.state != "ok" else one.theirs
        hint = escape(side.error[:300], quote=True)
        return f'<abbr title="{hint}" style="color:var(--warn)">{escape(side.state)}</abbr>'
    hint = f"{one.said}; 95% interval {one.found.low:.2f} to {one.found.high:.2f}"
    shown = shown_ratio(one.found.value)
    if one.said in ("no difference", "too few samples"):
        # A number in the colour of a difference would be read as one.
        shown = f"{shown} <small>{'≈' if one.said == 'no difference' else '?'}</small>"
    return f'<span title="{hint}" style="color:{_TONES[one.said]};font-weight:600">{shown}</span>'


def _subject(record: Record, one: Result) -> dict[str, str]:
    marks = [f"{one.workers} threads"] * bool(one.workers) + [
        f"{humanize.count(one.tasks)} tasks"
    ] * bool(one.tasks)
    row = {
        "who": escape(one.title),
        "points": ", ".join(marks),
        "again": f'<code class="mono">{escape(reproduce(record, one))}</code>',
        **dict.fromkeys(
            ("startup", "cold", "warm", "memory", "cpu", "requests", "read", "written"), "–"
        ),
    }
    if one.state != "ok":
        row["who"] += " " + _coloured(one.state, "var(--bad)")
        return row
    row["startup"] = humanize.duration(one.startup().value)
    row["cold"] = humanize.duration(median(one.cold()).value)
    row["warm"] = seconds(median(one.warm())) if one.warm() else "–"
    row["memory"] = humanize.byte_size(one.peak_bytes())
    row["cpu"] = humanize.duration(one.cpu_seconds())
    if one.traffic is not None:
        row["requests"] = humanize.count(one.traffic.total)
        row["read"] = humanize.byte_size(one.traffic.bytes_read)
        row["written"] = humanize.byte_size(one.traffic.bytes_written)
    return row


def _coloured(text: str, colour: str) -> str:
    return f'<span style="color:{colour};font-weight:600">{escape(text)}</span>'


def _table(
    rows: Sequence[dict[str, str]],
    labels: dict[str, str],
    *,
    numbers: Sequence[str],
    markup: Sequence[str],
) -> Markup:
    whole = [{name: row.get(name, "") for name in labels} for row in rows]
    frame = pl.DataFrame(whole, schema=dict.fromkeys(labels, pl.String))
    return table_html(frame, labels, numbers=numbers, markup=markup)
