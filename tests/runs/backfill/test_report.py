"""A backfill's page: complete, safe with hostile names, drawn by a real browser in silence."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from partitioning.windows import Windowing
from pipeline.report.backfill_model import BackfillFailure, BackfillReport, Calendar
from pipeline.report.backfill_page import active_seconds, rows_filtered
from pipeline.report.run_model import Attempt, CodeVersion
from pipeline.runs.backfill.calendar_layout import STATES, lay_out
from pipeline.runs.backfill.report import render
from tests.report.test_chromium import BROWSER, browse, browsed
from tests.support.report_samples import FINGERPRINT, NASTY, START

ERROR = f"Oops: {NASTY}"


def make(labels: list[str], grain: str, states: tuple[str, ...], **more: Any) -> BackfillReport:
    """A backfill made up from a seed: each window in one of some states."""
    dice = random.Random(7)
    chosen = [dice.choice(states) for _ in labels]
    done = [2 if state in ("done", "staged") else int(state == "mapping") for state in chosen]
    begin = [START + rank if count else None for rank, count in enumerate(done)]
    windows = pl.DataFrame(
        {
            "label": labels,
            "state": chosen,
            "skipped": ["done by run 0123456789abcdef" if s == "skipped" else None for s in chosen],
            "run": ["fedcba9876543210"] * len(labels),
            "chunks": [2] * len(labels),
            "rows": [240] * len(labels),
            "done": done,
            "failed": [int(state == "failed") for state in chosen],
            "rows_in": [100 * count for count in done],
            "rows_out": [90 * count for count in done],
            "bytes_in": [1000 * count for count in done],
            "bytes_out": [800 * count for count in done],
            "busy": [0.1 * count for count in done],
            "code": [FINGERPRINT if count else "" for count in done],
            "error": [ERROR if state == "failed" else "" for state in chosen],
            "started": begin,
            "ended": [None if t is None else t + dice.random() for t in begin],
        },
        schema_overrides={"skipped": pl.String, "started": pl.Float64, "ended": pl.Float64},
    )
    counts = {state: chosen.count(state) for state in STATES}
    counts |= {"chunks": 2 * len(labels), "chunks_done": sum(done), "chunks_failed": 0}
    for name in ("rows_in", "rows_out", "bytes_in", "bytes_out"):
        counts[name] = int(windows[name].sum())
    layout = lay_out(windows, grain, 100)
    given: dict[str, Any] = {
        "id": "0123456789ab",
        "job": "clicks",
        "state": "failed" if counts["failed"] else "done",
        "asked": "2024-01-01 to 2025-01-01",
        "facts": (("Output", "s3://marts/clicks/"),),
        "todo": len(labels) - counts["skipped"] - counts["empty"],
        "failures": (),
        "at": START + 100,
        "created": START,
    }
    calendar = Calendar(layout.unit, layout.rows, layout.columns, layout.cells)
    return BackfillReport(counts=counts, windows=windows, calendar=calendar, **(given | more))


def days(start: str, end: str, grain: str = "day", zone: str = "UTC") -> list[str]:
    rule = Windowing("ds", grain, zone)  # type: ignore[arg-type]
    return [window.label for window in rule.between(start, end)]


FAILURE = BackfillFailure(
    "Oops",
    3,
    2,
    "2024-01-02",
    0,
    "tcp://w:1",
    "no\nmore",
    "Traceback: no",
    "s3://in/a",
    "a.py:1 in f",
)
REPORTS = {
    "all states": make(days("2024-01-01", "2025-01-01"), "day", STATES, failures=(FAILURE,)),
    "done": make(days("2024-01", "2024-03"), "day", ("done",)),
    "new": make(days("2024-01", "2024-03"), "day", ("waiting",), state="new"),
    "hours": make(days("2024-10-20", "2024-11-01", "hour", "Europe/Berlin"), "hour", STATES),
    "ten thousand": make(days("1990-01-01", "2020-01-01"), "day", ("done", "waiting")),
    "values": make([f"customer-{number}" for number in range(130)], "value", STATES),
    "hostile": make(
        [Windowing("ds", "value").window_of(f"{NASTY}{n}").label for n in range(30)],
        "value",
        ("failed", "done"),
        job=NASTY,
        facts=((NASTY, NASTY),),
        failures=(BackfillFailure(NASTY, 1, 1, NASTY, 0, *[NASTY] * 5),),
        prefect_url="javascript:alert(1)",
        attempts=(Attempt(START, START + 9, NASTY, NASTY, NASTY, NASTY, errors=(NASTY,)),) * 2,
        versions=(CodeVersion(NASTY, NASTY, 3, (NASTY,)),),
    ),
}


def test_the_page_says_what_matters() -> None:
    html = render(REPORTS["all states"])
    counts = REPORTS["all states"].counts
    assert f"{counts['failed']} failed" in html
    assert "3</td>" in html and "Traceback: no" in html
    assert "done by an earlier run" in html
    assert html.count("data-chart>") == 3


def test_a_page_without_anything_done_has_the_calendar_alone() -> None:
    html = render(REPORTS["new"])
    assert html.count("data-chart>") == 1 and "No window failed." in html


def test_the_time_is_that_of_all_attempts() -> None:
    first = Attempt(START, START + 60, "failed", errors=("1 window failed: Oops",))
    second = Attempt(START + 3600, START + 3600 + 30, "done")
    report = make(days("2024-01", "2024-02"), "day", ("done",), attempts=(first, second))
    assert active_seconds(report) == 90
    html = render(report)
    assert "1 min 30 s" in html and "in 2 attempts" in html
    assert "In 1 earlier attempt some were: 1 window failed: Oops" in html


def test_rows_that_the_filter_removed_are_not_missing() -> None:
    report = make(days("2024-01-01", "2024-01-11"), "day", ("done",))
    assert rows_filtered(report.windows) == 10 * (240 - 200)
    assert "400 filtered out" in render(report)


def test_hostile_names_stay_text() -> None:
    html = render(REPORTS["hostile"])
    assert "<script>alert(1)</script>" not in html
    assert 'href="javascript' not in html


@pytest.mark.sampled(3)
@pytest.mark.chromium
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
@browsed(REPORTS)
def test_charts_are_drawn_in_silence(report: BackfillReport, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(report), encoding="utf-8")
    charts = page.read_text(encoding="utf-8").count("data-chart>")
    dom, console = browse(page, tmp_path / "profile")
    assert console == []
    assert f'data-charts="{charts} drawn, 0 failed"' in dom
    assert len(re.findall(r'<svg [^>]*class="marks"', dom)) == charts
