"""Build the page of a run, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from pipeline.report import charts, run_figures, run_text, run_timeline, tables
from pipeline.report.advice import advice
from pipeline.report.durations import durations_chart
from pipeline.report.humanize import (
    byte_rate,
    byte_size,
    count,
    duration,
    instant,
    money,
    percent,
    plural,
)
from pipeline.report.page import (
    Block,
    Chart,
    Example,
    Facts,
    LegendItem,
    Note,
    Page,
    Section,
    Table,
    link,
)
from pipeline.report.run_model import PARTS, MappedGroups, RunReport

MAX_BARS = 3_000
"""Maximum completions to draw one by one; with more, the timeline shows how busy workers were."""
MAX_MARKS = 400
"""Maximum marks of failed attempts in the timeline."""
MAX_GROUPS = 15
"""Maximum kinds of failure to show."""
MAX_MESSAGE = 8_000
"""Maximum characters of an error's message."""
_PHASE_COLOURS = {
    "start": "other",
    "plan": "plan",
    "map": "compute",
    "reduce": "encode",
    "then": "compute",
    "check": "plan",
    "merge": "encode",
    "publish": "upload",
    "report": "read",
}
MAX_FILES = 10
"""Maximum files of input and output to list, the largest."""


def build_page(report: RunReport) -> Page:
    """Build the page of a run."""
    clock = run_timeline.make_clock(report)
    spans = run_timeline.spans(report, clock)
    totals = run_figures.totals(report, clock)
    run = report.run
    state, tone = run_text.STATES[run.state]
    failures = _failures(report)
    shares = run_figures.time_shares(report, spans)
    sections = [
        _advice(report, totals, shares),
        Section("Progress", _progress(report, clock, spans)),
        Section("Speed", _speed(spans, clock, totals)) if spans.height else None,
        Section("Chunks", _chunks(report, shares)) if spans.height else None,
    ]
    # The page of a failed run begins with the failures.
    sections.insert(0 if run.state == "failed" and report.failures.height else 4, failures)
    costs = run_figures.costs(report, totals)
    sections += [
        _attempts(report),
        _files(report),
        _cost(costs, report),
        _estimates(report),
        Section("The run", _facts(report)),
    ]
    checks = _checks(report)
    if checks is not None:
        sections.insert(0 if report.is_refused else 4, checks)
    if report.groups is not None:
        sections.insert(0 if report.groups.failed else 4, _groups(report.groups))
    if report.not_counted:
        sections.insert(0, Section("Not counted", tuple(map(Note, report.not_counted))))
    ended = run.finished if run.finished is not None else clock.finish
    return Page(
        title=run.job,
        kicker="chunkmap run report",
        summary=run_text.summary(run, totals),
        badge=state,
        badge_tone=tone,
        notice=run_text.notice(run, totals, report.groups, is_refused=report.is_refused),
        cards=run_text.cards(run, totals, report.pruned, _total_cost(costs, report)),
        sections=tuple(section for section in sections if section is not None),
        footer=f"Run {run.id}, as of {instant(ended)}. Sizes are in decimal units (1 MB is "
        "1,000,000 bytes); bytes are as stored, compressed.",
    )


def _progress(
    report: RunReport, clock: run_timeline.Clock, spans: pl.DataFrame
) -> tuple[Block, ...]:
    blocks: list[Block] = []
    phases = run_figures.phase_shares(report, clock)
    if phases:
        colours = [charts.COLOURS[_PHASE_COLOURS.get(share.name, "idle")] for share in phases]
        text = ", ".join(f"{share.name} {duration(share.seconds)}" for share in phases)
        blocks.append(
            Chart(
                "Phases",
                charts.share_bar(phases, colours),
                f"Phases of the run: {text}.",
                f"They add up to {duration(clock.active_seconds)}.",
                legend=tuple(
                    LegendItem(share.name, colour, _part(share))
                    for share, colour in zip(phases, colours, strict=True)
                ),
            )
        )
    if spans.is_empty() and report.failures.filter(pl.col("worker") != "").is_empty():
        blocks.append(Note("No chunk has completed yet."))
    else:
        blocks.append(_timeline(report, clock, spans))
    return tuple(blocks)


