"""Mapping without reading and staging: what is left is the cost of the engine itself."""

from __future__ import annotations

import importlib
import io
import resource
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from benchmarks.suite.settings import load_suite_settings
from partitioning import ObjectInfo, Plan, PlanRequest, Tail, TailRequest, plan_dataset
from pipeline.cluster.futures import worker_name
from pipeline.cluster.task_runner import task_runner
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.flows.executor import DaskExecutor
from pipeline.flows.server import connect, talking_to
from pipeline.runs.driver.map_stage import MapStage
from pipeline.runs.driver.summary import MapProgress
from pipeline.runs.ledger.keys import output_uri
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Completion, Progress, digest_of
from pipeline.runs.transforms.loading import job_fingerprint
from pipeline.runs.worker.batch import Batch, BatchAttempt, BatchResult
from pipeline.runs.worker.chunk import open_run
from pipeline.storage import own_storage

NO_INPUT = "s3://demo/none/"
"""Folder of input that exists only as a listing."""


class ManyObjects:
    """A reader of objects that exist only as a listing: all of them share one footer."""

    def __init__(self, uri: str, count: int, rows: int = 10) -> None:
        self._uri = uri
        self._count = count
        buffer = io.BytesIO()
        pq.write_table(pa.table({"id": pa.array(range(rows), pa.int64())}), buffer)
        self._data = buffer.getvalue()

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """See `Reader.list`."""
        for number in range(self._count):
            uri = self._uri + self._name(number)
            # The planner also lists folders in which a table's log may lie.
            if uri.startswith(uri_prefix):
                yield ObjectInfo(uri, f"e{number}", len(self._data))

    def _name(self, number: int) -> str:
        return f"{number:07d}.parquet"

    def head(self, uri: str) -> ObjectInfo:
        """See `Reader.head`."""
        raise FileNotFoundError(uri)

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        """See `Reader.read_tails`."""
        for request in requests:
            yield Tail(request.object, self._data[-request.length :])


def synthetic_plan(chunks: int) -> Plan:
    """Build a plan with this many chunks, of one small object each."""
    request = PlanRequest(uri=NO_INPUT, per_file=True)
    return plan_dataset(request, ManyObjects(NO_INPUT, chunks)).plan


class LedgerOnlyRun(BatchAttempt):
    """A batch whose chunks are done as soon as they are looked at."""

    def _map(self, indices: list[int]) -> None:
        schema = '{"id": "Int64"}'
        self.schemas.setdefault(schema)
        tokens = self.context.storage.token_rule(self.context.ledger.output)
        for chunk in self.context.plan.chunks(indices):
            self.decoded += chunk.decoded_bytes
            attempt, ledger = uuid.uuid4().hex, self.context.ledger
            uri = output_uri(ledger.output, ledger.run, chunk, attempt)
            self.entries.append(
                Completion(
                    chunk=chunk.id,
                    index=chunk.index,
                    batch=self.batch.name,
                    attempt=attempt,
                    worker=self.worker,
                    started=time.time(),
                    seconds=0.0,
                    read_seconds=0.0,
                    compute_seconds=0.0,
                    stage_seconds=0.0,
                    rows_in=chunk.rows,
                    rows_out=chunk.rows,
                    bytes_in=0,
                    bytes_out=0,
                    code=self.context.transform.fingerprint,
                    schema=digest_of(schema),
                    uri=uri,
                    upload=tokens.token_of(uri, attempt),
                    parts=(),
                    sha256="",
                )
            )
            self.flush_if_due()


@task(name="map-batch", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
def ledger_only_task(
    run_uri: str, fingerprint: str, name: str, spec: str, types: str
) -> BatchResult:
    """As `map_batch_task`, without reading and staging."""
    context = open_run(run_uri, fingerprint)
    return LedgerOnlyRun(context, Batch(name, spec, types), worker_name()).run()


@flow(name="ledger-only", persist_result=False, validate_parameters=False)
def ledger_only_flow(run_uri: str, fingerprint: str) -> Progress:
    """Map a stored run with `ledger_only_task`."""
    ledger = Ledger.open(own_storage(), run_uri)
    context = FlowRunContext.get()
    assert context is not None
    mapper = MapStage(
        ledger=ledger,
        plan=ledger.plan(),
        job=ledger.job(),
        limits=_settings.batches,
        executor=DaskExecutor(context.task_runner, run_uri, fingerprint, ledger_only_task),
        listen=_listen,
    )
    return mapper.run()


_settings = Settings()
_listen: Callable[[MapProgress], None] = lambda progress: None  # noqa: E731


def ledger_only_run(settings: Settings, job: Job, plan: Plan) -> tuple[Ledger, str]:
    """Store a run to be mapped by `ledger_only_flow`; returns it and its fingerprint."""
    code = job_fingerprint(job, settings.transforms)
    return Ledger.create(own_storage(), job, plan, code, 0), code


def only(flow_: Any, runner: Any) -> Any:
    """The flow with this task runner."""
    return flow_.with_options(task_runner=runner)


def main(chunks: int, output: str) -> None:
    """Map this many chunks in this process, and print its peak memory in MB."""
    settings = load_suite_settings()
    job = Job.model_validate(
        {
            "name": f"ledger-{chunks}",
            "input": {"uri": "s3://demo/none/"},
            "transform": "benchmarks.transforms:identity",
            "output": {"uri": output},
        }
    )
    with talking_to(connect(settings.prefect), 1):
        ledger, code = ledger_only_run(settings, job, synthetic_plan(chunks))
        runner = task_runner(settings.dask, settings.s3.environment())
        progress = only(ledger_only_flow, runner)(ledger.prefix, code)
    assert progress.completions.height == chunks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


if __name__ == "__main__":
    # Workers look for the task in a module that they can import: not in this `__main__`.
    importlib.import_module("benchmarks.micro.ledger_only").main(int(sys.argv[1]), sys.argv[2])
