"""The benchmark report's tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

import polars as pl
from markupsafe import Markup

from benchmarks.report.text import shown_ratio
from benchmarks.suite.compare import Comparison
from benchmarks.suite.environments import PEERS
from benchmarks.suite.record import Record, Result
from benchmarks.suite.session import PROFILES
from benchmarks.suite.stats import Interval, median
from pipeline.report import humanize
from pipeline.report.tables import table_html

PHASES = ("start", "workers", "plan", "map", "reduce", "publish", "report")
"""In the order of a run; others come after."""
_TONES = {
    "faster": "var(--good)",
    "slower": "var(--bad)",
    "no difference": "var(--soft)",
    "too few samples": "var(--soft)",
}


def ratios(found: Sequence[Comparison]) -> Markup:
    """A row a workload, a column a peer: ours over theirs."""
    peers = [
        name for name in PEERS if any(comparison.theirs.subject == name for comparison in found)
    ]
    rows = []
    for workload in dict.fromkeys(comparison.workload for comparison in found):
        row = {"workload": workload}
        for comparison in found:
            if comparison.workload == workload:
                row[comparison.theirs.subject] = _cell(comparison)
        rows.append(row)
    labels = {"workload": "Workload", **{name: PEERS[name].title for name in peers}}
    return _table(rows, labels, numbers=peers, markup=peers)


def costs(found: Sequence[Comparison]) -> Markup:
    """Processor time and bytes written: ours over theirs, a row a comparison."""
    rows = [
        {
            "workload": comparison.workload,
            "against": comparison.theirs.title,
            "cpu": "–" if comparison.cpu is None else shown_ratio(comparison.cpu.value),
            "interval": "–"
            if comparison.cpu is None
            else f"{comparison.cpu.low:.2f} to {comparison.cpu.high:.2f}",
            "size": "–" if comparison.size is None else shown_ratio(comparison.size),
        }
        for comparison in found
        if comparison.cpu is not None or comparison.size is not None
    ]
    labels = {
        "workload": "Workload",
        "against": "Against",
        "cpu": "Processor time",
        "interval": "95% interval",
        "size": "Bytes written",
    }
    return _table(rows, labels, numbers=("cpu", "interval", "size"), markup=())


def profiles(names: Sequence[str]) -> Markup:
    """A row a workload, a link a process: files called `<workload>-<process>.svg`."""
    rows: dict[str, dict[str, str]] = {}
    for name in names:
        workload, _, process = name.removesuffix(".svg").rpartition("-")
        link = f'<a href="{quote(f"{PROFILES}/{name}")}">{escape(process)}</a>'
        rows.setdefault(workload, {"workload": workload})[process] = link
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    labels = {key: key.capitalize() for key in columns}
    return _table(list(rows.values()), labels, numbers=(), markup=columns[1:])


def phase_rows(record: Record) -> tuple[list[str], list[list[str]]]:
    """Head and rows of chunkmap's phases on each workload, medians of warm runs."""
    results = [result for result in record.results if result.state == "ok" and result.phases()]
    names = sorted(
        {name for result in results for name in result.phases()},
        key=lambda name: (PHASES.index(name) if name in PHASES else len(PHASES), name),
    )
    rows = []
    for result in results:
        phases, published = result.phases(), median(result.published_samples()).value
        cells = [humanize.duration(phases[name]) if name in phases else "–" for name in names]
        rows.append([_workload(result), *cells, humanize.duration(published)])
    return ["workload", *names, "until published"], rows


def phases(record: Record) -> Markup:
    """A row a workload, a column a phase."""
    head, rows = phase_rows(record)
    labels = {name: name.capitalize() for name in head}
    return _table(
        [dict(zip(head, row, strict=True)) for row in rows], labels, numbers=head[1:], markup=()
    )


def _workload(result: Result) -> str:
    marks = [humanize.plural(result.workers, "thread")] * bool(result.workers)
    marks += [f"{humanize.count(result.tasks)} tasks"] * bool(result.tasks)
    return result.workload + (f" ({', '.join(marks)})" if marks else "")


def output_cells(result: Result) -> tuple[str, str]:
    """The bytes (codec) and files that were written, and the requests for each of these files."""
    size, requests = result.output_bytes(), result.requests_per_file()
    files = round(result.output_files() or 0)
    codecs = f" ({', '.join(codec.lower() for codec in result.codecs)})" if result.codecs else ""
    what = f"{codecs}, {humanize.plural(files, 'file')}"
    return (
        "–" if not size else humanize.byte_size(size) + what,
        "–" if requests is None else f"{requests:.2f}",
    )


