"""Runs made by hand: a plan of tiny chunks, and completions without any mapping."""

from __future__ import annotations

import hashlib
import io
import json
import time
import uuid
from dataclasses import dataclass, replace

import polars as pl

from partitioning import Plan, PlanRequest, plan_dataset
from pipeline.config.job import Job
from pipeline.runs.ledger.keys import output_uri
from pipeline.runs.ledger.ledger import Ledger, segment_name
from pipeline.runs.ledger.records import Completion, Failure, RunRecord, digest_of
from pipeline.storage import Storage, StorageReader
from pipeline.table.log import TableLog
from tests.support.memory_storage import MemoryBackend

INPUT = "s3://in/t/"
OUTPUT = "s3://out/t/"
SCHEMA = json.dumps({"id": "Int64"})


def parquet(start: int, rows: int) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"id": range(start, start + rows)}, schema={"id": pl.Int64}).write_parquet(buffer)
    return buffer.getvalue()


def plan_of(chunks: int, rows: int = 2, folders: tuple[int, ...] = ()) -> Plan:
    """A plan of so many chunks; in turns in these Hive partitions, if any."""
    backend = MemoryBackend()
    for number in range(chunks):
        folder = f"k={folders[number % len(folders)]}/" if folders else ""
        backend.put(f"{INPUT}{folder}{number:03d}.parquet", parquet(number * rows, rows))
    reader = StorageReader(Storage({"s3": backend}))
    return plan_dataset(PlanRequest(INPUT, per_file=True), reader).plan


def job_of(mode: str = "error", output: str = OUTPUT, **more: object) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "input": {"uri": INPUT},
            "transform": "pipeline.examples.revenue:revenue",
            "output": {"uri": output, "mode": mode, "keep_versions": 1},
            **more,
        }
    )


def job_of_run(mode: str, plan: Plan, code: str, output: str = OUTPUT, **more: object) -> Job:
    """A job that has this run only: runs of one job may not append the same objects twice."""
    return job_of(mode, output, params={"plan": plan.id, "code": code}, **more)


@dataclass(frozen=True)
class Run:
    """One run of an output."""

    storage: Storage
    ledger: Ledger
    plan: Plan

    @property
    def record(self) -> RunRecord:
        return self.ledger.record()

    def again(self, storage: Storage) -> Run:
        """The same run as another process sees it."""
        return Run(storage, Ledger(storage, self.ledger.output, self.ledger.run), self.plan)

    def completion(self, index: int, attempt: str | None = None) -> Completion:
        """Stage a chunk's output; nothing is noted in the ledger yet."""
        chunk = self.plan.chunk(index)
        attempt = attempt or uuid.uuid4().hex
        data = parquet(chunk.index * 2, chunk.rows)
        uri = output_uri(self.ledger.output, self.ledger.run, chunk, attempt)
        area = self.ledger.state + "staged/"
        staged = self.storage.stage(uri, memoryview(data), attempt, area)
        return Completion(
            chunk=chunk.id,
            index=index,
            batch="b",
            attempt=attempt,
            worker="w",
            started=time.time(),
            seconds=0.0,
            read_seconds=0.0,
            compute_seconds=0.0,
            stage_seconds=0.0,
            rows_in=chunk.rows,
            rows_out=chunk.rows,
            bytes_in=10,
            bytes_out=len(data),
            code="code",
            schema=digest_of(SCHEMA),
            uri=uri,
            upload=staged.upload,
            parts=staged.parts,
            sha256=hashlib.sha256(data).hexdigest(),
        )

    def store(self, *entries: Completion | Failure, batch: str = "b") -> None:
        name = segment_name(batch, uuid.uuid4().hex, 1)
        self.ledger.write_segment(name, entries, [SCHEMA])

    def complete(self, *indices: int) -> list[Completion]:
        """Stage outputs and note them; default those of all chunks."""
        done = [self.completion(index) for index in indices or range(len(self.plan))]
        self.store(*done)
        return done

    def failure(self, index: int, at: float, transient: bool = False) -> Failure:
        chunk = self.plan.chunk(index)
        attempt = uuid.uuid4().hex
        return Failure(chunk.id, index, "b", attempt, "w", at, "Oops", "no\nmore", transient, "t")


def run_of(storage: Storage, plan: Plan, mode: str = "error", code: str = "code") -> Run:
    """A run of the output, made on top of what is current."""
    return run_of_job(storage, job_of(mode), plan, code)


def run_of_job(storage: Storage, job: Job, plan: Plan, code: str) -> Run:
    """A run of a job, made on top of what is current."""
    base = TableLog(storage, job.output.uri).head()[0].current
    return Run(storage, Ledger.create(storage, job, plan, code, base), plan)


def with_other_figures(plan: Plan) -> Plan:
    """The same chunks under the same id, but other bytes: planned again with other estimates."""
    tables = {n: plan.table(n) for n in ("chunks", "row_groups", "objects", "schemas", "skipped")}
    meta = {**plan._file.meta, "input": {**plan.input, "said": "otherwise"}}
    return Plan.build(tables, meta)


def shifted(completion: Completion, **changes: object) -> Completion:
    return replace(completion, **changes)  # type: ignore[arg-type]
