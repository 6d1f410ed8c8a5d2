"""Merge slices of the chunks' results into the files of an output, and stage them.

A batch merges some files of the run's merge plan, one after the other. Without `output.sort_by` the
rows of a file are decoded a row group at a time; with it, all of them are.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final

import polars as pl
from typing_extensions import override

from partitioning import ObjectInfo
from pipeline import logs, metrics
from pipeline.concurrency import map_concurrently, single_flight
from pipeline.errors import StateError
from pipeline.runs.ledger.keys import file_uri
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.merge_plan import MergePlan, number_of
from pipeline.runs.ledger.records import Completion, digest_of
from pipeline.runs.transforms.user_code import user_code
from pipeline.runs.worker.batch import Attempt, Batch, BatchResult
from pipeline.runs.worker.chunk import RunContext, open_run, sorted_rows
from pipeline.runs.worker.code_report import naming_worker
from pipeline.runs.worker.encoding import FileFormat, encodings_text, write_frames, write_parquet
from pipeline.runs.worker.slices import read_slice, sort_key
from pipeline.storage import staged_area
from pipeline.storage.documents import reading

log = logging.getLogger(__name__)

BLOCK_BYTES: Final = 16 << 20
"""Maximum stored bytes of slices that are read at a time, while those before are encoded."""
BLOCK_SLICES: Final = 256
"""Maximum number of slices that are read at a time."""
_DAMAGED: Final = "map its chunk again: run the job with --replan"


def merge_batch(
    run_uri: str,
    fingerprint: str,
    batch: Batch,
    worker: str = "serial",
    is_leaving: Callable[[], bool] = lambda: False,
    *,
    sent: str = "",
) -> BatchResult:
    """Merge a batch's files, and store their completions; arguments as of `map_batch`.

    Raises:
        ChunkmapError: a file cannot be merged. The completions of those before are stored.
    """
    with naming_worker(worker):
        context = open_run(run_uri, fingerprint, sent)
    number = number_of(batch.name)
    assert number is not None, "other batches map chunks"
    plan = _open_plan(context.ledger, number)
    with logs.log_ids(run=context.record.run, batch=batch.name):
        return _MergeAttempt(context, batch, worker, plan, is_leaving=is_leaving).run()


@single_flight(2)
def _cached_plan(ledger: Ledger, prefix: str, number: int) -> MergePlan:
    return ledger.merge_plan(number)


def _open_plan(ledger: Ledger, number: int) -> MergePlan:
    plan: MergePlan = _cached_plan(ledger, ledger.prefix, number)
    return plan


@dataclass(slots=True)
class _MergeAttempt(Attempt):
    """One attempt at a batch of files."""

    plan: MergePlan

    @property
    @override
    def unit(self) -> str:
        return "file"

    def run(self) -> BatchResult:
        """Merge the files that no earlier attempt at the batch has merged."""
        clock = time.perf_counter()
        before = self.context.ledger.of_batch(self.batch.name).completions
        over = set(before["index"].to_list())
        indices = [index for index in self.batch.indices if index not in over]
        self.decoded = int(self.plan.files["bytes"].gather(indices).sum())
        run = self.context.record.run
        with (
            metrics.counting(self.requests),
            metrics.track_batch(run, self.batch.name, len(indices)) as work,
        ):
            try:
                for number, index in enumerate(indices, 1):
                    self.add(self.retry(partial(self._merge, index)), self.plan.schema)
                    work.done = number
                    self.flush_if_due()
                    if self.is_leaving():
                        self.left = len(indices) - number
                        break
            finally:
                self.flush()
        result = self.result(time.perf_counter() - clock)
        log.info(
            "%d files merged, %d handed back in %.1f s", result.done, result.left, result.seconds
        )
        return result

    def _merge(self, index: int) -> Completion:
        return merge_file(self.context, self.plan, index, self.batch.name, self.worker)


def merge_file(
    context: RunContext, plan: MergePlan, index: int, batch: str, worker: str
) -> Completion:
    """Merge and stage one file of a plan; return its completion."""
    started, clock = time.time(), time.perf_counter()
    file = plan.files.row(index, named=True)
    reader = _FileReader(context, plan, index)
    data, encodings, rows = _encode(context, reader.frames(file))
    computed, clock = time.perf_counter() - clock - reader.seconds, time.perf_counter()
    attempt = uuid.uuid4().hex
    output = context.ledger.output
    uri = file_uri(output, file["folder"], index, context.record.run, attempt)
    sha256 = hashlib.sha256(data).hexdigest()
    staged = context.storage.stage(uri, data, attempt, staged_area(output), sha256)
    return Completion(
        chunk=plan.id_of(index),
        index=index,
        batch=batch,
        attempt=attempt,
        worker=worker,
        started=started,
        seconds=time.time() - started,
        read_seconds=reader.seconds,
        compute_seconds=computed,
        stage_seconds=time.perf_counter() - clock,
        rows_in=rows,
        rows_out=rows,
        bytes_in=reader.bytes_read,
        bytes_out=len(data),
        code=context.code,
        schema=digest_of(plan.schema),
        uri=uri,
        upload=staged.upload,
        parts=staged.parts,
        sha256=sha256,
        encodings=encodings,
    )


def _encode(context: RunContext, frames: Iterator[pl.DataFrame]) -> tuple[memoryview, str, int]:
    """Encode the rows of a file; return the file, its columns by encoding, and its rows."""
    how, by = FileFormat.of(context.job.output), context.job.output.sort_by
    rows = 0

    def counted() -> Iterator[pl.DataFrame]:
        nonlocal rows
        for frame in frames:
            rows += frame.height
            yield frame

    with user_code(context.job.transform, "returned frames that cannot be merged:"):
        if by:
            data, chosen = write_parquet(sorted_rows(pl.concat(counted()), by), how)
        else:
            data, chosen = write_frames(counted(), how)
    return data, encodings_text(chosen), rows


@dataclass(slots=True)
class _FileReader:
    """Reads the slices of one file, some ahead."""

    context: RunContext
    plan: MergePlan
    index: int
    bytes_read: int = 0
    seconds: float = 0.0
    """Seconds that were waited for reading."""

    def frames(self, file: dict[str, Any]) -> Iterator[pl.DataFrame]:
        """Yield the rows of the file, in order."""
        sources = self.plan.sources.filter(pl.col("file") == self.index)
        columns: list[str] = []
        for block, slices in self._read_ahead(list(_blocks(sources))):
            for source, data in zip(block.iter_rows(named=True), slices, strict=True):
                frame = self._decode(source, data, file)
                columns = columns or frame.columns
                yield frame if frame.columns == columns else frame[columns]

    def _read_ahead(
        self, blocks: list[pl.DataFrame]
    ) -> Iterator[tuple[pl.DataFrame, list[memoryview]]]:
        """Yield blocks with their bytes; the next is read while one is used."""
        read = metrics.counted_here(self._read)
        with ThreadPoolExecutor(1, "read") as pool:
            coming = pool.submit(read, blocks[0])
            for at, block in enumerate(blocks, 1):
                clock = time.perf_counter()
                slices = coming.result()
                self.seconds += time.perf_counter() - clock
                if at < len(blocks):
                    coming = pool.submit(read, blocks[at])
                yield block, slices

    def _read(self, block: pl.DataFrame) -> list[memoryview]:
        """Read some slices, with one request for those of a partial result."""
        partials = self.plan.partials
        jobs = []
        pairs = block.select("partial", "offset", "length").iter_rows()
        for number, group in groupby(pairs, key=lambda row: row[0]):
            row = partials.row(number, named=True)
            info = ObjectInfo(row["uri"], row["etag"], row["size"])
            jobs.append((info, [(offset, offset + length) for _, offset, length in group]))
        storage = self.context.storage
        return [
            data
            for part in map_concurrently(
                metrics.counted_here(lambda job: storage.get_ranges(*job)), jobs
            )
            for data in part
        ]

    def _decode(
        self, source: dict[str, Any], data: memoryview, file: dict[str, Any]
    ) -> pl.DataFrame:
        self.bytes_read += len(data)
        uri = self.plan.partials["uri"][source["partial"]]
        with reading(uri, _DAMAGED):
            frame = read_slice(data, source["sha256"])
            if source["skip"] + source["take"] > frame.height:
                raise StateError(uri, "a slice has fewer rows than the merge plan says", _DAMAGED)
        frame = frame[source["skip"] : source["skip"] + source["take"]]
        return _within(frame, self.context.job.output.merge_key, self.plan.files, self.index, file)


def _blocks(sources: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut the sources of a file into blocks that are read at once."""
    start, size = 0, 0
    for at, length in enumerate(sources["length"]):
        if at > start and (size + length > BLOCK_BYTES or at - start == BLOCK_SLICES):
            yield sources[start:at]
            start, size = at, 0
        size += length
    yield sources[start:]


def _within(
    frame: pl.DataFrame, key: str | None, files: pl.DataFrame, index: int, file: dict[str, Any]
) -> pl.DataFrame:
    """Keep the rows whose sort key belongs to a file (see `ledger.merge_plan.FILES`)."""
    if key is None or "low" not in files.columns or (file["is_first"] and file["is_last"]):
        return frame
    keys = sort_key(frame.get_column(key))
    assert keys is not None, "the plan was made from these keys"
    if not file["is_first"]:
        kept = (keys >= files["low"].slice(index, 1)).fill_null(value=False)
        frame, keys = frame.filter(kept), keys.filter(kept)
    if not file["is_last"]:
        frame = frame.filter(~(keys >= files["high"].slice(index, 1)).fill_null(value=False))
    return frame
