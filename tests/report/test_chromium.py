"""The page in a real browser: every chart is drawn, and the console stays empty."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.render import render_html
from pipeline.report.run_model import RunReport
from tests.support.report_samples import all_failed, empty, hostile, make

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine"),
]
REPORTS = {
    "done": make(300, threads=2),
    "failed and paused": make(300, final_rate=0.05, pause=30_000, state="failed"),
    "many": make(8_000, workers=250),
    "one": make(1, error_rate=0),
    "empty": empty(),
    "all failed": all_failed(),
    "hostile": hostile(),
}


LONG = {"all failed", "done", "empty", "many", "one"}
"""Reports that a browser draws in `make test-long` only."""


def browsed(reports: Mapping[str, object]) -> Any:
    """Parametrizes a test with reports."""
    params = [
        pytest.param(report, id=name, marks=pytest.mark.long if name in LONG else ())
        for name, report in reports.items()
    ]
    return pytest.mark.parametrize("report", params)


def browse(page: Path | str, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM once its scripts have run, and what they said on the console."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--v=0",
            "--virtual-time-budget=30000",
            f"--user-data-dir={profile}",
            "--window-size=1300,2400",
            "--dump-dom",
            page if isinstance(page, str) else page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@browsed(REPORTS)
def test_charts_are_drawn_in_silence(report: RunReport, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html(report), encoding="utf-8")
    charts = page.read_text(encoding="utf-8").count("data-chart>")
    dom, console = browse(page, tmp_path / "profile")
    assert console == []
    assert f'data-charts="{charts} drawn, 0 failed"' in dom
    assert len(re.findall(r'<svg [^>]*class="marks"', dom)) == charts


def test_the_browser_would_report_a_script_that_is_not_the_pages_own(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    html = render_html(make(5))
    page.write_text(html.replace("</body>", "<script>alert(1)</script></body>"), encoding="utf-8")
    _, console = browse(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
