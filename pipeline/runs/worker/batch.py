"""Map the chunks of a batch one after the other; reading and staging overlap with computing."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import partial
from threading import Timer
from typing import ClassVar, TypeVar

import polars as pl
import stamina
from typing_extensions import override

from partitioning import Chunk
from pipeline import logs, metrics, traces
from pipeline.errors import (
    ChunkTimeoutError,
    RunCancelledError,
    StateError,
    UnreadableObjectError,
    is_transient,
)
from pipeline.quality.figures import Figures
from pipeline.runs.ledger.check_files import checked_text
from pipeline.runs.ledger.ledger import segment_name
from pipeline.runs.ledger.records import PARTIAL, Completion, Failure, digest_of
from pipeline.runs.ledger.segments import MAX_COMPLETION, entry_line
from pipeline.runs.transforms.user_code import is_from_signal
from pipeline.runs.worker.call_limit import limited_calls
from pipeline.runs.worker.chunk import (
    ComputedChunk,
    RunContext,
    completion_of,
    compute,
    keep_rejected,
    open_chunk,
    open_run,
    schema_text,
    stage,
    stage_further,
)
from pipeline.runs.worker.chunk_source import ChunkSource
from pipeline.runs.worker.code_report import naming_worker
from pipeline.runs.worker.failures import failure_of
from pipeline.runs.worker.memory import WorkerMemory, worker_memory
from pipeline.runs.worker.null_types import fill_types, types_by_output, types_of_frames
from pipeline.runs.worker.read_ahead import MAX_CHUNKS, Turn
from pipeline.runs.worker.reduce import store_partial
from pipeline.runs.worker.stage_slices import stage_slices
from pipeline.storage.retry import call_repeatedly

T = TypeVar("T")

log = logging.getLogger(__name__)

CHUNK_BUDGET_SECONDS = 120.0
"""Maximum seconds that a worker retries a chunk's transient errors; the next round retries too."""
CANCEL_SECONDS = 2.0
"""Seconds between two looks for a request to stop, after a chunk; a batch lasts seconds."""
SEGMENTS_PER_BATCH = 8
"""Number of segments that a batch is stored in, unless a chunk takes longer than an eighth of it.
With 1,000 workers a batch takes more than a minute; if each chunk were stored by itself, the driver
could not read as fast as they write."""
LATE_FLUSHES = 10
"""Multiple of `batches.flush_seconds` after which a long batch stores what it has, in any case."""
TIMEOUT_EXIT = 75
"""Exit code of a worker that exits because a chunk hangs (EX_TEMPFAIL)."""
_COUNTS = tuple(each.name for each in fields(metrics.RequestCounts))


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Result of a batch: counts only, so that it is small for any number of chunks."""

    batch: str
    done: int
    failed: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int
    decoded_bytes: int
    """Decoded bytes as estimated in the plan: the measure of the work."""
    seconds: float
    left: int = 0
    """Chunks that were not attempted because the worker is shutting down."""


def map_batch(
    run_uri: str,
    fingerprint: str,
    batch: Batch,
    worker: str = "serial",
    is_leaving: Callable[[], bool] = lambda: False,
    *,
    sent: str = "",
    memory_limit: int = 0,
) -> BatchResult:
    """Map a batch's chunks and store their completions and failures.

    A chunk's failure is recorded, and the batch continues. Errors that concern the whole batch (no
    storage, no transform) are raised.

    Args:
        run_uri: `<output>.chunkmap/runs/<run>/`.
        fingerprint: Fingerprint of the driver's code.
        batch: The batch.
        worker: Name of the worker.
        is_leaving: Returns whether the worker is shutting down; then the batch ends after the
            current chunk, and the rest is handed back.
        sent: Settings of the run (see `sent_settings`).
        memory_limit: Bytes of memory that this process may use; 0 for no limit.
    """
    with naming_worker(worker):
        context = open_run(run_uri, fingerprint, sent)
    kind = ReducingBatchAttempt if context.job.reduce is not None else BatchAttempt
    if context.job.output.merges:
        kind = SlicingBatchAttempt
    elif context.further:
        kind = SeveralOutputsBatchAttempt
    with logs.log_ids(run=context.record.run, batch=batch.name):
        memory = worker_memory(memory_limit)
        return kind(context, batch, worker, is_leaving=is_leaving, memory=memory).run()


@dataclass(slots=True)
class _OpenedChunk:
    """A chunk whose bytes are read ahead."""

    chunk: Chunk
    source: ChunkSource
    reserved: int
    """Bytes of memory reserved for it."""
    has_columns: bool
    """Whether the columns to read were known."""
    reading: Future[None] | None = None
    """Reading of its columns; None if nothing is read ahead."""


@dataclass(frozen=True, slots=True)
class _StagedChunk:
    """A computed chunk whose result is being staged."""

    mapped: ComputedChunk
    work: Future[Completion]
    reserved: int
    """Bytes of memory reserved for it."""


@dataclass(slots=True)
class Attempt:
    """One attempt at a batch: what it has done, stored a segment at a time."""

    context: RunContext
    batch: Batch
    worker: str
    _: KW_ONLY
    is_leaving: Callable[[], bool] = lambda: False
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    entries: list[Completion | Failure] = field(default_factory=list)
    """Entries that are not stored yet."""
    stored: list[Completion | Failure] = field(default_factory=list)
    schemas: dict[str, None] = field(default_factory=dict)
    """Schemas of their outputs, as JSON."""
    segments: int = 0
    flushed: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)
    """Time of the last look for a request to stop."""
    decoded: int = 0
    left: int = 0
    """Number of chunks or files to hand back."""
    requests: metrics.RequestTally = field(default_factory=metrics.RequestTally)
    """Requests to S3 that no completion has counted yet."""

    def retry(self, work: Callable[[], T]) -> T:
        """Do a chunk's or a file's work, again after a transient error."""
        contexts = partial(
            stamina.retry_context,
            on=is_transient,
            attempts=self.context.job.retries + 1,
            timeout=CHUNK_BUDGET_SECONDS,
        )
        return call_repeatedly(work, is_transient, contexts, metrics.RETRIES.inc)

    def add(self, done: Completion, schema: str) -> None:
        """Add a completion, with the requests that were made since the last one."""
        self.schemas.setdefault(schema)
        counts = self.requests.take()
        self.entries.append(replace(done, **{name: getattr(counts, name) for name in _COUNTS}))

    def flush_if_due(self) -> None:
        """Store what is not stored yet, if it is time to; end if the run is cancelled."""
        limits = self.context.settings.batches
        share = min(limits.flush_chunks, len(self.batch) / SEGMENTS_PER_BATCH)
        waited = (time.monotonic() - self.flushed) / limits.flush_seconds
        is_late = waited >= (1 if len(self.entries) >= share else LATE_FLUSHES)
        if is_late or len(self.entries) >= limits.flush_chunks:
            self.flush()
        self._end_if_cancelled()

    def _end_if_cancelled(self) -> None:
        """Look for a request to stop, now and then; if there is one, store what is done and end."""
        now = time.monotonic()
        if now - self.looked < CANCEL_SECONDS:
            return
        self.looked = now
        if self.context.ledger.is_cancelled():
            self.flush()
            run = self.context.record.run
            raise RunCancelledError(f"run {run} was cancelled; finished work is kept")

    def flush(self) -> None:
        """Store what is not stored yet, as one segment."""
        if self.entries:
            self.segments += 1
            name = segment_name(self.batch.name, self.attempt, self.segments)
            self.before_flush(name)
            self.context.ledger.write_segment(name, self.entries, self.schemas)
            self.count(self.entries)
            if traces.is_on():
                for entry in self.entries:
                    trace_entry(entry, self.unit)
            self.stored += self.entries
            self.entries, self.schemas = [], {}
        self.flushed = time.monotonic()

    @property
    def unit(self) -> str:
        """Name of what a completion is about: chunk, piece or file."""
        return self.context.ledger.unit

    def before_flush(self, name: str) -> None:
        """Store what must be stored before the entries are, under the name of their segment."""

    def count(self, stored: Iterable[Completion | Failure]) -> None:
        """Count entries, once they are stored, in the process's metrics."""

    def result(self, seconds: float) -> BatchResult:
        """Return what was stored, in numbers."""
        done = [entry for entry in self.stored if isinstance(entry, Completion)]
        return BatchResult(
            batch=self.batch.name,
            done=len(done),
            failed=len(self.stored) - len(done),
            rows_in=sum(c.rows_in for c in done),
            rows_out=sum(c.rows_out for c in done),
            bytes_in=sum(c.bytes_in for c in done),
            bytes_out=sum(c.bytes_out for c in done),
            decoded_bytes=self.decoded,
            seconds=seconds,
            left=self.left,
        )


