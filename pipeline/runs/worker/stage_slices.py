"""Store the result of a chunk as a partial result in slices, from which files are merged later."""

from __future__ import annotations

import time
import uuid
from contextlib import AbstractContextManager

import polars as pl

from partitioning import Chunk
from pipeline.config.job import Job
from pipeline.runs.ledger.keys import chunk_folder, refuse_long_folders
from pipeline.runs.ledger.records import PARTIAL, Completion
from pipeline.runs.worker.chunk import (
    ComputedChunk,
    RunContext,
    arrange,
    check_figures,
    completion_of,
    keep_rejected,
)
from pipeline.runs.worker.key_columns import without_key_columns
from pipeline.runs.worker.slices import pack_slices, split
from pipeline.storage import join


def stage_slices(
    context: RunContext,
    mapped: ComputedChunk,
    batch: str,
    worker: str,
    turn: AbstractContextManager[object],
) -> Completion:
    """Store the result of a computed chunk in slices; return its completion (see `stage`)."""
    job = context.job
    with turn:
        clock = time.perf_counter()
        parts = by_folder(arrange(mapped.frame, job), mapped.chunk, job, context.schema)
        refuse_long_folders(context.ledger.output, [folder for folder, _ in parts])
        data = pack_slices(parts, job.output.merge_key)
        encoding, clock = time.perf_counter() - clock, time.perf_counter()
    attempt = uuid.uuid4().hex
    uri = join(context.ledger.prefix, "partials", f"{mapped.chunk.index:07d}-{attempt}.arrow")
    checked = check_figures(context, mapped.frame, attempt, mapped.failing)
    keep_rejected(context, mapped, attempt)
    context.storage.put_new(uri, data)
    return completion_of(
        context,
        mapped,
        batch=batch,
        worker=worker,
        attempt=attempt,
        encoding_seconds=encoding,
        stage_seconds=time.perf_counter() - clock,
        bytes_out=len(data),
        uri=uri,
        upload=PARTIAL,
        parts=(),
        sha256="",
        checked=checked,
    )


def by_folder(
    frame: pl.DataFrame, chunk: Chunk, job: Job, schema: pl.Schema
) -> list[tuple[str, pl.DataFrame]]:
    """Return the rows of a result by the folder of their file, without the columns in its key.

    Args:
        frame: The result.
        chunk: Chunk of the result.
        job: The job.
        schema: Schema of the dataset, as Polars reads it.

    Raises:
        PartitionColumnError, PartitionLimitError: it cannot be stored like this.
    """
    if job.output.partition_by is not None:
        return split(frame, job.output.partition_by, job.output.max_partitions)
    rest = without_key_columns(frame, chunk, schema)
    return [(chunk_folder(chunk), rest)] if rest.height else []
