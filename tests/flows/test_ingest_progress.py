"""The progress of an ingest in Prefect, from inside the event loop in which pages are fetched."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect._internal.compatibility.async_dispatch import async_dispatch

from pipeline.flows import artifacts
from pipeline.flows.artifacts import ArtifactSender
from pipeline.flows.ingest import _Shown
from pipeline.ingest.run import IngestProgress


def test_progress_gets_to_prefect_from_inside_an_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created: list[float] = []

    async def in_vain(progress: float, key: str, description: str) -> None:
        """What Prefect calls if it takes the caller for a coroutine that awaits it."""

    @async_dispatch(in_vain)
    def create(progress: float, key: str, description: str) -> Any:
        created.append(progress)

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "ARTIFACT_SECONDS", 0.0)
    sender = ArtifactSender("rates")

    async def fetch() -> None:
        _Shown(sender).update(IngestProgress("fetch"))

    asyncio.run(fetch())
    sender.wait()
    assert created == [0.0]
