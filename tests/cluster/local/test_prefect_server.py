"""The embedded Prefect server does what runs need of it, with little processor time."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings.models.server.services import ServerServicesSettings

from pipeline.cluster.local import services

NEEDED = (
    *("scheduler", "late_runs", "triggers", "event_persister", "task_run_recorder"),
    *("repossessor", "cancellation_cleanup", "foreman", "pause_expirations"),
)


def test_the_server_writes_task_runs_together_and_keeps_its_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ServerServicesSettings()
    for name, value in services.prefect(tmp_path, (1,)).environment.items():
        monkeypatch.setenv(name, value)
    ours = ServerServicesSettings()
    # Prefect ignores a variable that it does not know, e.g. one that a release has renamed.
    assert ours.task_run_recorder.batch_size > usual.task_run_recorder.batch_size
    assert ours.event_persister.batch_size > usual.event_persister.batch_size
    for loop in ("pause_expirations", "cleanup_reconciler"):
        assert getattr(ours, loop).loop_seconds > getattr(usual, loop).loop_seconds
    # Seconds after which a state is visible; the recorder rounds down, and would never wait at 0.
    assert ours.task_run_recorder.flush_interval == ours.event_persister.flush_interval == 1
    assert all(getattr(ours, name).enabled for name in NEEDED)
