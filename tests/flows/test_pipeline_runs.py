"""What a run of the flow `pipeline` is named, and which dates it has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.flows import pipeline as flow_module

TEXT = """\
name: daily
state: s3://shop/state/
parameters: {date: {type: date, default: yesterday}, country: string}
pipeline: [{call: "examples.orders:tell"}]
"""


def name_of_run(
    monkeypatch: pytest.MonkeyPatch, file: str, scheduled: datetime | None, **parameters: Any
) -> str:
    given = {"file": file, "parameters": parameters or None}
    run = SimpleNamespace(parameters=given, scheduled_start_time=scheduled)
    monkeypatch.setattr(flow_module, "flow_run", run)
    return flow_module._run_name()


@pytest.mark.parametrize(
    ("scheduled", "day"),
    [
        (datetime(2024, 3, 6, 5, tzinfo=UTC), "2024-03-05"),
        # Dates count in UTC.
        (datetime(2024, 3, 6, 0, 30, tzinfo=timezone(timedelta(hours=1))), "2024-03-04"),
    ],
)
def test_yesterday_counts_from_the_scheduled_time(
    monkeypatch: pytest.MonkeyPatch, scheduled: datetime, day: str
) -> None:
    assert name_of_run(monkeypatch, TEXT, scheduled, country="DE") == (
        f"daily date {day}, country DE"
    )


def test_a_run_has_a_file_or_its_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "daily.yaml").write_text(TEXT)
    given = {"country": "DE", "date": "2024-03-01"}
    for file in (TEXT, str(tmp_path / "daily.yaml")):
        name = name_of_run(monkeypatch, file, None, **given)
        assert name == "daily date 2024-03-01, country DE"


def test_a_run_that_will_fail_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of_run(monkeypatch, TEXT, None) == "pipeline"
    assert name_of_run(monkeypatch, "nowhere.yaml", None) == "pipeline"
