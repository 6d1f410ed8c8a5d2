"""Summarise a run in a few lines of Markdown."""

from __future__ import annotations

import re

from pipeline.printable import printable
from pipeline.report import run_figures, run_text, run_timeline
from pipeline.report.humanize import count, plural
from pipeline.report.run_model import RunReport

MAX_GROUPS = 5
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&!])")


def build_markdown(report: RunReport, location: str | None) -> str:
    """Write state, headline figures, what to do next, main failures, and a link to the page."""
    clock = run_timeline.make_clock(report)
    totals = run_figures.totals(report, clock)
    run = report.run
    state, _ = run_text.STATES[run.state]
    lines = [f"# {_text(run.job)}: {state.lower()}", "", _text(run_text.summary(run, totals)), ""]
    lines += ["| | | |", "|:--|--:|:--|"]
    lines += [
        f"| {_text(card.label)} | **{_text(card.value)}** | {_text(card.note)} |"
        for card in run_text.cards(run, totals, report.pruned)
    ]
    notice = run_text.notice(run, totals, report.groups, is_refused=report.is_refused)
    if notice is not None:
        lines += ["", _text(notice.text)]
        if notice.command:
            lines += ["", *_fenced(notice.command)]
    lines += _checks(report)
    lines += _groups(report)
    lines += _failures(report)
    for sentence in report.not_counted:
        lines += ["", f"Not counted: {_text(sentence)}"]
    if location:
        lines += ["", f"[Full report](<{_address(location)}>)"]
    lines += ["", f"Run {_text(run.id)}"]
    return "\n".join(lines) + "\n"


def _checks(report: RunReport) -> list[str]:
    if not report.checks:
        return []
    lines = ["", "## Checks", "", "| check | outcome | found | example |", "|:--|:--|:--|:--|"]
    lines += [
        f"| {_text(check.name)} | {run_text.CHECK_OUTCOMES[check.outcome]} | {_text(check.found)} "
        f"| {_text(next(iter(check.examples), ''))} |"
        for check in report.checks
    ]
    return lines


def _groups(report: RunReport) -> list[str]:
    mapped = report.groups
    if mapped is None:
        return []
    done = f"{count(mapped.done)} of {plural(mapped.pieces, 'piece')} of groups"
    what = f"{mapped.function} {run_text.groups_text(mapped.by)}"
    return ["", _text(f"{what}: {done} mapped, {count(mapped.failed)} failed.")]


def _failures(report: RunReport) -> list[str]:
    groups = [(group, "chunk") for group in run_figures.failure_groups(report.failures)]
    if report.groups is not None:
        of_pieces = run_figures.failure_groups(report.groups.failures)
        groups = [*((group, "piece") for group in of_pieces), *groups]
    if not groups:
        return []
    lines = ["", "## Failures", "", "| error | attempts | still failed | example |"]
    lines.append("|:--|--:|--:|:--|")
    for group, unit in groups[:MAX_GROUPS]:
        first = next(iter(group.message.strip().splitlines()), "")[:160]
        places = [f"{unit} {group.index}"]
        places += [f"at {group.line}"] if group.line else []
        places += [group.where] if group.where else []
        first = f"{first} ({', '.join(places)})"
        lines.append(
            f"| {_text(group.error)} | {count(group.attempts)} | {count(group.chunks_final)} "
            f"| {_text(first)} |"
        )
    if len(groups) > MAX_GROUPS:
        lines += ["", f"… and {count(len(groups) - MAX_GROUPS)} more kinds."]
    return lines


def _text(text: str) -> str:
    """Escape text so that Markdown shows it literally, on one line."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


def _fenced(code: str) -> list[str]:
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", printable(code), fence]


def _address(location: str) -> str:
    return printable(location).replace("<", "%3C").replace(">", "%3E").replace("\n", "%0A")
