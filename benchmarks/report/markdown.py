"""The benchmark report in Markdown: for a Prefect artifact, a pull request, the documentation."""

from __future__ import annotations

from benchmarks.report.tables import output_cells, phase_rows, reproduce, seconds
from benchmarks.report.text import CPU_AND_OUTPUT, headline, shown_ratio
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
        f"## Benchmarks at scale {record.scale}, {record.created:%Y-%m-%d}"
        f"{'' if record.complete else ', not complete'}",
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
        lines += ["| workload | against | ratio | 95% interval | | aim | CPU | output |"]
        lines += ["|---|---|---:|---|---|---|---:|---:|", *map(_ratio_row, found), ""]
        lines += [f"{CPU_AND_OUTPUT}", ""]
    lines += ["### Seconds", ""]
    columns = "start-up | cold | warm [95%] | peak memory | CPU | output | requests per file"
    lines += [f"| workload | who | {columns} |", "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    lines += [*map(_result_row, record.results), ""]
    head, rows = phase_rows(record)
    if rows:
        lines += ["### Phases of chunkmap's runs, medians of warm ones", "", _row(*head)]
        lines += [f"|---|{'---:|' * (len(head) - 1)}", *(_row(*row) for row in rows), ""]
    bad = [result for result in record.results if result.state != "ok"]
    if bad:
        lines += ["### Failed, wrong or missing", ""]
        lines += [
            f"- {result.title} on {result.workload} ({result.state}): {_line(result)}"
            for result in bad
        ]
        lines += [""]
    if location:
        lines += [f"[The whole report]({location})", ""]
    return "\n".join(lines)


def _noise(record: Record) -> str:
    if record.noise is None:
        return "No A/A run, so nothing counts as a difference."
    return f"Noise floor {humanize.percent(record.floor)}."


def _ratio_row(comparison: Comparison) -> str:
    aim = "" if comparison.aim is None else f"at most {comparison.aim:.2f}"
    if comparison.met is not None:
        aim += ", met" if comparison.met else ", missed"
    found = comparison.found
    if found is None:
        side = comparison.ours if comparison.ours.state != "ok" else comparison.theirs
        cells = ["–", "–", f"{side.title} {side.state}"]
    else:
        value, low, high = map(shown_ratio, (found.value, found.low, found.high))
        cells = [value, f"{low} to {high}", comparison.said]
    cpu = "" if comparison.cpu is None else shown_ratio(comparison.cpu.value)
    size = "" if comparison.size is None else shown_ratio(comparison.size)
    return _row(comparison.workload, comparison.theirs.title, *cells, aim, cpu, size)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _result_row(result: Result) -> str:
    marks = [humanize.plural(result.workers, "thread")] * bool(result.workers)
    marks += [f"{humanize.count(result.tasks)} tasks, seconds for one"] * bool(result.tasks)
    name = result.workload + (f" ({', '.join(marks)})" if marks else "")
    if result.state != "ok":
        return _row(name, result.title, result.state, *["–"] * 6)
    cold = median(result.cold()).value / (result.tasks or 1)
    warm = seconds(median(result.samples())) if result.warm() else "–"
    shown = f"{cold * 1e3:.2f} ms" if result.tasks else humanize.duration(cold)
    startup = humanize.duration(result.startup().value)
    peak, cpu = humanize.byte_size(result.peak_bytes()), humanize.duration(result.cpu_seconds())
    return _row(name, result.title, startup, shown, warm, peak, cpu, *output_cells(result))


def _line(result: Result) -> str:
    first = next((line for line in result.error.splitlines() if line.strip()), "it said nothing")
    return first[:300].replace("|", "\\|")


def commands(record: Record) -> list[str]:
    """The command that measures each row again."""
    return list(dict.fromkeys(reproduce(record, result) for result in record.results))
