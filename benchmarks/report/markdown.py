"""The benchmark report in Markdown: for a Prefect artifact, a pull request, the documentation."""

from __future__ import annotations

from benchmarks.report.tables import reproduce, seconds
from benchmarks.report.text import headline, shown_ratio
from benchmarks.suite.compare import Comparison, comparisons
from benchmarks.suite.record import Record, Result
from benchmarks.suite.stats import median
from pipeline.report import humanize


def build_markdown(record: Record, location: str | None = None) -> str:
    """Summary, ratios, figures, what failed, and where it ran.

    Args:
        record: The session.
        location: Where the page is, to link to it.
    """
    found = comparisons(record)
    machine = record.machine
    lines = [
        f"## Benchmarks at scale {record.scale}, {record.created:%Y-%m-%d}",
        "",
        headline(record, found),
        "",
        f"Commit `{machine.commit}`{' with changes' if machine.dirty else ''}, {machine.cpu}, "
        f"{humanize.plural(machine.cores, 'core')}, {humanize.byte_size(machine.memory_bytes)}, "
        f"load {machine.load:g} before. {_noise(record)} `{record.command}`",
        "",
    ]
    if found:
        lines += ["### Ratios: chunkmap's seconds over the peer's (below 1 is faster)", ""]
        lines += ["| workload | against | ratio | 95% interval | | aim |"]
        lines += ["|---|---|---:|---|---|---|", *map(_ratio_row, found), ""]
    lines += ["### Seconds", ""]
    lines += ["| workload | who | start-up | cold | warm [95%] | peak memory | CPU |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|", *map(_result_row, record.results), ""]
    bad = [one for one in record.results if one.state != "ok"]
    if bad:
        lines += ["### Failed, wrong or missing", ""]
        lines += [f"- {one.title} on {one.workload} ({one.state}): {_line(one)}" for one in bad]
        lines += [""]
    if location:
        lines += [f"[The whole report]({location})", ""]
    return "\n".join(lines)


def _noise(record: Record) -> str:
    if record.noise is None:
        return "No A/A run, so nothing counts as a difference."
    return f"Noise floor {humanize.percent(record.floor)}."


def _ratio_row(one: Comparison) -> str:
    aim = "" if one.aim is None else f"at most {one.aim:.2f}"
    if one.met is not None:
        aim += ", met" if one.met else ", missed"
    if one.found is None:
        side = one.ours if one.ours.state != "ok" else one.theirs
        return (
            f"| {one.workload} | {one.theirs.title} | – | – | {side.title} {side.state} | {aim} |"
        )
    return (
        f"| {one.workload} | {one.theirs.title} | {shown_ratio(one.found.value)} | "
        f"{shown_ratio(one.found.low)} to {shown_ratio(one.found.high)} | {one.said} | {aim} |"
    )


def _result_row(one: Result) -> str:
    marks = [f"{one.workers} threads"] * bool(one.workers)
    marks += [f"{humanize.count(one.tasks)} tasks, seconds for one"] * bool(one.tasks)
    name = one.workload + (f" ({', '.join(marks)})" if marks else "")
    if one.state != "ok":
        return f"| {name} | {one.title} | {one.state} | – | – | – | – |"
    cold = median(one.cold()).value / (one.tasks or 1)
    warm = seconds(median(one.samples())) if one.warm() else "–"
    shown = f"{cold * 1e3:.2f} ms" if one.tasks else humanize.duration(cold)
    return (
        f"| {name} | {one.title} | {humanize.duration(one.startup().value)} | {shown} | {warm} | "
        f"{humanize.byte_size(one.peak_bytes())} | {humanize.duration(one.cpu_seconds())} |"
    )


def _line(one: Result) -> str:
    first = next((line for line in one.error.splitlines() if line.strip()), "it said nothing")
    return first[:300].replace("|", "\\|")


def commands(record: Record) -> list[str]:
    """The command that measures each row again."""
    return list(dict.fromkeys(reproduce(record, one) for one in record.results))
