"""The progress of an ingest in Prefect, from inside the event loop in which pages are fetched."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from prefect._internal.compatibility.async_dispatch import async_dispatch

from pipeline.flows import ingest
from pipeline.ingest.run import IngestProgress


def test_progress_gets_to_prefect_from_inside_an_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates: list[float] = []

    async def in_vain(artifact: Any, progress: float, description: str) -> None:
        """What Prefect calls if it takes the caller for a coroutine that awaits it."""

    @async_dispatch(in_vain)
    def update(artifact: Any, progress: float, description: str) -> None:
        updates.append(progress)

    monkeypatch.setattr(ingest, "update_progress_artifact", update)
    artifact = ingest._Artifact("rates", uuid4())

    async def fetch() -> None:
        artifact.update(IngestProgress("fetch"))

    asyncio.run(fetch())
    assert updates == [0.0]
