"""The flow `backfill`, and `map_windows`: its runs, as subflows that share its cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.states import Cancelled

from pipeline.cluster.task_runner import sharing
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError, RunCancelledError
from pipeline.flows.event_sender import flush_events
from pipeline.flows.executor import DaskExecutor, map_batch_task
from pipeline.flows.run_state import RunStateWatcher
from pipeline.flows.server import flow_run_page, patient
from pipeline.runs.backfill.driver import BackfillDriver, Listener
from pipeline.runs.backfill.orchestrator import ExecutorOf
from pipeline.runs.backfill.records import BackfillResumeOptions, Control
from pipeline.runs.backfill.run import PublishWindows
from pipeline.runs.backfill.store import BackfillStore
from pipeline.runs.backfill.summary import BackfillSummary
from pipeline.runs.driver.executor import Executor
from pipeline.runs.driver.publish_windows import publish_windows
from pipeline.storage import open_storage

BY_PREFECT = "Prefect"
"""Who changed the wishes, when it was done in Prefect's pages or by its API."""

FLUSH_SECONDS = 3.0
"""How long a backfill that is over waits for Prefect to take the last events."""
SUBFLOW_RETRIES = 4
"""How often Prefect is asked again for a subflow: with SQLite below, it is busy for moments."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BackfillOptions:
    """What the caller of the flow knows and Prefect need not store."""

    settings: Settings
    resume: BackfillResumeOptions = field(default_factory=BackfillResumeOptions)
    listen: Listener = lambda progress, phase: None
    task_of_batch: Any = map_batch_task
    publish: PublishWindows = publish_windows
    ended: list[BackfillSummary | ChunkmapError] = field(default_factory=list)
    """How it ended, whatever Prefect makes of it afterwards."""


_options: ContextVar[BackfillOptions | None] = ContextVar("backfill_options", default=None)
_work: ContextVar[Callable[[ExecutorOf], None] | None] = ContextVar("work", default=None)


@contextmanager
def backfill_options(given: BackfillOptions) -> Iterator[None]:
    """Run the flow with these options; a deployment runs with those of its environment."""
    token = _options.set(given)
    try:
        yield
    finally:
        _options.reset(token)


def _given() -> BackfillOptions:
    return _options.get() or BackfillOptions(load_settings())


@flow(
    name="backfill",
    flow_run_name="backfill {backfill}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def backfill_flow(output: str, backfill: str) -> Any:
    """Drive a stored backfill to its end, or go on with one.

    Args:
        output: URI of its output.
        backfill: Its id.

    Raises:
        BackfillIncompleteError: some windows failed.
        BackfillHeldError: it stops after its canary.
    """
    given = _given()
    store = BackfillStore(open_storage(given.settings), output, backfill)
    orchestrator = PrefectBackfillOrchestrator(store)
    driver = BackfillDriver(
        store, given.settings, orchestrator, given.resume, given.listen, publish=given.publish
    )
    try:
        summary = driver.run()
    except RunCancelledError as error:
        given.ended.append(error)
        return Cancelled(message=str(error))
    except ChunkmapError as error:
        given.ended.append(error)
        raise
    finally:
        flush_events(FLUSH_SECONDS)
    given.ended.append(summary)
    return summary


@flow(
    name="map_windows",
    flow_run_name="{name}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def map_windows(name: str) -> None:
    """Do one run of a backfill, on the cluster of the flow that it is a part of.

    Args:
        name: Its windows.
    """
    _at_work(name)


def _at_work(name: str) -> None:
    # Apart, because Prefect sends a flow's function with each task, and no context variable may
    # be among what it names.
    work = _work.get()
    assert work is not None, f"{name} is a part of a backfill, not a flow to start"
    work(_executor)


def _executor(run_uri: str, fingerprint: str, priority: Callable[[], int]) -> Executor:
    context = FlowRunContext.get()
    assert context is not None, "a flow runs in a flow run's context"
    given = _given()
    return DaskExecutor(
        context.task_runner,
        run_uri,
        fingerprint,
        given.task_of_batch,
        priority=priority,
        limit=given.settings.batches.concurrency_limit,
    )


@dataclass(slots=True)
class PrefectBackfillOrchestrator:
    """Prefect around a backfill (see `pipeline.runs.backfill.driver.BackfillOrchestrator`)."""

    store: BackfillStore
    _watcher: RunStateWatcher = field(default_factory=RunStateWatcher)
    _paused: bool = False
    """Whether Prefect's run was paused when we last looked."""

    @property
    def page(self) -> str | None:
        """See `BackfillOrchestrator.page`."""
        return flow_run_page()

    def run(self, name: str, work: Callable[[ExecutorOf], None]) -> None:
        """See `BackfillOrchestrator.run`: a subflow, in a thread of its own.

        When Prefect cannot make one, or cannot be told how it ended, the run goes on without.
        """
        context = FlowRunContext.get()
        assert context is not None, "the flow's context is handed on to its threads"
        runner: Any = context.task_runner
        ends: list[BaseException | None] = []

        def noted(executor_of: ExecutorOf) -> None:
            try:
                work(executor_of)
            except BaseException as error:
                ends.append(error)
                raise
            ends.append(None)

        subflow: Any = map_windows.with_options(task_runner=sharing(runner))  # type: ignore[arg-type]
        token = _work.set(noted)
        try:
            with patient(SUBFLOW_RETRIES):
                subflow(name)
        except Exception as error:
            if ends and ends[0] is not None:
                raise ends[0] from None
            log.warning("Prefect has no flow run of %s: %s", name, error)
            if not ends:
                work(_executor)
        finally:
            _work.reset(token)

    def sync_control(self, control: Control) -> Control | None:
        """See `BackfillOrchestrator.sync_control`. The latest change wins."""
        wish = self._watcher.wish()
        if wish is None:
            return None  # A server that is gone wishes nothing.
        if wish == "cancel":
            return self.store.change(BY_PREFECT, lambda _: {"cancelled": True})
        paused, before, self._paused = wish == "pause", self._paused, wish == "pause"
        if paused == control.paused:
            return None
        if paused != before:
            return self.store.change(BY_PREFECT, lambda _: {"paused": paused})
        self._watcher.show(paused=control.paused)
        self._paused = control.paused
        return None