@dataclass(slots=True)
class BatchAttempt(Attempt):
    """One attempt at a batch of chunks."""

    stores_alone: ClassVar[bool] = True
    """Whether a completion may be stored without storing anything before it (see `flush`)."""

    _: KW_ONLY
    memory: WorkerMemory = field(default_factory=lambda: worker_memory(0))
    turn: Turn = field(default_factory=Turn)
    """Held while a result is encoded."""
    staged: float = field(default_factory=time.perf_counter)
    """Time of the last wait for a result to be staged."""
    work: metrics.ActiveBatch = field(init=False)

    def run(self) -> BatchResult:
        """Map the batch's chunks that no earlier attempt has completed or failed for good."""
        clock = time.perf_counter()
        indices = self._remaining()
        run = self.context.record.run
        with (
            metrics.counting(self.requests),
            metrics.track_batch(run, self.batch.name, len(indices)) as self.work,
        ):
            self._map(indices)
            self.flush()
        result = self.result(time.perf_counter() - clock)
        log.info(
            "%d chunks done, %d failed, %d handed back in %.1f s",
            *(result.done, result.failed, result.left, result.seconds),
        )
        return result

    def _remaining(self) -> list[int]:
        """List the chunks without a completion or a final failure.

        When a worker dies, Dask runs its batch again elsewhere. Chunks that the dead worker stored
        are skipped, and so is a chunk that hung.
        """
        before = self.context.ledger.of_batch(self.batch.name)
        over = set(before.completions["index"].to_list())
        over |= set(before.failures.filter(~before.failures["transient"])["index"].to_list())
        return [index for index in self.batch.indices if index not in over]

    def _map(self, indices: list[int]) -> None:
        # Threads start when they are needed.
        readers = ThreadPoolExecutor(MAX_CHUNKS, "read")
        stagers = ThreadPoolExecutor(MAX_CHUNKS, "stage")
        with self._staged_chunks() as staging, readers as reader, stagers as stager:
            with closing(self._sources(indices, reader)) as sources:
                for number, (chunk, source) in enumerate(sources, 1):
                    self.decoded += chunk.decoded_bytes
                    with logs.log_ids(chunk=chunk.id):
                        with (
                            limited_calls(self.context.job),
                            self.memory.admit(chunk.decoded_bytes),
                            self._watch(chunk),
                        ):
                            mapped = self._run_work(chunk, partial(self._compute, chunk, source))
                        reserved = self._make_room(staging, chunk)
                        if mapped is None:
                            self.memory.release(reserved)
                        else:
                            staging.append(self._stage_ahead(mapped, reserved, stager))
                    self.flush_if_due()
                    self.work.done = number
                    if self.is_leaving():
                        self.left = len(indices) - number
                        break
            while staging:
                self._collect(staging.popleft())

    @contextmanager
    def _staged_chunks(self) -> Iterator[deque[_StagedChunk]]:
        """Hold the results that are being staged, and free their memory however the block ends."""
        staging: deque[_StagedChunk] = deque()
        try:
            yield staging
        finally:
            for staged in staging:
                self.memory.release(staged.reserved)

    def _stage_ahead(
        self, mapped: ComputedChunk, reserved: int, stager: ThreadPoolExecutor
    ) -> _StagedChunk:
        try:
            work = stager.submit(copy_context().run, self._stage, mapped)
        except BaseException:
            self.memory.release(reserved)
            raise
        return _StagedChunk(mapped, work, reserved)

    def _make_room(self, staging: deque[_StagedChunk], chunk: Chunk) -> int:
        """Wait until a chunk's result may be staged; return the bytes of memory reserved for it.

        One result is staged while the next chunk is computed, and more while storage is slow.
        """
        uploads = self.context.uploads
        clock = time.perf_counter()
        while staging:
            if not staging[0].work.done() and len(staging) < uploads.chunks:
                size = chunk.decoded_bytes
                if self.memory.reserve(size):
                    return size
            self._collect(staging.popleft())
            # While one is encoded, to stage more at a time would gain nothing.
            uploads.add(self.turn.idle_seconds(clock), clock - self.staged)
            clock = self.staged = time.perf_counter()
        return 0

    def _sources(
        self, indices: list[int], reader: ThreadPoolExecutor
    ) -> Generator[tuple[Chunk, ChunkSource], None, None]:
        """Yield each chunk with its source; the next ones are read while it is computed."""
        chunks = iter(self.context.plan.chunks(indices))
        following = next(chunks, None)
        opened: deque[_OpenedChunk] = deque()
        computed: float | None = None
        try:
            while opened or following is not None:
                while (
                    following is not None
                    and (size := self._reserve(following, len(opened))) is not None
                ):
                    opened.append(self._open_ahead(following, size, reader))
                    following = next(chunks, None)
                current = opened.popleft()
                try:
                    self._wait_for(current, computed)
                    clock = time.perf_counter()
                    yield current.chunk, current.source
                    computed = time.perf_counter() - clock
                    self.context.ahead.columns = current.source.columns_read or self.columns
                finally:
                    self._close(current)
        finally:
            for chunk in opened:  # The batch ends early.
                if chunk.reading is not None:
                    chunk.reading.exception()
                self._close(chunk)

    def _reserve(self, chunk: Chunk, opened: int) -> int | None:
        """Reserve memory to open a chunk ahead; return the bytes, or None if it is too early.

        The chunk that is next and the one after it are always opened.
        """
        if opened < 2:
            return 0
        is_early = opened > self.context.ahead.chunks or not self.context.settings.reading.prefetch
        if is_early or not self.memory.reserve(chunk.stored_bytes):
            return None
        return chunk.stored_bytes

    def _open_ahead(self, chunk: Chunk, reserved: int, reader: ThreadPoolExecutor) -> _OpenedChunk:
        try:
            source = open_chunk(self.context, chunk)
        except BaseException:
            self.memory.release(reserved)
            raise
        opened = _OpenedChunk(chunk, source, reserved, has_columns=bool(self.columns))
        if self.context.settings.reading.prefetch:
            opened.reading = reader.submit(source.prefetch, self.columns)
        return opened

    def _wait_for(self, opened: _OpenedChunk, computed: float | None) -> None:
        """Wait until a chunk is read.

        Args:
            opened: The chunk.
            computed: Seconds in which the chunk before it was computed; None if it is the first.
        """
        if opened.reading is None:
            return
        clock = time.perf_counter()
        # An error of reading ahead is raised again, and handled, when the source is used.
        opened.reading.exception()
        if computed is not None and opened.has_columns:
            self.context.ahead.add(time.perf_counter() - clock, computed)

    def _close(self, opened: _OpenedChunk) -> None:
        opened.source.close()
        self.memory.release(opened.reserved)

    @property
    def columns(self) -> set[str]:
        """Columns that the run's last chunk has read; they are prefetched for the next ones."""
        return self.context.ahead.columns

    def _compute(self, chunk: Chunk, source: ChunkSource) -> ComputedChunk:
        while True:
            clock = time.perf_counter()
            try:
                source.prefetch(self.columns)
                seconds = time.perf_counter() - clock
                types = types_by_output(self.batch.types)
                return compute(self.context, chunk, source, seconds, types)
            except UnreadableObjectError as error:
                # Map the whole chunk again: rows of the object may have been used already.
                if not source.leave_out(error):
                    raise
                log.warning("chunk %d is mapped without an object: %s", chunk.index, error)

    def _watch(self, chunk: Chunk) -> Watchdog:
        return Watchdog(self.context.job.chunk_timeout, partial(self._exit_on_timeout, chunk))

    def _exit_on_timeout(self, chunk: Chunk) -> None:
        """Exit this process, because a chunk hangs and Polars cannot be interrupted.

        The failure is stored first, so that the batch's next attempt skips the chunk.
        """
        limit = self.context.job.chunk_timeout
        error = ChunkTimeoutError(
            f"the chunk was not done after {limit:g} s (chunk_timeout); its worker has exited",
            hint="raise chunk_timeout, or plan again with a smaller chunks.target (or "
            "then.max_groups)",
        )
        try:
            storable = (e for e in self.entries if self.stores_alone or isinstance(e, Failure))
            entries = [*storable, self._failure(chunk, error)]
            name = segment_name(self.batch.name, self.attempt, self.segments + 1)
            self.context.ledger.write_segment(name + "-timeout", entries, self.schemas)
        finally:
            os._exit(TIMEOUT_EXIT)

    def _run_work(self, chunk: Chunk, work: Callable[[], T]) -> T | None:
        """Run a chunk's work, retrying transient errors; record a failure otherwise."""
        try:
            return self.retry(work)
        except BaseException as error:
            # Libraries may panic while they read or write; that must not end the batch.
            if is_from_signal(error):
                raise
            self._add_failure(self._failure(chunk, error))
            return None

    def _failure(self, chunk: Chunk, error: BaseException) -> Failure:
        return failure_of(
            chunk,
            error,
            self.batch.name,
            self.worker,
            call=self.context.transform.call,
            allow=self.context.settings.transforms.users_modules,
        )

    def _add_failure(self, failure: Failure) -> None:
        self.entries.append(failure)
        metrics.FAILURES.labels(failure.error).inc()
        if not failure.transient:
            metrics.QUARANTINED.inc()
        with logs.log_ids(chunk=failure.chunk):
            log.warning(
                "%s %d failed (%s): %s: %s",
                *(self.context.ledger.unit, failure.index, failure.where),
                *(failure.error, failure.message),
            )

    def _keep(self, mapped: ComputedChunk, done: Completion) -> None:
        self.add(done, mapped.frame_schema)

    def _stage(self, mapped: ComputedChunk) -> Completion:
        return stage(self.context, mapped, self.batch.name, self.worker, self.turn)

    def _storable(self, done: Completion) -> Completion:
        """Return a completion, if the ledger can hold it.

        Raises:
            StateError: It cannot, e.g. as it lists too many objects that were left out.
        """
        size = len(entry_line(done))
        if size > MAX_COMPLETION:
            raise StateError(
                self.context.ledger.prefix,
                f"the completion of {self.unit} {done.index} has {size:,} bytes, more than the "
                f"{MAX_COMPLETION:,} that it can hold: plan again with a smaller chunks.target",
                hint="plan again with a smaller chunks.target",
            )
        return done

    def _collect(self, staged: _StagedChunk) -> None:
        """Wait until a result is staged, and add its completion.

        It is staged again after a transient error.
        """
        try:
            error = staged.work.exception()
        finally:
            self.memory.release(staged.reserved)
        mapped = staged.mapped
        work: Callable[[], Completion]
        if error is not None and is_transient(error):
            work = partial(self._stage, mapped)
        else:
            work = staged.work.result
        done = self._run_work(mapped.chunk, lambda: self._storable(work()))
        if done is not None:
            self._keep(mapped, done)

    @override
    def count(self, stored: Iterable[Completion | Failure]) -> None:
        for entry in stored:
            if isinstance(entry, Completion):
                metrics.CHUNKS.inc()
                metrics.ROWS.labels("in").inc(entry.rows_in)
                metrics.ROWS.labels("out").inc(entry.rows_out)
                metrics.BYTES.labels("in").inc(entry.bytes_in)
                metrics.BYTES.labels("out").inc(entry.bytes_out)


