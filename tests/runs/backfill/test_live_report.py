"""The live report: read from storage at each look, for this machine only, followed by its page."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.runs.backfill.live_report import LiveReport, ReportServer
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.report import render
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import BackfillIncompleteError
from tests.report.test_chromium import BROWSER, browse
from tests.runs.backfill.test_report import days as labels
from tests.runs.backfill.test_report import make
from tests.support.backfills import Days, days


@contextmanager
def served(report: LiveReport) -> Iterator[ReportServer]:
    with ReportServer(report) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: ReportServer, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Days, BackfillStore]]:
    """A backfill of four days, of which one has failed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    world = Days(tmp_path)
    world.write(days("2024-03-01", 4))
    fixed = tmp_path / "fixed"
    job = world.job("fails", params={"days": ["2024-03-02"], "fixed": str(fixed)})
    created = world.create(job, windows_per_run=2)
    with pytest.raises(BackfillIncompleteError):
        world.drive(created)
    yield world, created


def test_the_page_follows_the_backfill(store: tuple[Days, BackfillStore]) -> None:
    world, backfill = store
    live = LiveReport(backfill, world.settings)
    with served(live) as server:
        status, page = get(server, "/")
        assert status == 200
        assert "3 of 4 windows" in page and "1 failed" in page
        assert "TransformError: " in page and "connect-src &#39;self&#39;" in page
        _, state = get(server, "/state")
        assert get(server, "/state") == (200, state)
        (world.root / "fixed").touch()
        world.drive(backfill, BackfillResumeOptions())
        live._read_at = 0.0  # As if it had been read some seconds ago.
        _, later = get(server, "/state")
        assert later != state
        _, page = get(server, "/")
    assert "4 of 4 windows" in page
    # What failed before is not forgotten.
    assert "No window is failed now. In 1 earlier attempt some were: " in page
    assert re.search(r"cannot do 2024-03-02", page)


def test_cells_and_windows_lead_to_runs(store: tuple[Days, BackfillStore]) -> None:
    world, backfill = store
    runs = backfill.windows()["run"].unique().to_list()
    with served(LiveReport(backfill, world.settings)) as server:
        _, page = get(server, "/")
        for label in backfill.windows()["label"]:
            assert f'id="window-{label}"' in page and f"#window-{label}" in page
        for run in runs:
            assert f'href="/runs/{run}"' in page
            status, run_page = get(server, f"/runs/{run}")
            assert status == 200 and run in run_page and "of 4 planned" in run_page
        assert get(server, "/runs/0123456789abcdef")[0] == 404
        assert get(server, "/report.json")[0] == 404


def test_only_this_machine_is_served(store: tuple[Days, BackfillStore]) -> None:
    world, backfill = store
    with served(LiveReport(backfill, world.settings)) as server:
        assert server.server_address[0] == "127.0.0.1"
        for host in ("evil.example", f"evil.example:{server.server_port}"):
            status, body = get(server, "/", host)
            assert (status, "3 of 4" in body) == (421, False)
        assert get(server, "/state", f"localhost:{server.server_port}")[0] == 200
        with pytest.raises(UsageError, match=f"port {server.server_port} of 127.0.0.1"):
            ReportServer(LiveReport(backfill, world.settings), server.server_port)


@dataclass(slots=True)
class Scripted(LiveReport):
    """A live report whose third look finds that all is done."""

    looks: list[str] = field(default_factory=list)

    def state(self) -> str:
        self.looks.append("state")
        return "after" if self._is_over else "before"

    @property
    def _is_over(self) -> bool:
        return len(self.looks) > 2

    def page(self) -> str:
        states = ("done",) if self._is_over else ("mapping",)
        report = make(labels("2024-01-01", "2024-03-01"), "day", states, state="running")
        return render(replace(report, job="after" if self._is_over else "before", run_pages="/r/"))


@pytest.mark.chromium
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_what_has_changed(
    store: tuple[Days, BackfillStore], tmp_path: Path
) -> None:
    world, backfill = store
    with served(Scripted(backfill, world.settings)) as server:
        dom, console = browse(server.url, tmp_path / "profile")
    assert console == []
    assert 'data-live="after"' in dom
    assert re.search(r"<h1>after ", dom)
    charts = dom.count("data-chart=")
    assert charts and f'data-charts="{charts} drawn, 0 failed"' in dom
    assert len(re.findall(r'<svg [^>]*class="marks"', dom)) == charts
