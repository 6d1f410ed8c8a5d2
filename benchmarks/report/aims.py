"""The table of aims, for the terminal and for the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.suite.aims import MAX_NOISE, Judgement
from pipeline.report.humanize import plural

HEAD = ("what", "aim", "reached [95%]", "", "noise", "session")


def aim_rows(judgements: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """A row an aim, in the order of HEAD."""
    return [
        (
            judgement.aim.what,
            judgement.aim.limit_text(),
            judgement.figure_text(),
            judgement.state + (", noisy" if judgement.is_noisy else ""),
            judgement.noise_text(),
            judgement.record.id if judgement.record is not None else "",
        )
        for judgement in judgements
    ]


def summary(judgements: Sequence[Judgement]) -> str:
    """How many aims are met."""
    counts: Counter[str] = Counter(judgement.state for judgement in judgements)
    rest = [
        f"{counts[state]} {words}"
        for state, words in (
            ("not measured", "not measured"),
            ("too few samples", "with too few samples"),
        )
        if counts[state]
    ]
    met = f"{counts['met']} of {plural(len(judgements), 'aim')} met"
    return ", ".join([met, f"{counts['missed']} missed", *rest]) + "."


def build_aims_markdown(judgements: Sequence[Judgement]) -> str:
    """The table with where it was measured, and the commands that measure it again."""
    records = {j.record.id: j.record for j in judgements if j.record is not None}
    lines = [
        summary(judgements),
        f"*Noisy* means a noise floor above {MAX_NOISE:.0%}: the figure is only an indication.",
        "",
        f"| {' | '.join(HEAD)} |",
        "|---|---|---:|---|---:|---|",
        *(f"| {' | '.join(row)} |" for row in aim_rows(judgements)),
        "",
    ]
    for record in records.values():
        machine = record.machine
        lines.append(
            f"- Session {record.id}: commit `{machine.commit}`"
            f"{' with changes' if machine.dirty else ''}, {machine.cpu}, {machine.cores} cores, "
            f"load {machine.load:g} before."
        )
    commands = dict.fromkeys(judgement.aim.command for judgement in judgements)
    if records:
        lines.append("")
    return "\n".join([*lines, "```text", *commands, "```", ""])


def aims_object(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "what": judgement.aim.what,
            "scale": judgement.aim.scale,
            "limit": judgement.aim.limit,
            "at_least": judgement.aim.at_least,
            "state": judgement.state,
            "value": None if judgement.figure is None else judgement.figure.value.value,
            "low": None if judgement.figure is None else judgement.figure.value.low,
            "high": None if judgement.figure is None else judgement.figure.value.high,
            "samples": None if judgement.figure is None else judgement.figure.samples,
            "note": "" if judgement.figure is None else judgement.figure.note,
            "noise": judgement.noise,
            "session": None if judgement.record is None else judgement.record.id,
            "command": judgement.aim.command,
        }
        for judgement in judgements
    ]