@dataclass(slots=True)
class ReducingBatchAttempt(BatchAttempt):
    """One attempt at a batch of a job with a reduce: results are combined, not staged."""

    stores_alone: ClassVar[bool] = False

    frames: list[pl.DataFrame] = field(default_factory=list)
    """Results of the chunks that are not stored yet."""

    @override
    def _stage(self, mapped: ComputedChunk) -> Completion:
        attempt, failing = uuid.uuid4().hex, mapped.failing
        keep_rejected(self.context, mapped, attempt)
        figures = Figures(mapped.frame.height)
        return completion_of(
            self.context,
            mapped,
            batch=self.batch.name,
            worker=self.worker,
            attempt=attempt,
            checked="" if failing is None else checked_text(figures, failing=failing),
            stage_seconds=0.0,
            bytes_out=0,
            uri="",
            upload=PARTIAL,
            parts=(),
            sha256="",
        )

    @override
    def _keep(self, mapped: ComputedChunk, done: Completion) -> None:
        BatchAttempt._keep(self, mapped, done)
        self.frames.append(mapped.frame)

    @override
    def flush(self) -> None:
        if self.frames:
            # One partial for all chunks of the segment, which count together or not at all.
            name = segment_name(self.batch.name, self.attempt, self.segments + 1)
            done = self._fill_types([e for e in self.entries if isinstance(e, Completion)])
            uri, size = store_partial(self.context, name, self.frames)
            self.entries = [
                *(entry for entry in self.entries if not isinstance(entry, Completion)),
                *(replace(entry, uri=uri, bytes_out=size) for entry in done),
            ]
            self.frames = []
        BatchAttempt.flush(self)

    def _fill_types(self, done: list[Completion]) -> list[Completion]:
        """Cast all-null columns to the types that they have in the segment's other chunks."""
        types = types_of_frames(self.frames)
        if not types:
            return done
        pairs = [fill_types(frame, types) for frame in self.frames]
        self.frames = [frame for frame, _ in pairs]
        texts = [schema_text(frame) for frame in self.frames]
        self.schemas |= dict.fromkeys(texts)
        return [
            replace(
                entry,
                schema=digest_of(text),
                filled=tuple(dict.fromkeys((*entry.filled, *filled))),
            )
            for entry, text, (_, filled) in zip(done, texts, pairs, strict=True)
        ]


