"""Workers that leave in good order: whatever tells them to stop, no chunk is lost or done twice.

Dask's own way to retire a worker moves the results that it holds and then forgets it, with its
tasks in full flight. Ours lets them come to an end first, which they do soon: a batch looks after
each chunk whether its worker is leaving, stores what is done and hands the rest back.
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

log = logging.getLogger("distributed.worker")

POLL_SECONDS = 0.05
STOP_SECONDS = 25.0
"""How long a worker may take to end the chunks at hand, unless it is told otherwise."""
GONE = (CommClosedError, RPCClosed, OSError, KeyError)
"""What talking to a scheduler or worker raises that is gone, or does not know us any more."""


class GracefulWorker(Worker):
    """A Dask worker that can hand its batches back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handlers["hand_back"] = self.hand_back

    async def hand_back(self) -> None:
        """Take no more tasks, return once those that run have ended and the scheduler knows."""
        if self.status in (Status.running, Status.paused):
            self.status = Status.closing_gracefully  # The scheduler is told, and so are batches.
        running = {task.key for task in self.state.executing}
        with suppress(*GONE):
            # By the scheduler's books: its word that a task is done may overtake ours of leaving.
            while running & set(await self._tasks_here()):
                await asyncio.sleep(POLL_SECONDS)
            await self.scheduler.retire_workers(
                workers=[self.address],
                close_workers=False,
                remove=True,
                stimulus_id="chunkmap-hand-back",
            )

    async def _tasks_here(self) -> list[Any]:
        found = await self.scheduler.processing(workers=[self.address])
        return list(found[self.address])

    async def close_gracefully(
        self, restart: bool | None = None, reason: str = "worker-close-gracefully"
    ) -> None:
        """What Dask calls when the worker's lifetime is over, or a plug-in wants it gone."""
        if self.status in (Status.closing, Status.closed):
            return
        log.info("Handing back before leaving: %s", reason)
        await self.hand_back()
        restart = self.lifetime_restart if restart is None else restart
        await self.close(nanny=not restart, reason=reason)


class GracefulNanny(Nanny):
    """A nanny whose worker hands its batches back before it is stopped.

    Args:
        stop_seconds: How long that may take; then the worker is ended all the same, and the
            scheduler gives its batches to others.
    """

    def __init__(self, *args: Any, stop_seconds: float = STOP_SECONDS, **kwargs: Any) -> None:
        super().__init__(*args, **{"worker_class": GracefulWorker, **kwargs})
        self.stop_seconds = stop_seconds
        self._leaving = False

    async def close(self, timeout: float | None = 5, reason: str = "nanny-close") -> Any:
        """See `Nanny.close`."""
        left = 5.0 if timeout is None else timeout
        if self.status == Status.running and not self._leaving:
            self._leaving = True
            deadline = time.monotonic() + self.stop_seconds
            self.close_gracefully(reason)  # The worker is not started anew.
            await self._hand_back()
            # What is left of the time is the process's own: it tells Prefect how its tasks ended.
            left = max(left, deadline - time.monotonic())
        return await super().close(timeout=left, reason=reason)

    async def _hand_back(self) -> None:
        if self.worker_address is None or self.process is None:
            return
        with suppress(*GONE, asyncio.TimeoutError):
            async with self.rpc(self.worker_address) as worker:
                await asyncio.wait_for(worker.hand_back(), self.stop_seconds)
