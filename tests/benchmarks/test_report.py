"""The report renders whatever was measured, keeps its promises of form, and draws in a browser."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.report.markdown import build_markdown, commands
from benchmarks.report.page import build_page
from benchmarks.report.text import best_and_worst
from benchmarks.report.write import update_docs, write_report
from benchmarks.suite.compare import comparisons
from benchmarks.suite.record import Iteration, Record
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.report.page import render_page
from tests.report.test_chromium import BROWSER, browse
from tests.support.benchmark_records import around, bad, full_record, record, result

RECORDS = {
    "full": full_record(),
    "no noise": full_record().model_copy(update={"noise": None, "complete": False}),
    "one sample": record(result("row-map", "chunkmap", [1.0]), result("row-map", "polars", [1.0])),
    "no peer": record(result("resume", "chunkmap", around(1.0))),
    "all failed": record(
        bad("row-map", "chunkmap", "failed", ""), bad("row-map", "daft", "wrong", "x")
    ),
    "nothing": record(),
}


class Texts(HTMLParser):
    """The words of a page, without its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)


def words_of(html: str) -> str:
    parser = Texts()
    parser.feed(html)
    return " ".join(" ".join(parser.words).split())


@pytest.mark.parametrize("made", RECORDS.values(), ids=RECORDS.keys())
def test_every_record_renders(made: Record) -> None:
    html = render_page(build_page(made))
    assert made.id in words_of(html)
    assert made.command in build_markdown(made)
    assert ("not complete" in build_markdown(made)) is not made.complete


def test_the_page_says_who_failed_and_why() -> None:
    said = words_of(render_page(build_page(full_record())))
    assert "wrong result: 2 rows, expected 3" in said
    assert "PySpark needs `java`, which is not installed" in said
    assert "</script><script>alert(1)</script>" in said, "shown as text, not run"


def test_the_headline_counts_ratios_and_threads_agree_with_their_number() -> None:
    text = build_markdown(full_record().model_copy(update={"scale": "m"}))
    assert re.search(r"It met \d+ of \d+ ratios that are aims at this scale\.", text)
    alone = record(result("wait", "chunkmap", around(1.0), workers=1, tasks=24))
    assert "wait (1 thread, " in build_markdown(alone)
    assert "1 threads" not in words_of(render_page(build_page(alone)))


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    html = render_page(build_page(full_record()))
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)


def test_ratios_come_before_times() -> None:
    titles = [section.title for section in build_page(full_record()).sections]
    assert titles[:3] == ["Ratios", "Time", "Peak memory"]
    assert "Curves" in titles and titles[-1] == "Method"


def test_the_phases_of_our_runs_are_shown_in_their_order() -> None:
    def ran(plan: float) -> Iteration:
        phases = {"plan": plan, "start": 0.1, "publish": 0.3, "report": 9.0}
        return Iteration(work_seconds=10.0, figures={"phases": phases})

    made = result("fixed", "chunkmap", [1.0])
    process = made.processes[0].model_copy(update={"iterations": (ran(8), ran(0.1), ran(0.2))})
    made = made.model_copy(update={"processes": (process,)})
    text = build_markdown(record(made))
    assert "| workload | start | plan | publish | report | until published |" in text
    assert "| fixed | 100 ms | 150 ms | 300 ms | 9.00 s | 550 ms |" in text
    assert "Phases" in [section.title for section in build_page(record(made)).sections]


def test_history_needs_two_sessions() -> None:
    alone = build_page(full_record())
    after = build_page(full_record(2, 1.1), [full_record(1)])
    assert "History" not in [section.title for section in alone.sections]
    assert "History" in [section.title for section in after.sections]


def test_markdown_has_every_row_and_failure() -> None:
    text = build_markdown(full_record(), "s3://demo/report.html")
    assert "| row-map | Polars | 1.00 |" in text or "| row-map | Polars | 0.9" in text
    assert "Daft" in text or "daft on row-map (wrong)" in text
    assert "[The whole report](s3://demo/report.html)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.count("|") == rows[0].count("|") for row in rows[:2])


def test_each_row_has_its_command() -> None:
    said = commands(full_record())
    assert "chunkmap bench run row-map --scale s --against polars --repeat 5 --iterations 2" in said


def test_a_report_is_kept_here_and_there(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    written = write_report(full_record(), settings, (tmp_path / "root").as_uri())
    there = tmp_path / "root" / "reports" / full_record().id
    assert sorted(path.name for path in there.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    assert Record.model_validate_json((there / "report.json").read_bytes()) == full_record()
    assert written.html.read_bytes() == (there / "report.html").read_bytes()


def test_figures_go_into_the_documentation(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    update_docs(page, "figures", build_markdown(full_record()))
    text = page.read_text()
    assert text.startswith("before\n<!-- figures -->\n## Benchmarks")
    assert text.endswith("<!-- end of figures -->\nafter\n")
    assert "old\n" not in text
    page.write_text("no marks")
    with pytest.raises(UsageError, match="no place for figures"):
        update_docs(page, "figures", build_markdown(full_record()))


@pytest.mark.chromium
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_charts_are_drawn_in_silence(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_page(build_page(full_record(2, 1.1), [full_record(1)])), "utf-8")
    charts = page.read_text("utf-8").count("data-chart>")
    dom, console = browse(page, tmp_path / "profile")
    assert console == []
    assert charts >= 6
    assert f'data-charts="{charts} drawn, 0 failed"' in dom


def test_best_and_worst_are_of_what_has_samples_enough() -> None:
    made = record(
        result("row-map", "chunkmap", around(1.0)),
        result("row-map", "polars", around(2.0)),
        result("backfill", "chunkmap", [9.0]),
        result("backfill", "polars", [1.0]),
    )
    best, worst = best_and_worst(comparisons(made))
    assert best is worst is not None
    assert worst.workload == "row-map"
    assert best_and_worst(()) == (None, None)