@dataclass(slots=True)
class SlicingBatchAttempt(BatchAttempt):
    """One attempt at a batch of a job whose files are merged: results are kept in slices."""

    @override
    def _stage(self, mapped: ComputedChunk) -> Completion:
        return stage_slices(self.context, mapped, self.batch.name, self.worker, self.turn)


@dataclass(slots=True)
class SeveralOutputsBatchAttempt(BatchAttempt):
    """One attempt at a batch of a job with several outputs.

    A chunk is done when the ledger of the first output says so, which is written last.
    """

    stores_alone: ClassVar[bool] = False

    further: dict[str, list[Completion]] = field(default_factory=dict)
    """Completions for the outputs after the first, by attempt, that are not stored yet."""

    @override
    def _stage(self, mapped: ComputedChunk) -> Completion:
        done = BatchAttempt._stage(self, mapped)
        self.further[done.attempt] = stage_further(self.context, mapped, done, self.turn)
        return done

    @override
    def _keep(self, mapped: ComputedChunk, done: Completion) -> None:
        BatchAttempt._keep(self, mapped, done)
        for result in mapped.further:
            self.schemas.setdefault(result.frame_schema)

    @override
    def before_flush(self, name: str) -> None:
        done = [entry.attempt for entry in self.entries if isinstance(entry, Completion)]
        rows = [self.further.pop(attempt) for attempt in done]
        for output, entries in zip(self.context.further, zip(*rows, strict=True), strict=False):
            output.ledger.write_segment(name, entries, self.schemas)