def aims(found: Sequence[Comparison]) -> Markup:
    """Every aim, what was reached, and by how much it is missed."""
    rows = []
    for comparison in found:
        if comparison.aim is None:
            continue
        reached = "–" if comparison.found is None else shown_ratio(comparison.found.value)
        if comparison.met:
            said = _coloured("met", "var(--good)")
        elif comparison.found is None:
            said = _coloured(f"{comparison.theirs.title} {comparison.theirs.state}", "var(--warn)")
        elif comparison.met is None:
            said = _coloured("too few samples", "var(--soft)")
        else:
            said = _coloured(
                f"missed by {comparison.found.value / comparison.aim:.2f} times", "var(--bad)"
            )
        rows.append(
            {
                "workload": comparison.workload,
                "against": comparison.theirs.title,
                "aim": f"at most {comparison.aim:.2f}",
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
    rows = [_subject(record, result) for result in results]
    labels = {
        "who": "Who",
        "points": "",
        "startup": "Start-up",
        "cold": "Cold",
        "warm": "Warm [95%]",
        "memory": "Peak memory",
        "cpu": "CPU",
        "work_cpu": "CPU of the work",
        "output": "Output",
        "requests": "S3 requests",
        "per_file": "Requests per file",
        "read": "Read",
        "written": "Written",
        "again": "To reproduce",
    }
    if not any(row["points"] for row in rows):
        del labels["points"]
    numbers = (
        *("startup", "cold", "warm", "memory", "cpu", "work_cpu"),
        *("output", "requests", "per_file", "read", "written"),
    )
    return _table(rows, labels, numbers=numbers, markup=("who", "again"))


def requests(results: Sequence[Result]) -> Markup:
    """S3 requests of one iteration by kind, a column a subject."""
    counted = [result for result in results if result.traffic is not None]
    kinds = sorted(
        {kind for result in counted if result.traffic for kind in result.traffic.requests}
    )
    rows = []
    for kind in kinds:
        row = {"kind": kind}
        for result in counted:
            assert result.traffic is not None
            by_status = result.traffic.requests.get(kind, {})
            failed = sum(n for status, n in by_status.items() if status >= "400")
            said = humanize.count(sum(by_status.values())) if by_status else "–"
            row[result.subject] = said + (f" ({failed} failed)" if failed else "")
        rows.append(row)
    labels = {"kind": "Request", **{result.subject: result.title for result in counted}}
    return _table(rows, labels, numbers=[result.subject for result in counted], markup=())


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
        result.title: ", ".join(f"{name} {version}" for name, version in result.versions.items())
        for result in results
        if result.versions
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
    processes = {len(result.processes) for result in record.results if result.processes}
    times = {len(each.iterations) for result in record.results for each in result.processes}
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


def _cell(comparison: Comparison) -> str:
    if comparison.found is None:
        side = comparison.ours if comparison.ours.state != "ok" else comparison.theirs
        hint = escape(side.error[:300], quote=True)
        return f'<abbr title="{hint}" style="color:var(--warn)">{escape(side.state)}</abbr>'
    hint = (
        f"{comparison.said}; 95% interval {comparison.found.low:.2f} to {comparison.found.high:.2f}"
    )
    shown = shown_ratio(comparison.found.value)
    if comparison.said in ("no difference", "too few samples"):
        # A number in the colour of a difference would be read as one.
        shown = f"{shown} <small>{'≈' if comparison.said == 'no difference' else '?'}</small>"
    style = f"color:{_TONES[comparison.said]};font-weight:600"
    return f'<span title="{hint}" style="{style}">{shown}</span>'


def _subject(record: Record, result: Result) -> dict[str, str]:
    marks = [humanize.plural(result.workers, "thread")] * bool(result.workers) + [
        f"{humanize.count(result.tasks)} tasks"
    ] * bool(result.tasks)
    row = {
        "who": escape(result.title),
        "points": ", ".join(marks),
        "again": f'<code class="mono">{escape(reproduce(record, result))}</code>',
        **dict.fromkeys(
            (
                *("startup", "cold", "warm", "memory", "cpu", "work_cpu"),
                *("output", "requests", "per_file", "read", "written"),
            ),
            "–",
        ),
    }
    if result.state != "ok":
        row["who"] += " " + _coloured(result.state, "var(--bad)")
        return row
    row["startup"] = humanize.duration(result.startup().value)
    row["cold"] = humanize.duration(median(result.cold()).value)
    row["warm"] = seconds(median(result.warm())) if result.warm() else "–"
    row["memory"] = humanize.byte_size(result.peak_bytes())
    row["cpu"] = humanize.duration(result.cpu_seconds())
    if result.cpu_samples():
        row["work_cpu"] = humanize.duration(median(result.cpu_samples()).value)
    row["output"], row["per_file"] = output_cells(result)
    if result.traffic is not None:
        row["requests"] = humanize.count(result.traffic.total)
        row["read"] = humanize.byte_size(result.traffic.bytes_read)
        row["written"] = humanize.byte_size(result.traffic.bytes_written)
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
