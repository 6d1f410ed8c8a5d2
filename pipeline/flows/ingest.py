"""The flow `ingest`: fetch pages, plan files, stage and publish them, each a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote

from pipeline.config.ingest import Ingest, SecretPlace, parse_ingest
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError
from pipeline.flows.artifacts import ArtifactSender
from pipeline.flows.ingest_workers import LEAST_RANGES, ClusterWorkers
from pipeline.flows.lineage import lineage
from pipeline.flows.lineage_facts import facts_of_ingest
from pipeline.flows.run_events import INGEST, reported
from pipeline.flows.run_logs import flow_logs, masked_errors
from pipeline.flows.secret_blocks import read_secret_block
from pipeline.ingest.run import (
    IngestOptions,
    IngestProgress,
    IngestSummary,
    ingest,
)
from pipeline.ingest.sources import secret_of_environment
from pipeline.ingest.workers import LocalWorkers
from pipeline.masking import mask_text
from pipeline.report.humanize import byte_size, plural
from pipeline.storage import open_storage
from pipeline.table.log import TableLog


@dataclass(frozen=True)
class IngestFlowOptions:
    """Arguments of the flow that Prefect need not store."""

    settings: Settings
    options: IngestOptions = field(default_factory=IngestOptions)
    ended: list[IngestSummary | ChunkmapError] = field(default_factory=list)
    """The summary or error, added when it ends, even if Prefect fails afterwards."""


_options: ContextVar[IngestFlowOptions | None] = ContextVar("ingest_options", default=None)


@contextmanager
def ingest_options(options: IngestFlowOptions) -> Iterator[None]:
    """Run the flow with these options; without them, it takes the settings of the environment."""
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


@task(
    name="step",
    task_run_name="{name} {own}",
    persist_result=False,
    result_serializer="json",
    cache_policy=NO_CACHE,
)
def ingest_step(name: str, own: str, work: Callable[[], Any]) -> Any:
    """Do a step of an ingest, e.g. publish it."""
    with masked_errors():
        return work()


@flow(
    name="ingest",
    flow_run_name="{name}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def ingest_flow(name: str, definition: str) -> IngestSummary:
    """Ingest the pages of an API into an output, or resume an ingest that was stopped.

    Args:
        name: The name of the ingest, for the Prefect UI.
        definition: The text of its file.

    Raises:
        SourceError: The source refuses, or answers something unusable; stored pages are kept.
    """
    current = _options.get() or IngestFlowOptions(load_settings())
    parsed = parse_ingest(definition)
    key = f"ingest-{name.lower().replace('_', '-').replace('.', '-')}"
    shown = _Shown(ArtifactSender(key))

    def listen(progress: IngestProgress) -> None:
        current.options.listen(progress)
        shown.update(progress)

    storage = open_storage(current.settings)
    least_bytes = LEAST_RANGES * (parsed.files.range_bytes if parsed.files is not None else 0)
    local = LocalWorkers(storage)
    output = TableLog(storage, parsed.output.uri).output
    try:
        with (
            flow_logs(),
            reported(INGEST, output, {"job": name}) as complete,
            ClusterWorkers(current.settings, local, least_bytes) as workers,
        ):
            options = replace(
                current.options, listen=listen, step=_step, secret=secret_of_place, workers=workers
            )
            facts = partial(facts_of_ingest, parsed, secret_of_place)
            with lineage(current.settings.lineage, storage, facts) as done:
                summary = ingest(parsed, current.settings, options, storage=storage)
                done(summary)
            complete(summary)
    except ChunkmapError as error:
        current.ended.append(error)
        raise
    current.ended.append(summary)
    shown.summarize(parsed, summary)
    return summary


def _step(name: str, own: str, work: Callable[[], Any]) -> Any:
    do_step: Any = ingest_step.with_options(name=name)
    call: Any = quote(work)
    return do_step(name, own, call)


def secret_of_place(place: SecretPlace) -> str | None:
    """Return a secret, also from a Prefect Secret block.

    Raises:
        UsageError: There is no such block, or it holds no text.
    """
    if place.secret is None:
        return secret_of_environment(place)
    return read_secret_block(place.secret, f"{place.key}.secret")


@dataclass(frozen=True, slots=True)
class _Shown:
    """Shows an ingest in Prefect: its progress, and at its end what was published."""

    sender: ArtifactSender

    def update(self, progress: IngestProgress) -> None:
        fetched, is_fetching = progress.fetched, progress.phase == "fetch"
        percent = 90.0 * fetched.done / max(1, fetched.feeds) if is_fetching else 95.0
        pages, records = plural(fetched.pages, fetched.unit), plural(fetched.records, "record")
        text = f"{progress.phase}: {pages}, {records}"
        self.sender.show_progress(percent, text, at_once=not is_fetching)

    def summarize(self, definition: Ingest, summary: IngestSummary) -> None:
        unit = {"http": "page", "files": "file"}.get(summary.source, "part")
        lines = [
            f"{plural(summary.records, 'record')} of {plural(summary.pages, unit)} of "
            f"{definition.name} are in manifest {summary.manifest} of {summary.output}: "
            f"{plural(summary.files, 'file')}, {byte_size(summary.bytes)}.",
            *summary.notes,
        ]
        text, key = mask_text("\n\n".join(lines)), f"{self.sender.key}-result"
        self.sender.show_progress(100.0, "published", at_once=True)
        self.sender.send(lambda: create_markdown_artifact(markdown=text, key=key))
        self.sender.wait()
