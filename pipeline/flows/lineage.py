"""Emit OpenLineage events about runs, backfills, ingests and loads, if `lineage.url` is set.

They hold names, versions, schemas and figures, never parameters or data. They are sent in the
background by the OpenLineage client; a run continues without the receiver.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from queue import SimpleQueue
from threading import Thread
from typing import Any
from uuid import uuid4

from prefect.context import FlowRunContext

from pipeline.config.sections import LineageSettings
from pipeline.errors import UsageError
from pipeline.flows.lineage_facts import LineageFacts, dataset_name
from pipeline.ingest.run import IngestSummary
from pipeline.load.records import LoadSummary
from pipeline.masking import mask
from pipeline.runs.backfill.summary import BackfillSummary
from pipeline.runs.driver.summary import RunSummary
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from pipeline.table.schemas import types_of_output

Summary = RunSummary | BackfillSummary | IngestSummary | LoadSummary
Post = Callable[[Any], object]

FLUSH_SECONDS = 5.0
"""Seconds that a run waits at its end for the receiver to take the last events."""
STATES = {"cancelled": "ABORT", "interrupted": "ABORT"}
"""Types of events by the end state of an error; others are failures."""

LOADED = "loaded"
"""Name of the figures of a load's destination."""

log = logging.getLogger(__name__)


@contextmanager
def lineage(
    settings: LineageSettings,
    storage: Storage,
    facts: Callable[[], LineageFacts],
    connect: Callable[[LineageSettings], Post] | None = None,
) -> Iterator[Callable[[Summary], None]]:
    """Emit that a run, backfill, ingest or load starts, and how it ends.

    Args:
        settings: Where to; without a URL, nothing is done.
        storage: Where the outputs are, whose schemas are read.
        facts: Returns what the events say.
        connect: Returns a function that sends an event; default the OpenLineage client's.

    Yields:
        A function to call with the summary of one that is complete.

    Raises:
        UsageError: The OpenLineage client is not installed.
    """
    if settings.url is None:
        yield lambda summary: None
        return
    sender = Sender((connect or _connect)(settings))
    events = _Events(settings, storage, facts())
    sender.send(events.started)
    summaries: list[Summary] = []
    try:
        yield summaries.append
    except BaseException as error:
        reason = error if isinstance(error, Exception) else None
        kind = "ABORT" if reason is None else STATES.get(getattr(error, "end_state", ""), "FAIL")
        sender.send(lambda: events.failed(kind, reason))
        raise
    else:
        sender.send(lambda: events.completed(summaries[0]))
    finally:
        sender.finish(FLUSH_SECONDS)


