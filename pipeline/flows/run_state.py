"""What users wish of a flow run in Prefect's pages: Prefect itself does nothing to one that runs.

A run that is set to Cancelling or Paused from outside runs on to its end (seen with 3.8.8), unless
its driver looks and obeys. It looks at its own flow run and at the one that everything is part of,
however it was started.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.states import Paused, Running

RequestedState = Literal["run", "pause", "cancel"]

PAUSE_SECONDS = 365 * 86400
"""How long a pause lasts at most: Prefect wants to know."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunStateWatcher:
    """Looks at the state of the flow run that this runs in, and of the topmost one above it."""

    _client: SyncPrefectClient | None = None
    _runs: tuple[UUID, ...] = ()

    def wish(self) -> RequestedState | None:
        """What the runs' states ask for; None where the server does not say."""
        try:
            states = [self._api().read_flow_run(run).state for run in self._watched()]
        except (PrefectException, httpx.HTTPError, OSError, RuntimeError) as error:
            log.warning("Prefect does not say what is wished there: %s", error)
            return None
        known = [state for state in states if state is not None]
        if any(state.is_cancelling() or state.is_cancelled() for state in known):
            return "cancel"
        return "pause" if any(state.is_paused() for state in known) else "run"

    def show(self, *, paused: bool) -> None:
        """Give the runs the state that a command asked for."""
        state: State[Any] = Paused(timeout_seconds=PAUSE_SECONDS) if paused else Running()
        try:
            for run in self._watched():
                self._api().set_flow_run_state(run, state, force=True)
        except (PrefectException, httpx.HTTPError, OSError, RuntimeError) as error:
            log.warning("Prefect does not show that it is paused: %s", error)

    def _api(self) -> SyncPrefectClient:
        if self._client is None:
            self._client = get_client(sync_client=True)
        return self._client

    def _watched(self) -> tuple[UUID, ...]:
        if not self._runs:
            context = FlowRunContext.get()
            assert context is not None and context.flow_run is not None, "it is a flow that drives"
            own = context.flow_run.id
            top = self._topmost(own)
            self._runs = (own,) if own == top else (own, top)
        return self._runs

    def _topmost(self, run: UUID) -> UUID:
        """The flow run of which this one is a part, at whatever depth."""
        parent = self._api().read_flow_run(run).parent_task_run_id
        if parent is None:
            return run
        above = self._api().read_task_run(parent).flow_run_id
        return run if above is None else self._topmost(above)
