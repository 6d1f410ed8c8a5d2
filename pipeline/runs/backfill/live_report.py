"""Serve the report of a backfill on this machine, read from storage while the backfill runs."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import orjson
import polars as pl
from typing_extensions import override

from pipeline.config.settings import Settings
from pipeline.errors import ChunkmapError, ObjectMissingError, UsageError
from pipeline.report.render import render_html
from pipeline.report.run_model import RunState
from pipeline.runs.backfill.report import codes_of, render, report_of
from pipeline.runs.backfill.status import BackfillStatus, read_status
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.driver.report import collect
from pipeline.runs.driver.report import report_of as run_report_of
from pipeline.runs.ledger.ledger import Ledger

HOST = "127.0.0.1"
"""The only address that is served: reports hold error messages, hence possibly data."""
REFRESH_SECONDS = 2.0
"""Seconds for which a status that was read is used."""
RUN_PAGES = "/runs/"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LiveReport:
    """Pages about a backfill as storage has it now. Thread-safe."""

    store: BackfillStore
    settings: Settings
    _status: BackfillStatus | None = None
    _read_at: float = 0.0
    _page: tuple[str, str] = ("", "")
    """Digest of a status, and its page."""
    _lock: Lock = field(default_factory=Lock)

    def state(self) -> str:
        """Return a digest of the status; it changes whenever the page does."""
        with self._lock:
            return self._digest(self._current())

    def page(self) -> str:
        """Render the page of the backfill."""
        with self._lock:
            status = self._current()
            digest = self._digest(status)
            if self._page[0] != digest:
                codes = codes_of(self.store, status)
                report = report_of(status, self.store.job(), codes, self.settings, RUN_PAGES)
                self._page = digest, render(report)
            return self._page[1]

    def run_page(self, run: str) -> str:
        """Render the page of one of its runs.

        Raises:
            UsageError: the backfill has no such run, or it has not begun.
        """
        with self._lock:
            status = self._current()
        states = set(status.windows.filter(pl.col("run") == run)["state"].to_list())
        if not states:
            raise UsageError(f"backfill {self.store.backfill} has no run {run}")
        ledger = Ledger(self.store.storage, self.store.output, run)
        try:
            parts = collect(ledger)
        except (ObjectMissingError, UsageError) as error:
            raise UsageError(f"run {run} has not begun yet") from error
        state = _state_of(states, is_alive=status.alive)
        report = run_report_of(parts, None, state, self.settings, status.next_command)
        return render_html(report)

    def _current(self) -> BackfillStatus:
        now = time.monotonic()
        if self._status is None or now - self._read_at > REFRESH_SECONDS:
            self._status, self._read_at = read_status(self.store), now
        return self._status

    def _digest(self, status: BackfillStatus) -> str:
        seen: list[Any] = [status.state, status.counts, status.control.model_dump()]
        seen += [status.driver.seen if status.driver else 0.0, status.windows.to_dicts()]
        return hashlib.sha256(orjson.dumps(seen, default=str)).hexdigest()[:16]


def _state_of(states: set[str], *, is_alive: bool) -> RunState:
    """Return the state of a run whose windows are in these states."""
    if states <= {"done", "skipped"}:
        return "done"
    if is_alive and states & {"mapping", "staged", "waiting"}:
        return "running"
    return "failed" if "failed" in states else "interrupted"


class ReportServer(ThreadingHTTPServer):
    """Serves a live report on the loopback address."""

    daemon_threads = True

    def __init__(self, report: LiveReport, port: int = 0) -> None:
        """Listen; port 0 is any free one.

        Raises:
            UsageError: the port is in use.
        """
        self.report = report
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"port {port} of {HOST} cannot be used: {error.strerror}",
                hint="name another with --port, or none for any that is free",
            ) from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """Names by which browsers may ask for it; others are those of a rebound domain."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        """Answer with a page, or with the digest of the state."""
        if self.headers.get("Host") not in self.server.hosts:
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "this server is for this machine only")
            return
        report, path = self.server.report, self.path.partition("?")[0]
        if path == "/":
            self._try(report.page, "text/html")
        elif path == "/state":
            self._try(report.state, "text/plain")
        elif path.startswith(RUN_PAGES):
            self._try(lambda: report.run_page(path.removeprefix(RUN_PAGES)), "text/html")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there is no such page")

    def _try(self, make: Callable[[], str], kind: str) -> None:
        try:
            body = make()
        except UsageError as error:
            self._answer(HTTPStatus.NOT_FOUND, str(error))
        except ChunkmapError as error:
            log.warning("the report cannot be made: %s", error)
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n{error.hint or ''}")
        else:
            self._answer(HTTPStatus.OK, body, kind)

    def _answer(self, status: HTTPStatus, body: str, kind: str = "text/plain") -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