def _timeline(report: RunReport, clock: run_timeline.Clock, spans: pl.DataFrame) -> Chart:
    workers = pl.concat([spans["worker"], report.failures["worker"]])
    names = run_timeline.worker_rows(workers.filter(workers != "").to_list())
    rows = list(dict.fromkeys(names.values()))
    seconds = clock.active_seconds
    marks = _failure_marks(report, clock, names)
    pauses = clock.pause_marks()
    legend = (LegendItem("failed attempt", charts.COLOURS["bad"]),) if marks.height else ()
    caption = _busy_sentence(report, spans) if spans.height else "No chunk has completed."
    if len(names) > len(rows):
        caption += f" Each row stands for up to {-(-len(names) // len(rows))} workers."
    if spans.height > MAX_BARS:
        cells = run_timeline.utilisation(spans, seconds, report.run.threads_per_worker)
        steps = ("under 20%", "20–40%", "40–60%", "60–80%", "above 80%")
        return Chart(
            "How busy each worker was",
            charts.utilisation(cells, marks, rows, seconds, pauses),
            f"Heat map of {plural(len(rows), 'row')} of workers over {duration(seconds)}: the "
            f"share of time spent on chunks. {caption}",
            caption,
            tuple(map(LegendItem, steps, charts.SEQUENCE)) + legend,
        )
    bars = _bars(spans, names)
    return Chart(
        "Chunks by worker" if spans.height else "Failed attempts by worker",
        charts.timeline(bars, marks, rows, seconds, pauses),
        f"Timeline of {plural(spans.height, 'completion')} on {plural(len(rows), 'worker')} over "
        f"{duration(seconds)}. {caption}",
        caption,
        tuple(LegendItem(name, charts.COLOURS[name]) for name in (*PARTS, "other") if spans.height)
        + legend,
    )


