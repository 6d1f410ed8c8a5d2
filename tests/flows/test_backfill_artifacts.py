"""What Prefect shows of a backfill, and how artifacts are sent."""

from __future__ import annotations

from threading import Event, Thread, current_thread, main_thread
from typing import Any, get_args

import polars as pl
import pytest

from pipeline.flows import artifacts
from pipeline.flows.artifacts import (
    _ORDER,
    ArtifactSender,
    BackfillArtifacts,
    windows_rows,
    windows_summary,
)
from pipeline.runs.backfill.progress import WindowProgress
from pipeline.runs.backfill.records import WINDOWS, State

STATES = ("done", "done", "failed", "waiting", "done")


def progress_of(states: tuple[str, ...]) -> WindowProgress:
    labels = [f"2024-03-{day:02}" for day in range(1, len(states) + 1)]
    columns = {name: [None] * len(labels) for name in WINDOWS}
    given = {**columns, "label": labels, "chunks": [2] * len(labels)}
    progress = WindowProgress(pl.DataFrame(given, schema=WINDOWS))
    progress.states = list(states)
    return progress


def test_failed_windows_come_first_then_the_newest() -> None:
    rows = windows_rows(progress_of(STATES).frame())
    assert [row["window"][-2:] for row in rows] == ["03", "04", "05", "02", "01"]
    assert rows[0]["state"] == "failed"


def test_windows_of_all_states_have_a_place() -> None:
    assert sorted(_ORDER) == sorted(get_args(State))


def test_windows_are_counted() -> None:
    windows = progress_of(STATES).frame()
    assert windows_summary(windows) == "5 windows: 1 failed, 1 waiting, 3 done"
    assert windows_summary(windows.clear()) == "no windows"


def test_a_backfill_without_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise OSError("no server")

    for name in ("create_progress_artifact", "create_table_artifact"):
        monkeypatch.setattr(artifacts, name, refuse)
    shown = BackfillArtifacts("b1", "s3://out/t/")
    shown.finish()
    shown.update(progress_of(STATES))
    shown.finish()
    assert "no server" in caplog.text


def test_large_backfills_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}
    monkeypatch.setattr(artifacts, "MAX_WINDOWS", 2)
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda **_: None)

    def create(rows: list[Any], **more: Any) -> None:
        sent.update(more, rows=rows)

    monkeypatch.setattr(artifacts, "create_table_artifact", create)
    shown = BackfillArtifacts("b1", "s3://out/t/")
    shown.update(progress_of(STATES))
    shown.finish()
    assert len(sent["rows"]) == 2
    assert "The table leaves out 3 windows" in sent["description"]
    assert "chunkmap backfill status b1 --output " in sent["description"]


def test_the_last_progress_is_shown_after_a_slow_request(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, shown = Event(), list[tuple[Thread, float]]()

    def create(progress: float, **_: object) -> str:
        answers.wait(30)
        shown.append((current_thread(), progress))
        return "an id"

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda _, **more: create(**more))
    sender = ArtifactSender("key")
    for percent in (10.0, 50.0, 100.0):
        sender.show_progress(percent, "", at_once=True)
    assert shown == [], "the work does not wait for the server"
    answers.set()
    sender.wait()
    assert [percent for _, percent in shown] == [10.0, 100.0]
    assert main_thread() not in [thread for thread, _ in shown]
