"""Stop workers without losing chunks or mapping them twice.

Dask itself retires a worker by moving its results and then forgetting it, while its tasks still
run. Here they end first, which takes a short time: after each chunk, a batch checks whether its
worker is leaving, stores its completions and hands back the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from distributed import Nanny, Worker
from distributed.comm.core import CommClosedError
from distributed.core import RPCClosed, Status
from typing_extensions import override

log = logging.getLogger("distributed.worker")

POLL_SECONDS = 0.05
STOP_SECONDS = 25.0
"""Default seconds that a worker may take to finish its current chunks."""
PEER_GONE_ERRORS = (CommClosedError, RPCClosed, OSError, KeyError)
"""Errors of calls to a scheduler or worker that has ended, or no longer knows this worker."""


class GracefulWorker(Worker):
    """A Dask worker that can hand its batches back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handlers["hand_back"] = self.hand_back

    async def hand_back(self) -> None:
        """Take no more tasks; return once running ones have ended and the scheduler knows it."""
        if self.status in (Status.running, Status.paused):
            self.status = Status.closing_gracefully  # The scheduler and batches can see it.
        running = {task.key for task in self.state.executing}
        with suppress(*PEER_GONE_ERRORS):
            # Ask the scheduler, which may not have processed the end of a task yet.
            while running & set(await self._processing()):
                await asyncio.sleep(POLL_SECONDS)
            await self.scheduler.retire_workers(
                workers=[self.address],
                close_workers=False,
                remove=True,
                stimulus_id="chunkmap-hand-back",
            )

    async def _processing(self) -> list[Any]:
        tasks = await self.scheduler.processing(workers=[self.address])
        return list(tasks[self.address])

    async def close_gracefully(
        self, restart: bool | None = None, reason: str = "worker-close-gracefully"
    ) -> None:
        """Hand back and close; called by Dask at the end of the lifetime, and by plug-ins."""
        if self.status in (Status.closing, Status.closed):
            return
        log.info("Handing back before leaving: %s", reason)
        await self.hand_back()
        restart = self.lifetime_restart if restart is None else restart
        await self.close(nanny=not restart, reason=reason)


class GracefulNanny(Nanny):
    """A nanny whose worker hands its batches back before it is stopped.

    Args:
        stop_seconds: The maximum seconds for this; then the worker is ended anyway, and the
            scheduler gives its batches to others.
    """

    def __init__(self, *args: Any, stop_seconds: float = STOP_SECONDS, **kwargs: Any) -> None:
        super().__init__(*args, **{"worker_class": GracefulWorker, **kwargs})
        self.stop_seconds = stop_seconds
        self._leaving = False

    @override
    async def close(self, timeout: float | None = 5, reason: str = "nanny-close") -> Any:
        left = 5.0 if timeout is None else timeout
        if self.status == Status.running and not self._leaving:
            self._leaving = True
            deadline = time.monotonic() + self.stop_seconds
            self.close_gracefully(reason)  # So that the nanny does not restart the worker.
            await self._hand_back()
            # The process may use the rest of the time to end.
            left = max(left, deadline - time.monotonic())
        return await super().close(timeout=left, reason=reason)

    async def _hand_back(self) -> None:
        if self.worker_address is None or self.process is None:
            return
        with suppress(*PEER_GONE_ERRORS, asyncio.TimeoutError):
            async with self.rpc(self.worker_address) as worker:
                await asyncio.wait_for(worker.hand_back(), self.stop_seconds)
