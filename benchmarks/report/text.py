"""Write the texts that page and Markdown share."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.suite.compare import Comparison
from benchmarks.suite.record import Record
from pipeline.report import humanize

CPU_AND_OUTPUT = (
    "CPU: processor time of our workers over that of a peer that is one process. Output: bytes "
    "that we wrote over theirs; everybody compresses with zstd, at their own default level."
)


def headline(record: Record, found: Sequence[Comparison]) -> str:
    """Summarise the session in a few plain sentences."""
    shown = [comparison for comparison in found if comparison.found is not None]
    if not shown:
        return (
            f"{humanize.plural(len(record.workloads()), 'workload')} measured; "
            "there is no valid comparison with a peer."
        )
    verdicts = [comparison.said for comparison in shown]
    faster, slower = verdicts.count("faster"), verdicts.count("slower")
    few = verdicts.count("too few samples")
    same = len(shown) - faster - slower - few
    workloads = {comparison.workload for comparison in shown}
    text = (
        f"In {humanize.plural(len(shown), 'comparison')} on "
        f"{humanize.plural(len(workloads), 'workload')}, chunkmap was faster "
        f"in {faster}, slower in {slower}, and in {same} there was no difference beyond the noise."
    )
    if few:
        text += f" {few} had too few samples to tell."
    with_aim = [comparison for comparison in shown if comparison.met is not None]
    if with_aim:
        met = sum(1 for comparison in with_aim if comparison.met)
        kind = "ratio that is an aim" if len(with_aim) == 1 else "ratios that are aims"
        text += f" It met {met} of {len(with_aim)} {kind} at this scale."
    bad = [result for result in record.results if result.state != "ok"]
    if bad:
        names = ", ".join(dict.fromkeys(f"{result.title} ({result.state})" for result in bad))
        text += f" Without a valid time: {names}."
    return text


def best_and_worst(found: Sequence[Comparison]) -> tuple[Comparison | None, Comparison | None]:
    """Find the comparisons with enough samples and the lowest and highest ratio."""
    shown = sorted(
        (item for item in found if item.found is not None and item.said != "too few samples"),
        key=lambda item: item.found.value if item.found else 0.0,
    )
    return (shown[0], shown[-1]) if shown else (None, None)


def shown_ratio(value: float) -> str:
    """Format a ratio with two decimals, or with two digits if it is below 0.1."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