def trace_entry(entry: Completion | Failure, unit: str) -> None:
    """Make the span of a chunk (or piece, or file), once the ledger has its entry."""
    facts: dict[str, str | int] = {
        f"chunkmap.{unit}": entry.chunk,
        f"chunkmap.{unit}.index": entry.index,
        "chunkmap.attempt": entry.attempt,
    }
    if isinstance(entry, Failure):
        error = f"{entry.error}: {entry.message}"
        traces.record_span(unit, entry.at, entry.at, facts, error)
        return
    facts |= {
        "chunkmap.rows_in": entry.rows_in,
        "chunkmap.rows_out": entry.rows_out,
        "chunkmap.bytes_in": entry.bytes_in,
        "chunkmap.bytes_out": entry.bytes_out,
        "s3.reads": entry.reads,
        "s3.writes": entry.writes,
        "s3.retries": entry.retries,
    }
    traces.record_span(unit, entry.started, entry.started + entry.seconds, facts)


class Watchdog:
    """Calls a function in another thread if its block takes too long."""

    def __init__(self, seconds: float | None, call: Callable[[], None]) -> None:
        self._timer = None if seconds is None else Timer(seconds, call)

    def __enter__(self) -> None:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunks that one Prefect task run maps."""

    name: str
    """Name, unique within the run."""
    spec: str
    """Indices of the chunks as half-open ranges, e.g. `0-500,503-504`."""
    types: str = ""
    """Types of columns, as JSON, for chunks where they are all null (see `null_types`)."""

    @property
    def indices(self) -> list[int]:
        """Indices of the chunks, in order."""
        return [i for start, stop in _ranges(self.spec) for i in range(start, stop)]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in _ranges(self.spec))


def _ranges(spec: str) -> Iterator[tuple[int, int]]:
    for part in spec.split(","):
        start, _, stop = part.partition("-")
        yield int(start), int(stop)


def spec_of(indices: Sequence[int]) -> str:
    """Format ascending indices as half-open ranges."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index:
            parts[-1][1] = index + 1
        else:
            parts.append([index, index + 1])
    return ",".join(f"{start}-{stop}" for start, stop in parts)