class Sender:
    """Builds and sends events in order, in a thread that does not keep the process alive."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._queue: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="lineage", daemon=True)
        self._thread.start()

    def send(self, build: Callable[[], Any]) -> None:
        """Queue an event, which the thread builds."""
        self._queue.put(build)

    def finish(self, seconds: float) -> None:
        """Wait until all is sent, up to so many seconds."""
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("lineage: the last events were not sent within %g s", seconds)

    def _run(self) -> None:
        while (build := self._queue.get()) is not None:
            try:
                self._post(build())
            except Exception as error:
                # Anything: the run must not depend on it.
                log.warning("lineage: an event was not sent: %s", mask(str(error)))


class _Events:
    """Builds the events of one run or backfill."""

    def __init__(self, settings: LineageSettings, storage: Storage, facts: LineageFacts) -> None:
        self._settings, self._storage, self._facts = settings, storage, facts
        context = FlowRunContext.get()
        # Each driver is a run of its own, as in Prefect: one that was resumed starts twice.
        known = context.flow_run if context is not None else None
        self._run = str(known.id if known is not None else uuid4())
        self._id = facts.id

    def started(self) -> Any:
        return self._event("START", outputs=self._outputs({}))

    def completed(self, summary: Summary) -> Any:
        if isinstance(summary, IngestSummary):
            self._id = summary.ingest
        return self._event("COMPLETE", outputs=self._outputs(figures_of(summary)))

    def failed(self, kind: str, error: Exception | None) -> Any:
        from openlineage.client import facet_v2

        facets: dict[str, Any] = {}
        if error is not None:
            facets["errorMessage"] = facet_v2.error_message_run.ErrorMessageRunFacet(
                message=str(mask(f"{type(error).__name__}: {error}")),
                programmingLanguage="python",
            )
        return self._event(kind, outputs=self._outputs({}), facets=facets)

    def _event(self, kind: str, outputs: list[Any], facets: Mapping[str, Any] | None = None) -> Any:
        from openlineage.client import event_v2, facet_v2

        facts = self._facts
        tag = facet_v2.tags_run.TagsRunFacetFields(
            key=f"chunkmap.{facts.kind}", value=self._id, source="chunkmap"
        )
        tags = {"tags": facet_v2.tags_run.TagsRunFacet(tags=[tag])} if self._id else {}
        job_type = facet_v2.job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="CHUNKMAP", jobType=facts.kind.upper()
        )
        return event_v2.RunEvent(
            eventTime=datetime.now(UTC).isoformat(),
            eventType=event_v2.RunState[kind],
            producer=f"urn:chunkmap:{metadata.version('chunkmap')}",
            run=event_v2.Run(runId=self._run, facets={**tags, **(facets or {})}),
            job=event_v2.Job(
                namespace=self._settings.namespace,
                name=facts.name,
                facets={"jobType": job_type},
            ),
            inputs=self._inputs(),
            outputs=outputs,
        )

    def _inputs(self) -> list[Any]:
        from openlineage.client import event_v2, facet_v2

        inputs = []
        for source in self._facts.inputs:
            facets: dict[str, Any] = {}
            further: dict[str, Any] = {}
            if source.types:
                facets["schema"] = _schema(source.types)
            if source.version:
                facets["version"] = _version(source.version)
            if source.counts is not None:
                rows, size, files = source.counts
                make = facet_v2.input_statistics_input_dataset.InputStatisticsInputDatasetFacet
                further["inputStatistics"] = make(rowCount=rows, size=size, fileCount=files)
            dataset = event_v2.InputDataset(*source.dataset, facets=facets, inputFacets=further)
            inputs.append(dataset)
        return inputs

    def _outputs(self, figures: Mapping[str, Figures]) -> list[Any]:
        from openlineage.client import event_v2

        facts, outputs = self._facts, []
        for uri in facts.outputs:
            table_log = TableLog(self._storage, uri)
            facets: dict[str, Any] = {}
            further: dict[str, Any] = {}
            found = figures.get(table_log.output)
            if found is not None:
                number = found.manifest or table_log.manifest().number
                facets["version"] = _version(str(number))
                facets["schema"] = _schema(types_of_output(table_log))
                further["outputStatistics"] = _statistics(found)
            name = dataset_name(uri)
            outputs.append(event_v2.OutputDataset(*name, facets=facets, outputFacets=further))
        if facts.into is not None:
            loaded = {name: _statistics(each) for name, each in figures.items() if name == LOADED}
            further = {"outputStatistics": loaded[LOADED]} if loaded else {}
            outputs.append(event_v2.OutputDataset(*facts.into, facets={}, outputFacets=further))
        return outputs


@dataclass(frozen=True, slots=True)
class Figures:
    """What was published to an output; without a manifest, it is the current one."""

    rows: int
    bytes: int | None
    """None if unknown."""
    manifest: int | None = None


def figures_of(summary: Summary) -> dict[str, Figures]:
    """Return the figures of each output by its URI, and of a destination by LOADED."""
    if isinstance(summary, LoadSummary):
        return {LOADED: Figures(summary.rows, None)}
    if isinstance(summary, IngestSummary):
        return {summary.output: Figures(summary.rows, summary.bytes, summary.manifest)}
    if isinstance(summary, BackfillSummary):
        counts = summary.counts
        return {summary.output: Figures(counts.get("rows_out", 0), counts.get("bytes_out", 0))}
    if summary.outputs:
        return {
            each.output: Figures(each.rows, each.bytes, each.manifest) for each in summary.outputs
        }
    return {summary.output: Figures(summary.rows_out, summary.bytes_out, summary.manifest)}


def _schema(types: Mapping[str, str]) -> Any:
    from openlineage.client import facet_v2

    fields: Iterable[tuple[str, str]] = types.items()
    make = facet_v2.schema_dataset.SchemaDatasetFacetFields
    return facet_v2.schema_dataset.SchemaDatasetFacet(
        fields=[make(name=name, type=kind) for name, kind in fields]
    )


def _statistics(figures: Figures) -> Any:
    from openlineage.client import facet_v2

    make = facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
    return make(rowCount=figures.rows, size=figures.bytes)


def _version(text: str) -> Any:
    from openlineage.client import facet_v2

    return facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=text)


def _connect(settings: LineageSettings) -> Post:
    """Return the OpenLineage client's function for sending."""
    try:
        from openlineage.client import OpenLineageClient
        from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport
    except ModuleNotFoundError as error:
        raise UsageError(
            f"lineage.url is set, and the OpenLineage client is not installed ({error})",
            hint="pip install 'chunkmap[lineage]'",
        ) from error
    assert settings.url is not None, "checked before"
    options: dict[str, Any] = {"url": settings.url, "endpoint": settings.endpoint}
    if settings.api_key is not None:
        options["auth"] = ApiKeyTokenProvider({"apiKey": settings.api_key.get_secret_value()})
    transport = HttpTransport(HttpConfig(timeout=settings.timeout, **options))
    client = OpenLineageClient(transport=transport)
    post: Post = client.emit
    return post
