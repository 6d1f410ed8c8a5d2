"""Verifying, cleaning, scanning and telling the history of windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.runs import history
from pipeline.errors import UsageError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.storage import Storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.table.log import TableLog
from pipeline.table.publish import (
    rollback,
)
from pipeline.table.scan import scan_output
from tests.support.runs_by_hand import Run
from tests.support.windowing import (
    complete,
    daily,
    days,
    publish_days,
    windowed_run,
)


def on_disk(tmp_path: Path) -> tuple[Storage, Run]:
    """A run of three days of which two are published, on local files."""
    storage = Storage({"file": LocalBackend()})
    output = f"file://{tmp_path}/out/"
    run = windowed_run(storage, daily(days(1, 2, 3)), output=output)
    complete(run)
    publish_days(run, *days(1))
    publish_days(run, *days(2))
    return storage, run


def test_verifying_accounts_for_every_planned_chunk(tmp_path: Path) -> None:
    storage, run = on_disk(tmp_path)
    found = verify_output(storage, run.ledger.output)
    assert (found.files, found.missing_chunks, found.problems) == (4, 2, ())
    run.ledger.note_published(2)
    [problem] = verify_output(storage, run.ledger.output).problems
    assert "6 planned chunks" in problem
    assert "its commits have 4" in problem
    publish_days(run)
    found = verify_output(storage, run.ledger.output)
    assert (found.files, found.missing_chunks, found.problems) == (6, 0, ())


def test_cleaning_spares_what_windows_still_wait_for(tmp_path: Path) -> None:
    storage, run = on_disk(tmp_path)
    again = run.complete(0, 5)  # Spares: of a window that is published, and of one that is not.
    found = vacuum(storage, run.ledger.output, older_than=0.0)
    assert (found.uploads, found.strays, found.spared) == (0, (), (run.ledger.run,))
    assert publish_days(run) == 3
    assert len(again) == 2
    assert not list(storage.staged_under(run.ledger.output, run.ledger.state + "staged/"))
    assert vacuum(storage, run.ledger.output, older_than=0.0).spared == ()
    assert not verify_output(storage, run.ledger.output).problems


def test_scanning_one_window(tmp_path: Path) -> None:
    _, run = on_disk(tmp_path)
    output = run.ledger.output
    assert scan_output(output).collect().height == 8
    frame = scan_output(output, window="2024-01-02").collect()
    assert frame["id"].to_list() == [4, 5, 6, 7]
    assert [str(day) for day in frame["ds"].unique()] == ["2024-01-02"]
    assert scan_output(output, 1, "2024-01-01").collect().height == 4
    with pytest.raises(UsageError, match="no window '2024-01-02'"):
        scan_output(output, 1, "2024-01-02")
    with pytest.raises(UsageError) as caught:
        scan_output(output, window="2024-01-22")
    assert "did you mean 2024-01-" in str(caught.value.hint)


def test_history_tells_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = on_disk(tmp_path)
    publish_days(run)
    rollback(TableLog(run.storage, run.ledger.output))
    history(run.ledger.output, None, as_json=True)
    said = json.loads(capsys.readouterr().out)["manifests"]
    assert [(line["number"], [c["window"] for c in line["commits"]]) for line in said] == [
        (4, days(1, 2)), (3, days(3)), (2, days(2)), (1, days(1))]  # fmt: skip
    history(run.ledger.output, None, as_json=False)
    shown = capsys.readouterr().out
    assert "windows" in shown
    assert "rollback to 2" in shown
    assert "2024-01-03" in shown
