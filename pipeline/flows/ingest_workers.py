"""Works of an ingest of files as Prefect task runs on the Dask cluster that is up, if one is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

from prefect import task

from pipeline.cluster.dask_profiler import stop_profiler
from pipeline.cluster.futures import connection_errors, wait_any
from pipeline.cluster.task_runner import task_runner
from pipeline.config.settings import Settings
from pipeline.errors import EngineUnavailableError
from pipeline.flows.executor import TASK_OPTIONS
from pipeline.flows.launch import answers
from pipeline.flows.task_report import error_of
from pipeline.flows.task_sender import Ended, SentTaskRun, TaskSender
from pipeline.ingest.remote import do_packed, packed, result_of
from pipeline.ingest.workers import LocalWorkers, Work

LEAST_RANGES = 4
"""Number of ranges of bytes below which works are done in this process: to connect takes some
seconds."""
IN_FLIGHT = 200
"""Maximum number of works that are sent and not done: each is a task run on Prefect's server."""
ATTEMPTS = 3
"""Maximum number of times that a work is sent whose worker died."""

log = logging.getLogger(__name__)


@task(name="ingest-part", task_run_name="{name}", **TASK_OPTIONS)
def ingest_part_task(name: str, work: str) -> dict[str, Any]:
    """Read a part of a file, or write a file, on a Dask worker."""
    stop_profiler()
    return do_packed(work)


@dataclass
class ClusterWorkers:
    """Sends works to the Dask cluster of the settings; few are done in this process."""

    settings: Settings
    local: LocalWorkers
    least_bytes: int
    """Bytes below which works are done in this process."""
    _sender: TaskSender | None = None
    _is_away: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def map(self, works: Sequence[Work[Any]]) -> Iterator[tuple[int, Any]]:
        """Do works (see `Workers.map`); call it in a flow run."""
        is_worth = len(works) > 1 and sum(work.bytes for work in works) >= self.least_bytes
        sender = self._connected() if is_worth else None
        if sender is None:
            yield from self.local.map(works)
            return
        waiting = iter(enumerate(works))
        left: list[tuple[SentTaskRun, int, int]] = []
        try:
            while True:
                some = islice(waiting, IN_FLIGHT - len(left))
                left += [(_send(sender, work), i, 1) for i, work in some]
                if not left:
                    return
                wait_any([sent.future for sent, _, _ in left], 1.0)
                for sent, i, attempt in list(left):
                    ended = sent.ended()
                    if ended is None:
                        continue
                    left.remove((sent, i, attempt))
                    if ended.kind == "finished":
                        yield i, result_of(works[i], ended.result)
                    else:
                        _refuse(works[i], ended, attempt)
                        left.append((_send(sender, works[i]), i, attempt + 1))
        except connection_errors() as error:
            raise EngineUnavailableError(
                f"the Dask cluster was lost: {error}",
                hint="give the command again: what is staged is kept",
            ) from error
        finally:
            for sent, _, _ in left:
                sent.cancel()

    def _connected(self) -> TaskSender | None:
        dask = self.settings.dask
        if self._sender is not None or self._is_away or dask.scheduler is None:
            return self._sender
        try:
            if not answers(dask.scheduler):
                raise EngineUnavailableError(f"no scheduler answers at {dask.scheduler}")
            runner = task_runner(dask, self.settings.s3.environment())
        except EngineUnavailableError as error:
            log.warning("%s; the ingest continues in this process", error)
            self._is_away = True
            return None
        entered: Any = self._stack.enter_context(runner.duplicate())  # type: ignore[no-untyped-call]
        self._sender = TaskSender(entered, ingest_part_task, ("name", "work"))
        return self._sender


def _send(sender: TaskSender, work: Work[Any]) -> SentTaskRun:
    return sender.submit(name=work.name, work=packed(work))


def _refuse(work: Work[Any], ended: Ended, attempt: int) -> None:
    """Raise the error of a work that failed, or was lost for the last time."""
    if ended.error is not None:
        raise error_of(ended.error)
    if attempt >= ATTEMPTS:
        raise EngineUnavailableError(
            f"{work.name}: {ended.detail}",
            hint="give workers more memory, or set a smaller files.range_bytes; then give the "
            "command again: what is staged is kept",
        )
