"""The report as a page, as JSON and as Markdown, for every kind of run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import jsonschema  # type: ignore[import-untyped]
import pytest

from pipeline.report.render import render_html, render_json, render_markdown
from pipeline.report.run_json import MAX_CHUNKS, SCHEMA
from pipeline.report.run_model import RunReport
from tests.support.report_samples import NASTY, all_failed, empty, groups, hostile, make

REPORTS = {
    "done": make(300),
    "failed": make(300, final_rate=0.05, error_rate=0.05, state="failed"),
    "interrupted": make(200, pause=30_000, state="interrupted"),
    "running": make(50, threads=2, state="running"),
    "one": make(1, error_rate=0),
    "empty": empty(),
    "empty and failed": empty("failed"),
    "all failed": all_failed(),
    "hostile": hostile(),
    "groups": replace(make(40, error_rate=0, state="failed"), groups=groups()),
}
every_report = pytest.mark.parametrize("name", REPORTS)


class Reader(HTMLParser):
    """A page as its elements, scripts and texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self._inside != "style":
            self.text += data


@cache
def page_of(name: str) -> Reader:
    """The page of a report, drawn once: that takes longer than any look at it."""
    return Reader(render_html(REPORTS[name]))


@pytest.mark.sampled(3)
@every_report
def test_the_page_loads_nothing(name: str) -> None:
    page = page_of(name)
    for tag, attributes in page.elements:
        assert tag not in {"iframe", "object", "embed", "img", "video", "audio", "base", "form"}
        assert not attributes.keys() & {"src", "srcset", "action", "background", "poster"}
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "link":
            assert attributes["href"] == "data:,"
        assert "url(" not in (attributes.get("style") or "")
    for kind, text in page.scripts:
        if kind == "application/json":
            # The data of a chart is all there: none is to be fetched.
            assert not re.search(r'"url":|"\$schema"|"format":\{"type"', text)


@pytest.mark.sampled(3)
@every_report
def test_the_policy_allows_the_scripts_of_the_page_and_no_other(name: str) -> None:
    page = page_of(name)
    policy = next(
        attributes["content"]
        for tag, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    code = [text for kind, text in page.scripts if kind is None]
    digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code}
    assert digests == allowed


@pytest.mark.sampled(3)
@every_report
def test_every_chart_has_a_title_and_words(name: str) -> None:
    page = page_of(name)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        if "data-chart" in attributes:
            assert attributes["aria-labelledby"] in ids
        if attributes.get("class") == "plot":
            assert len(attributes["aria-label"] or "") > 20
        assert tag != "svg"


def test_what_users_wrote_stays_text() -> None:
    page = page_of("hostile")
    assert len([kind for kind, _ in page.scripts if kind is None]) == 2
    assert "alert" not in "".join(text for kind, text in page.scripts if kind is None)
    assert page.text.count("<script>alert(1)</script>") > 10
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == []  # javascript: is no address to go to


def test_no_form_of_a_report_has_characters_that_a_terminal_obeys() -> None:
    report, page = REPORTS["hostile"], page_of("hostile")
    texts = [render_json(report), render_markdown(report), render_markdown(report, NASTY)]
    texts.append(page.text + str(page.elements))
    texts += [text for kind, text in page.scripts if kind == "application/json"]
    for text in texts:
        assert not [character for character in "\x1b\x9b\x7f\u202e\u2028" if character in text]
    # Spelled where it is shown, and whole where it is data.
    assert "\\u202e" in page.text
    assert "\\\\u202e" in texts[1]
    assert json.loads(texts[0])["run"]["job"] == NASTY


def test_a_failed_run_says_what_to_do_first() -> None:
    text = page_of("failed").text
    assert "What to do next" in text
    assert "chunkmap retry 3f9c2a7be1d04458" in text
    assert text.index("Failures") < text.index("Progress")
    assert "Nothing is published" in text


def test_a_run_published_without_its_failed_chunks_says_so() -> None:
    report = REPORTS["failed"]
    run = replace(report.run, chunks_published=280)
    page = render_html(RunReport(run, report.completions, report.failures, report.phases))
    assert "280 chunks of them are published." in page
    assert "Nothing is published" not in page


def test_the_headline_holds_the_figures() -> None:
    report, text = REPORTS["done"], page_of("done").text
    assert f"{report.completions['rows_in'].sum():,}" in text
    for label in ("Chunks done", "Rows in", "Rows out", "Time", "Rows/s", "Repeated work"):
        assert label in text


def test_a_page_of_100_000_chunks_is_small_and_quick() -> None:
    report = make(100_000, workers=32, error_rate=0.002)
    began = time.perf_counter()
    page, data = render_html(report), render_json(report)
    assert time.perf_counter() - began < 10  # about 2 s on an idle core
    assert len(page.encode()) < 3_000_000
    chunks = json.loads(data)["chunks"]
    assert not chunks["complete"]
    assert chunks["completions"] == 100_000
    assert 10_000 < len(chunks["columns"]["chunk"]) <= MAX_CHUNKS
    slowest = float(report.completions["seconds"].max())  # type: ignore[arg-type]
    assert slowest in chunks["columns"]["seconds"]


def test_the_longest_timeline_of_single_chunks_is_small() -> None:
    assert len(render_html(make(3000, threads=2)).encode()) < 3_000_000


@pytest.mark.sampled(3)
@every_report
def test_the_json_follows_its_schema(name: str) -> None:
    report = REPORTS[name]
    value = json.loads(render_json(report))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(value, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert value["chunks"]["complete"]
    assert len(value["chunks"]["columns"]["chunk"]) == report.completions.height


@every_report
def test_the_markdown_is_short(name: str) -> None:
    report = REPORTS[name]
    text = render_markdown(report, "s3://lake/out.chunkmap/runs/r1/report.html")
    assert len(text.splitlines()) < 50
    assert "[Full report](<s3://lake/out.chunkmap/runs/r1/report.html>)" in text
    assert "Full report" not in render_markdown(report)


def test_markdown_of_a_hostile_run_keeps_its_tables_and_runs_nothing() -> None:
    text = render_markdown(hostile())
    outside = re.sub(r"(?s)^```+.*?^```+$", "", text, flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)<script", outside)
    for line in outside.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5)


def test_the_command_to_verify_is_quoted_for_a_shell() -> None:
    report = REPORTS["done"]
    run = replace(report.run, output="s3://lake/my output/")
    text = render_markdown(RunReport(run, report.completions))
    assert "chunkmap verify 's3://lake/my output/'" in text


def test_importing_the_report_loads_no_plotting() -> None:
    code = (
        "import sys, pipeline.report.render\n"
        "slow = {'altair', 'great_tables', 'vl_convert', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_json_and_markdown_draw_nothing() -> None:
    code = (
        "import sys\n"
        "from pipeline.report.render import render_json, render_markdown\n"
        "from tests.support.report_samples import make\n"
        "render_json(make(5)); render_markdown(make(5))\n"
        "slow = {'altair', 'great_tables', 'vl_convert'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_nasty_text_is_nasty() -> None:
    assert all(mark in NASTY for mark in ("</script>", "<!--", '"', "'", "&", "|", "`", "\u2028"))
