"""The sentences that the page and the Markdown share."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.suite.compare import Comparison
from benchmarks.suite.record import Record
from pipeline.report import humanize


def headline(record: Record, found: Sequence[Comparison]) -> str:
    """The session in two sentences that a manager can read."""
    shown = [one for one in found if one.found is not None]
    if not shown:
        return (
            f"{humanize.plural(len(record.workloads()), 'workload')} measured; "
            "there is no valid comparison with a peer."
        )
    faster = sum(1 for one in shown if one.said == "faster")
    slower = sum(1 for one in shown if one.said == "slower")
    few = sum(1 for one in shown if one.said == "too few samples")
    same = len(shown) - faster - slower - few
    said = (
        f"In {humanize.plural(len(shown), 'comparison')} on "
        f"{humanize.plural(len({one.workload for one in shown}), 'workload')}, chunkmap was faster "
        f"in {faster}, slower in {slower}, and in {same} there was no difference beyond the noise."
    )
    if few:
        said += f" {few} had too few samples to tell."
    judged = [one for one in shown if one.met is not None]
    if judged:
        met = sum(1 for one in judged if one.met)
        said += f" It met {met} of {humanize.plural(len(judged), 'aim')}."
    bad = [one for one in record.results if one.state != "ok"]
    if bad:
        names = ", ".join(dict.fromkeys(f"{one.title} ({one.state})" for one in bad))
        said += f" Without a valid time: {names}."
    return said


def best_and_worst(found: Sequence[Comparison]) -> tuple[Comparison | None, Comparison | None]:
    """The comparisons with the least and the greatest ratio, of those with samples enough."""
    shown = sorted(
        (one for one in found if one.found is not None and one.said != "too few samples"),
        key=lambda one: one.found.value if one.found else 0.0,
    )
    return (shown[0], shown[-1]) if shown else (None, None)


def shown_ratio(value: float) -> str:
    """A ratio with two decimals, or two digits where those would be zero."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