def _bars(spans: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
    ends, reached = {}, pl.col("start")
    for part in PARTS:
        reached = reached + run_figures.part_seconds(part)
        # Parts that overlapped must not extend past the chunk's end.
        ends[part] = pl.min_horizontal(reached, "stop").round(4)
    took = pl.struct(run_figures.part_seconds(part).alias(part) for part in PARTS)
    return spans.select(
        pl.col("chunk").str.slice(0, 12),
        "index",
        "worker",
        "batch",
        "attempt",
        "rows_in",
        "rows_out",
        pl.col("worker").replace_strict(names, return_dtype=pl.String).alias("row"),
        run_timeline.lanes(spans),
        pl.col("start", "stop").round(4),
        pl.col("seconds").map_elements(duration, return_dtype=pl.String).alias("took"),
        took.map_elements(
            lambda row: " · ".join(duration(row[part]) for part in PARTS),
            return_dtype=pl.String,
        ).alias("parts"),
        **ends,
    )


def _failure_marks(
    report: RunReport, clock: run_timeline.Clock, names: dict[str, str]
) -> pl.DataFrame:
    marks = report.failures.filter(pl.col("worker") != "").select(
        row=pl.col("worker").replace_strict(names, return_dtype=pl.String),
        at=clock.active(pl.col("at")).round(3),
        chunk=pl.col("chunk").str.slice(0, 12),
        error="error",
    )
    return marks.gather_every(-(-marks.height // MAX_MARKS) or 1)


def _busy_sentence(report: RunReport, spans: pl.DataFrame) -> str:
    shares = {share.name: share for share in run_figures.time_shares(report, spans)}
    busy = 1 - shares["idle"].share
    return f"While chunks were mapped, workers were busy {percent(busy)} of the time."


def _speed(
    spans: pl.DataFrame, clock: run_timeline.Clock, totals: run_figures.Totals
) -> tuple[Block, ...]:
    seconds = clock.active_seconds
    series = run_timeline.throughput(spans, seconds)

    def chart(
        title: str, column: str, mean: float, words: Callable[[float], str], axis: str
    ) -> Chart:
        data = series.select(
            pl.col("start", "stop").round(4),
            value=pl.col(column).round(1),
            shown=pl.col(column).map_elements(words, return_dtype=pl.String),
        )
        peak = float(series[column].max() or 0.0)  # type: ignore[arg-type]
        text = f"{words(mean)} on average over the run (dashed), {words(peak)} at best."
        spec = charts.rate_over_time(data, mean, seconds, axis)
        return Chart(
            title, spec, f"{title} over time: {text}", text[0].upper() + text[1:], half=True
        )

    return (
        chart(
            "Rows read per second",
            "rows_per_second",
            totals.rows_per_second,
            run_text.rows_rate,
            charts.COUNT_LABEL,
        ),
        chart(
            "Bytes read per second",
            "bytes_per_second",
            totals.bytes_per_second,
            byte_rate,
            charts.BYTES_LABEL,
        ),
    )


def _advice(
    report: RunReport, totals: run_figures.Totals, shares: list[run_figures.Share]
) -> Section | None:
    found = advice(report, totals, shares)
    return Section("Advice", (Facts("", tuple(found)),)) if found else None


def _checks(report: RunReport) -> Section | None:
    """Show what the checks of the result have found, with the rows of those that failed."""
    if not report.checks:
        return None
    failed = [check for check in report.checks if check.outcome != "passed"]
    examples = tuple(
        Example(f"Rows of {check.name}", "\n".join(check.examples), open=check.outcome == "refused")
        for check in failed
        if check.examples
    )
    lead = f"{count(len(failed))} of {plural(len(report.checks), 'check')} failed."
    if not failed:
        lead = f"{plural(len(report.checks), 'check')} passed before the result was published."
    return Section("Checks", (Table("", tables.checks_table(report.checks)), *examples), lead)


def _attempts(report: RunReport) -> Section | None:
    """List attempts and code versions, if there is more than one of either."""
    if len(report.attempts) < 2 and len(report.versions) < 2:
        return None
    blocks: list[Block] = []
    if report.attempts:
        caption = "Finished work of each attempt is kept by the next."
        blocks.append(Table("Attempts", tables.attempts_table(report.attempts), caption))
    if report.versions:
        table = tables.versions_table(report.versions)
        blocks.append(Table("Code that made the chunks", table))
    return Section("Attempts and code", tuple(blocks))


def _files(report: RunReport) -> Section | None:
    blocks = [
        Table(title, tables.files_table(run_figures.largest(files, MAX_FILES)), caption, half=True)
        for title, files, caption in (
            ("Largest objects of the input", report.inputs, _sizes(report.inputs)),
            ("Largest files of the output", report.outputs, _sizes(report.outputs)),
        )
        if files.height
    ]
    return Section("Files", tuple(blocks)) if blocks else None


def _sizes(files: pl.DataFrame) -> str:
    if files.is_empty():
        return ""
    median = float(files["bytes"].median() or 0)  # type: ignore[arg-type]
    return (
        f"{plural(files.height, 'file')} with {byte_size(int(files['bytes'].sum()))}; half have at "
        f"most {byte_size(median)}."
    )


def _cost(costs: list[run_figures.Cost], report: RunReport) -> Section | None:
    if report.prices is None or not costs:
        return None
    table = tables.costs_table(costs, report.prices.currency)
    text = "Use times the prices of the settings (section prices); storage and traffic are not in."
    return Section("Cost", (Table("", table, text),))


def _estimates(report: RunReport) -> Section | None:
    """Show what `plan` would have estimated before the run, next to what the run took."""
    if not report.estimates:
        return None
    text = "What chunkmap plan would have said before this run, from sizes and the run before."
    return Section("Estimates", (Table("", tables.estimates_table(report.estimates), text),))


def _total_cost(costs: list[run_figures.Cost], report: RunReport) -> str:
    if report.prices is None:
        return ""
    return money(sum(cost.cost for cost in costs), report.prices.currency)


def _chunks(report: RunReport, shares: list[run_figures.Share]) -> tuple[Block, ...]:
    colours = [charts.COLOURS[share.name] for share in shares]
    text = ", ".join(f"{share.name} {percent(share.share)}" for share in shares)
    slowest = run_figures.slowest(report)
    return (
        durations_chart("chunk", report.completions["seconds"]),
        Chart(
            "Where the workers' time went",
            charts.share_bar(shares, colours),
            f"Share of the workers' time: {text}.",
            _time_sentence(shares),
            tuple(
                LegendItem(share.name, colour, _part(share))
                for share, colour in zip(shares, colours, strict=True)
            ),
            half=True,
        ),
        Table(
            "Slowest chunks",
            tables.slowest_table(slowest),
        ),
    )


def _time_sentence(shares: list[run_figures.Share]) -> str:
    largest = max(shares, key=lambda share: share.seconds)
    explanations = {
        "read": "most of it waiting for bytes: storage or network is the limit",
        "compute": "most of it in decoding the input and in the transform",
        "encode": "most of it in encoding results as Parquet: the codec is the limit",
        "upload": "most of it uploading: storage or network is the limit",
        "other": "most of it in checks and waiting inside chunks",
        "idle": "most of it idle: use more, smaller chunks, or fewer workers",
    }
    total = sum(share.seconds for share in shares)
    return f"{duration(total)} of worker time, {explanations[largest.name]}."


def _failures(report: RunReport) -> Section:
    groups = run_figures.failure_groups(report.failures)
    if not groups:
        return Section("Failures", (Note("No attempt failed."),))
    attempts = report.failures.height
    final = report.failures.filter("final")["chunk"].n_unique()
    lead = f"{plural(attempts, 'attempt')} failed"
    lead += (
        f"; {plural(final, 'chunk')} still failed at the end."
        if final
        else (
            ", and every one of their chunks completed later."
            if report.run.state == "done"
            else "; no chunk has failed for good."
        )
    )
    if len(groups) > MAX_GROUPS:
        rest = sum(group.attempts for group in groups[MAX_GROUPS:])
        lead += (
            f" The {MAX_GROUPS} main kinds of {count(len(groups))} are shown; the others account "
            f"for {plural(rest, 'attempt')}."
        )
    return Section("Failures", _kinds_of_failure(groups[:MAX_GROUPS], "chunk"), lead)


def _kinds_of_failure(groups: list[run_figures.FailureGroup], unit: str) -> tuple[Block, ...]:
    """Show kinds of failure in a table, and an example of each."""
    examples = tuple(
        Example(
            f"{group.error} in {unit} {group.index}"
            + (f", at {group.line}" if group.line else "")
            + (f", on {group.worker}" if group.worker else ""),
            _example(group),
            open=at == 0 and bool(group.chunks_final),
        )
        for at, group in enumerate(groups)
    )
    title = "By kind" if unit == "chunk" else f"Failures of {unit}s by kind"
    return (Table(title, tables.failures_table(groups, unit)), *examples)


def _groups(mapped: MappedGroups) -> Section:
    """Show what was mapped over the groups of the reduced result."""
    lead = f"{count(mapped.done)} of {plural(mapped.pieces, 'piece')} of groups are mapped."
    if mapped.failed:
        lead += f" {plural(mapped.failed, 'piece')} still failed at the end."
    if not mapped.pieces:
        lead = "The chunks' results are not reduced yet, or their result has no rows."
    facts = [
        ("Function", mapped.function),
        ("Mapped", run_text.groups_text(mapped.by)),
        *((f"Parameter {name}", value) for name, value in mapped.params.items()),
        ("Rows", f"{count(mapped.rows_in)} in, {count(mapped.rows_out)} out"),
        ("Time of workers", f"{duration(mapped.seconds)}, longest {duration(mapped.longest)}"),
    ]
    kinds = run_figures.failure_groups(mapped.failures)[:MAX_GROUPS]
    failures = _kinds_of_failure(kinds, "piece") if kinds else ()
    return Section("Groups", (*failures, Facts("Then", tuple(facts))), lead)


def _example(group: run_figures.FailureGroup) -> str:
    """Show the chunk's rows, and the traceback (else the message) of an example."""
    text = (group.trace or group.message)[:MAX_MESSAGE] or "(no message)"
    return f"{group.where}\n\n{text}" if group.where else text


def _facts(report: RunReport) -> tuple[Block, ...]:
    run = report.run
    moments = [("Created", run.created), ("Started", run.started), ("Finished", run.finished)]
    facts: list[tuple[str, str]] = [
        ("Run", run.id),
        ("Input", run.input),
        ("Output", f"{run.output} (mode {run.mode})"),
        ("Transform", run.transform),
        *((f"Parameter {name}", value) for name, value in run.params.items()),
        *([("Filter", run.filter)] if run.filter else []),
        *([("Columns", ", ".join(run.columns))] if run.columns else []),
        *([("Layout", run.layout)] if run.layout else []),
        *([("Encodings", run.encodings)] if run.encodings else []),
        *([("Kept columns", run.kept)] if run.kept else []),
        ("Fingerprint", run.fingerprint),
        *([("Commit", run.commit)] if run.commit else []),
        *((f"Table {uri}", version) for uri, version in run.tables.items()),
        *([("Rounds", count(run.rounds))] if run.rounds else []),
        *((name, instant(moment)) for name, moment in moments if moment is not None),
    ]
    if run.prefect_url:
        facts.append(("Prefect", link(run.prefect_url)))
    others = [
        ("What was read", _pruned(report)),
        ("Columns of the output", tuple(run.schema.items())),
        ("Environment", tuple(run.environment.items())),
    ]
    shown = [Facts(title, items, half=True) for title, items in others if items]
    return (Facts("Run", tuple(facts), half=bool(shown)), *shown)


def _pruned(report: RunReport) -> tuple[tuple[str, str], ...]:
    """Describe what planning left out before anything was read."""
    pruned = report.pruned
    if pruned is None:
        return ()
    return (
        ("Objects", f"{count(pruned.objects_planned)} of {count(pruned.objects_listed)} listed"),
        ("By partition", f"{plural(pruned.objects_pruned, 'object')} pruned"),
        (
            "By statistics",
            f"{count(pruned.row_groups_pruned)} of {plural(pruned.row_groups, 'row group')} "
            f"pruned, {plural(pruned.objects_without_rows, 'whole object')}",
        ),
        (
            "Bytes",
            f"{byte_size(pruned.bytes_to_read)} planned to read of "
            f"{byte_size(pruned.bytes_listed)} stored; "
            f"{byte_size(int(report.completions['bytes_in'].sum()))} read",
        ),
    )


def _part(share: run_figures.Share) -> str:
    return f"{duration(share.seconds)} ({percent(share.share)})"
