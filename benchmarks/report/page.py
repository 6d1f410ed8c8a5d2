"""The benchmark report as a page: ratios first, then charts, then every detail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.report import charts, tables
from benchmarks.report.text import CPU_AND_OUTPUT, best_and_worst, headline, shown_ratio
from benchmarks.suite.compare import Comparison, comparisons
from benchmarks.suite.environments import PEERS, REFERENCE
from benchmarks.suite.record import Record, Result
from benchmarks.suite.stats import Interval, median, ratio
from benchmarks.suite.workloads import WORKLOADS
from pipeline.report import humanize
from pipeline.report.page import (
    Block,
    Card,
    Chart,
    Example,
    Facts,
    LegendItem,
    Note,
    Notice,
    Page,
    Section,
    Table,
)

_KINDS = (LegendItem("cold: first time in a process", charts.COLD), LegendItem("warm", charts.OURS))


def build_page(
    record: Record, earlier: Sequence[Record] = (), profiles: Sequence[str] = ()
) -> Page:
    """The whole page.

    Args:
        record: The session.
        earlier: Other sessions of the same scale, oldest first, for the history.
        profiles: Names of the flame graphs, which lie in a folder next to the page.
    """
    found = comparisons(record)
    sections = [
        _ratios(record, found),
        _times(record),
        _memory(record),
        *_phases(record),
        *_profiles(profiles),
        *_curves(record),
        *_history([*earlier, record]),
        *_details(record),
        _method(record),
    ]
    bad = [result for result in record.results if result.state != "ok"]
    return Page(
        title=f"Benchmarks at scale {record.scale}",
        kicker="chunkmap benchmark report",
        summary=headline(record, found),
        badge="complete" if record.complete else "not complete",
        badge_tone="good" if record.complete and not bad else "warn",
        cards=_cards(record, found, bad),
        notice=Notice("To run the same again:", record.command),
        sections=tuple(sections),
        footer=f"Session {record.id}, {record.created:%Y-%m-%d %H:%M} UTC, "
        f"commit {record.machine.commit}{' with changes' if record.machine.dirty else ''}.",
    )


def _cards(record: Record, found: Sequence[Comparison], bad: Sequence[Result]) -> tuple[Card, ...]:
    judged = [comparison for comparison in found if comparison.met is not None]
    met = sum(1 for comparison in judged if comparison.met)
    best, worst = best_and_worst(found)
    noise = "not measured" if record.noise is None else humanize.percent(record.floor)
    return (
        Card(
            "Aims met",
            f"{met} of {len(judged)}" if judged else "none set",
            "",
            "plain" if not judged else "good" if met == len(judged) else "warn",
        ),
        Card("Best", *_extreme(best)),
        Card("Worst", *_extreme(worst)),
        Card("Noise floor", noise, "a smaller difference is none"),
        Card(
            "Workloads",
            humanize.count(len(record.workloads())),
            humanize.plural(len({result.subject for result in record.results}) - 1, "peer"),
        ),
        Card(
            "Failed, wrong or missing",
            humanize.count(len(bad)),
            "; ".join(f"{result.title} on {result.workload}" for result in bad[:3]),
            "bad" if bad else "plain",
        ),
        Card("Machine", humanize.plural(record.machine.cores, "core"), record.machine.cpu),
        Card(
            "Load before",
            f"{record.machine.load:g}",
            "of others: times are not to be trusted"
            if record.machine.load > record.machine.cores / 2
            else "the machine was quiet",
            "warn" if record.machine.load > record.machine.cores / 2 else "plain",
        ),
    )


def _extreme(comparison: Comparison | None) -> tuple[str, str]:
    if comparison is None or comparison.found is None:
        return "–", "no comparison"
    where = f"of {comparison.theirs.title} on {comparison.workload}"
    return shown_ratio(comparison.found.value), where


def _ratios(record: Record, found: Sequence[Comparison]) -> Section:
    if not found:
        return Section("Ratios", (Note("Nothing was compared: no peer was measured."),))
    blocks: list[Block] = [
        Table(
            "chunkmap's seconds over each peer's",
            tables.ratios(found),
            "Below 1 chunkmap is faster. Green: faster; red: slower; grey and ≈: no difference "
            "beyond the noise floor; ?: fewer than three samples. Point at a number for its 95% "
            "interval, or at a word for the error.",
        )
    ]
    if any(comparison.aim is not None for comparison in found):
        blocks.append(Table("Aims", tables.aims(found)))
    if any(comparison.cpu or comparison.size for comparison in found):
        blocks.append(Table("Processor time and output", tables.costs(found), CPU_AND_OUTPUT))
    return Section(
        "Ratios",
        tuple(blocks),
        "Medians of the warm iterations, start-up left out, on the same machine, data, S3 server "
        "and compression. A time counts only after its rows were read again and compared with the "
        "expected ones.",
    )


def _times(record: Record) -> Section:
    blocks: list[Block] = []
    for name in _plain_workloads(record):
        rows, order = _time_rows(record, name)
        if rows:
            blocks.append(
                Chart(
                    name,
                    charts.times(rows, order),
                    _described(name, rows),
                    WORKLOADS[name].says if name in WORKLOADS else "",
                    legend=_KINDS,
                    half=True,
                )
            )
    return Section(
        "Time",
        tuple(blocks) or (Note("No workload ended well enough to show its time."),),
        "Median with its 95% bootstrap interval; each faint tick is one sample.",
    )


def _plain_workloads(record: Record) -> Iterator[str]:
    for name in record.workloads():
        if not any(
            result.workers or result.tasks for result in record.results if result.workload == name
        ):
            yield name


def _ok(record: Record, workload: str) -> list[Result]:
    found = [
        result for result in record.results if result.workload == workload and result.state == "ok"
    ]
    return sorted(
        found, key=lambda result: (result.subject != REFERENCE, median(result.samples()).value)
    )


def _time_rows(record: Record, workload: str) -> tuple[list[dict[str, Any]], list[str]]:
    rows = []
    results = _ok(record, workload)
    for result in results:
        for kind, samples in (("cold", result.cold()), ("warm", result.warm())):
            if samples:
                middle = median(samples)
                rows.append(
                    {
                        **_interval(middle),
                        "title": result.title,
                        "ours": result.subject == REFERENCE,
                        "kind": kind,
                        "samples": samples,
                        "count": len(samples),
                        "shown": tables.seconds(middle),
                    }
                )
    return rows, [result.title for result in results]


def _memory(record: Record) -> Section:
    blocks: list[Block] = []
    for name in _plain_workloads(record):
        results = _ok(record, name)
        if len(results) < 2:
            continue
        rows = [
            {
                "title": result.title,
                "ours": result.subject == REFERENCE,
                "value": result.peak_bytes(),
                "shown": humanize.byte_size(result.peak_bytes()),
            }
            for result in results
        ]
        said = "; ".join(f"{row['title']} {row['shown']}" for row in rows)
        spec = charts.bars(rows, [result.title for result in results], charts.MEGABYTES_LABEL)
        blocks.append(Chart(name, spec, f"Peak memory on {name}: {said}.", half=True))
    return Section(
        "Peak memory",
        tuple(blocks) or (Note("Nothing to compare."),),
        "Of the whole process tree, shared pages divided among their users. chunkmap's includes "
        "the Dask cluster and the Prefect server that run next to it, Prefect's the server.",
    )


def _phases(record: Record) -> Iterator[Section]:
    if any(result.phases() for result in record.results):
        text = "Medians of chunkmap's warm runs. The report is made after the output is published."
        yield Section("Phases", (Table("", tables.phases(record)),), text)


def _profiles(names: Sequence[str]) -> Iterator[Section]:
    if names:
        text = (
            "Flame graphs of warm runs of chunkmap that were not timed: a hundred samples a second "
            "of what Python threads do while they run. Files next to this page."
        )
        yield Section("Profiles", (Table("", tables.profiles(names)),), text)


def _curves(record: Record) -> Iterator[Section]:
    blocks: list[Block] = []
    for name in record.workloads():
        mine = [result for result in record.of(name, REFERENCE) if result.state == "ok"]
        points = sorted(
            (result for result in mine if result.workers), key=lambda result: result.workers
        )
        if len(points) > 1:
            blocks.append(_scaling(name, points))
        tasked = [
            result
            for result in record.results
            if result.workload == name and result.tasks and not result.workers
        ]
        if any(result.state == "ok" for result in tasked):
            blocks.append(_cost(name, [result for result in tasked if result.state == "ok"]))
    if blocks:
        yield Section("Curves", tuple(blocks))


def _scaling(name: str, points: Sequence[Result]) -> Chart:
    first, last = points[0], points[-1]
    rows: list[dict[str, Any]] = []
    for point in points:
        faster = ratio(first.samples(), point.samples())
        rows.append(
            {
                "workers": point.workers,
                "speedup": faster.value,
                "low": faster.low,
                "high": faster.high,
                "shown": f"{faster.value:.2f} [{faster.low:.2f}, {faster.high:.2f}]",
            }
        )
    share = rows[-1]["speedup"] / (last.workers / first.workers)
    said = (
        f"{last.workers} threads are {rows[-1]['speedup']:.1f} times as fast as {first.workers}: "
        f"{humanize.percent(share)} of the ideal."
    )
    aim = WORKLOADS[name].efficiency if name in WORKLOADS else None
    if aim is not None:
        said += (
            f" At least {humanize.percent(aim)} is aimed at: {'met' if share >= aim else 'missed'}."
        )
    return Chart(f"Scaling: {name}", charts.scaling(rows), said, said, half=True)


def _cost(name: str, results: Sequence[Result]) -> Chart:
    rows = []
    for result in sorted(results, key=lambda each: each.tasks):
        middle = median(result.samples())
        rows.append(
            {
                **_interval(middle),
                "title": result.title,
                "tasks": result.tasks,
                "shown": tables.seconds(middle),
            }
        )
    titles = sorted({result.title for result in results}, key=lambda title: title != "chunkmap")
    largest = {row["title"]: row for row in rows}
    said = "; ".join(f"{title} {largest[title]['shown']}" for title in titles)
    legend = tuple(
        LegendItem(title, charts.SERIES[n % len(charts.SERIES)]) for n, title in enumerate(titles)
    )
    return Chart(
        f"Cost of one: {name}",
        charts.cost_per_task(rows, titles),
        f"Cost of one chunk or task at the largest number measured: {said}.",
        "Ours are planned and recorded one by one; the peers' tasks do nothing and are not "
        "recorded.",
        legend=legend,
        half=True,
    )


def _history(records: Sequence[Record]) -> Iterator[Section]:
    by_workload: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for comparison in comparisons(record):
            if comparison.found is not None:
                by_workload.setdefault(comparison.workload, []).append(
                    {
                        "peer": comparison.theirs.title,
                        "session": f"{record.created:%d %b %H:%M}",
                        "ratio": comparison.found.value,
                        "low": comparison.found.low,
                        "high": comparison.found.high,
                        "commit": record.machine.commit,
                    }
                )
    order = [f"{record.created:%d %b %H:%M}" for record in records]
    blocks: list[Block] = []
    for name, rows in by_workload.items():
        if len({row["session"] for row in rows}) < 2:
            continue
        peers = list(dict.fromkeys(row["peer"] for row in rows))
        legend = tuple(
            LegendItem(peer, charts.SERIES[n % len(charts.SERIES)]) for n, peer in enumerate(peers)
        )
        said = f"Ratios of {name} over {len({row['session'] for row in rows})} sessions."
        blocks.append(Chart(name, charts.history(rows, order), said, legend=legend, half=True))
    if blocks:
        yield Section("History", tuple(blocks), "Ratios over the sessions of this machine.")


def _details(record: Record) -> Iterator[Section]:
    for name in record.workloads():
        results = [result for result in record.results if result.workload == name]
        blocks: list[Block] = [Table("", tables.subjects(record, results))]
        if any(result.traffic is not None for result in results):
            blocks.append(Table("S3 requests of one iteration", tables.requests(results)))
        blocks += [
            Example(
                f"{result.title}: {result.state}", result.error or "(it said nothing)", open=True
            )
            for result in results
            if result.state != "ok"
        ]
        said = WORKLOADS[name].says if name in WORKLOADS else ""
        lead = f"{said[:1].upper()}{said[1:]}." if said else ""
        yield Section(name, tuple(blocks), lead)


def _method(record: Record) -> Section:
    machine = record.machine
    blocks: list[Block] = [
        Facts(
            "Machine",
            (
                ("Processor", f"{machine.cpu}, {machine.cores} cores"),
                ("Memory", humanize.byte_size(machine.memory_bytes)),
                ("System", machine.system),
                ("Python", machine.python),
                ("Commit", machine.commit + (" with changes" if machine.dirty else "")),
                ("Load before", f"{machine.load:g}"),
                ("Cluster", humanize.plural(machine.cluster_threads, "worker thread")),
            ),
            half=True,
        ),
        Facts("Versions", tuple(tables.versions(record.results)), half=True),
        Facts("How it was measured", _how(record)),
        Table("Datasets", tables.datasets(record)),
    ]
    return Section("Method", tuple(blocks))


def _how(record: Record) -> tuple[tuple[str, str], ...]:
    noise = "There was no A/A run, so nothing counts as a difference."
    if record.noise is not None:
        pairs = "; ".join(
            f"{PEERS[name].title if name in PEERS else name} "
            f"{ratio(a, b).value:.3f} [{ratio(a, b).low:.3f}, {ratio(a, b).high:.3f}]"
            for name, (a, b) in record.noise.pairs.items()
        )
        noise = f"The same subject as if it were two, on {record.noise.workload}: {pairs}."
        if record.noise.attempts > 1:
            noise += f" Run {record.noise.attempts} of several, repeated until it was quiet."
    return (
        ("Repeats", tables.repeats(record)),
        ("Noise", noise),
        ("Intervals", "95%, percentile bootstrap of the median, 4,000 resamples, fixed seed."),
        ("Memory", "Sampled every 0.1 s over the process tree; proportional set size."),
        ("Requests", "Counted by a proxy in a pass of its own that is not timed."),
        (
            "Caches",
            "The system's page cache and the S3 server's are warm for everybody; cold means the "
            "first time in a process.",
        ),
    )


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _described(name: str, rows: Sequence[dict[str, Any]]) -> str:
    said = "; ".join(f"{row['title']} {row['kind']} {row['shown']}" for row in rows)
    return f"Seconds on {name}: {said}."
