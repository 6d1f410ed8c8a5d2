"""Task runs on Dask that take what they share with them ready-made.

With each task run, prefect-dask sends the flow, its settings and the task. It dumps them anew,
pickles them once to name the future and once more to send it: 15 ms of a driver whose other work
for a batch is three. On the worker, Prefect makes a client for each task run, twice, and each reads
all certificate authorities there are, whatever the server's address: 40 of a batch's 60 ms.

Here both are done once. What a task run sees is the same (tests/pipeline/test_prefect_context.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import local
from typing import Any
from uuid import UUID, uuid4

from prefect import Task
from prefect.context import (
    AssetContext,
    FlowRunContext,
    SettingsContext,
    SyncClientContext,
    serialize_context,
)
from prefect.settings import Settings
from prefect.task_engine import run_task_sync

from pipeline import engine
from pipeline.once import once

FLOWS = 8
"""Parcels that a worker keeps unpacked: of flow runs that share a cluster."""


class WholeSettings(SettingsContext):
    """Prefect's settings as they are now, sent to the workers in one piece.

    Every task run takes them along. Prefect takes them apart in the driver (20 ms) and validates
    them anew in the worker (25 ms); pickled whole they cost half a millisecond. Driver and workers
    have the same version of Prefect, or the run would have been refused.
    """

    @classmethod
    def now(cls) -> WholeSettings:
        """Of the flow run that this is called in."""
        current = SettingsContext.get()
        assert current is not None, "Prefect always has settings"
        return cls(profile=current.profile, settings=current.settings)

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        """What `SettingsContext(**…)` makes the same settings of."""
        if not include_secrets:
            return super().serialize(include_secrets=False)
        return {"profile": self.profile, "settings": self.settings}


class Sender:
    """Submits runs of one task, with plain parameters, from the flow run that it is made in."""

    def __init__(self, runner: Any, task: Task[..., Any]) -> None:
        """Pack what all of them take along.

        Args:
            runner: The flow's DaskTaskRunner.
            task: The task: not an async one, and without assets of its own.
        """
        self._runner, self._name = runner, task.fn.__name__
        with WholeSettings.now():
            self._parcel = engine.pickled((task, serialize_context()))

    def submit(self, **parameters: Any) -> Any:
        """Start a task run; returns a PrefectDaskFuture."""
        context = FlowRunContext.get()
        if context is not None:
            context.flow_run_suspension_request.raise_if_requested()
        task_run_id = uuid4()
        arguments = self._parcel, task_run_id, parameters
        key = f"{self._name}-{task_run_id}"
        return engine.submit(self._runner, key, task_run_id, run_packed, *arguments)


def run_packed(parcel: bytes, task_run_id: UUID, parameters: dict[str, Any]) -> Any:
    """Do, on a worker, what prefect-dask does there; returns the task run's final state."""
    task, context = _unpacked(parcel)
    assets = AssetContext.from_task_and_inputs(task, task_run_id, {}, copy_to_child_ctx=True)
    with _one_client(context["settings_context"]):
        return run_task_sync(
            task,
            task_run_id=task_run_id,
            parameters=parameters,
            wait_for=None,
            return_type="state",
            dependencies={name: set() for name in parameters},
            context={**context, "asset_context": assets.serialize()},
        )


@once(FLOWS)
def _unpacked(parcel: bytes) -> tuple[Task[..., Any], dict[str, Any]]:
    task, context = pickle.loads(parcel)
    return task, context


class _Thread(local):
    """What a worker thread keeps from one task run to the next."""

    settings: Settings | None = None
    client: SyncClientContext | None = None


_thread = _Thread()


@contextmanager
def _one_client(sent: dict[str, Any]) -> Iterator[None]:
    """Let Prefect find this thread's client of its API, made anew only for another server."""
    settings: Settings = sent["settings"]
    known, client = _thread.settings, _thread.client
    if (
        client is None
        or known is None
        or (known.api, known.client) != (settings.api, settings.client)
    ):
        if client is not None:
            client.client.__exit__(None, None, None)
        _thread.client = None
        # In a context of its own: Dask gives each task one, and this outlives them.
        client = copy_context().run(_opened, sent)
        _thread.settings, _thread.client = settings, client
    token = SyncClientContext.__var__.set(client)
    try:
        yield
    finally:
        SyncClientContext.__var__.reset(token)


def _opened(sent: dict[str, Any]) -> SyncClientContext:
    with SettingsContext(**sent):
        return SyncClientContext().__enter__()
