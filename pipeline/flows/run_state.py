"""Read the state that users request for a flow run in the Prefect UI.

Prefect itself does not stop a run that is set to Cancelling or Paused from outside (seen with
3.8.8): its driver must read the state and apply it. It reads the state of its own flow run and that
of the topmost one above it.
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

from pipeline.flows.server import own_client_options

RequestedState = Literal["run", "pause", "cancel"]

PAUSE_SECONDS = 365 * 86400
"""Maximum seconds of a pause, which Prefect requires."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunStateWatcher:
    """Reads the states of the current flow run and of the topmost one above it."""

    _client: SyncPrefectClient | None = None
    _runs: tuple[UUID, ...] = ()

    def requested(self) -> RequestedState | None:
        """Read the requested state; None if the server does not answer."""
        try:
            states = [self._api().read_flow_run(run).state for run in self._watched()]
        except (PrefectException, httpx.HTTPError, OSError, RuntimeError) as error:
            log.warning("cannot read the state of the flow run from Prefect: %s", error)
            return None
        present = [state for state in states if state is not None]
        if any(state.is_cancelling() or state.is_cancelled() for state in present):
            return "cancel"
        return "pause" if any(state.is_paused() for state in present) else "run"

    def show(self, *, paused: bool) -> None:
        """Set the runs' state in Prefect to the one that a command requested."""
        state: State[Any] = Paused(timeout_seconds=PAUSE_SECONDS) if paused else Running()
        try:
            for run in self._watched():
                self._api().set_flow_run_state(run, state, force=True)
        except (PrefectException, httpx.HTTPError, OSError, RuntimeError) as error:
            log.warning("cannot set the state of the flow run in Prefect: %s", error)

    def _api(self) -> SyncPrefectClient:
        if self._client is None:
            self._client = get_client(httpx_settings=own_client_options(), sync_client=True)
        return self._client

    def _watched(self) -> tuple[UUID, ...]:
        if not self._runs:
            context = FlowRunContext.get()
            assert context is not None and context.flow_run is not None, "a driver is a flow"
            own = context.flow_run.id
            top = self._topmost(own)
            self._runs = (own,) if own == top else (own, top)
        return self._runs

    def _topmost(self, run: UUID) -> UUID:
        """Find the topmost flow run above this one."""
        parent = self._api().read_flow_run(run).parent_task_run_id
        if parent is None:
            return run
        above = self._api().read_task_run(parent).flow_run_id
        return run if above is None else self._topmost(above)
