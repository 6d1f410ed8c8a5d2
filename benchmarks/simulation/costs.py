"""What one chunk, one batch and one phase of a case cost: arithmetic, no time passes here.

The engine's own constants (parts of uploads, readers of segments, requests at a time) are taken
from the engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.simulation.case import Case
from benchmarks.simulation.parameters import Parameters
from pipeline.config.sections import PlannerSettings
from pipeline.runs.ledger.completion_log import CONCURRENT_READS
from pipeline.runs.worker.batch import CANCEL_SECONDS, LATE_FLUSHES, SEGMENTS_PER_BATCH
from pipeline.runs.worker.chunk_source import WHOLE_BYTES
from pipeline.runs.worker.reduce import FAN_IN
from pipeline.storage.s3_backend import COPIED_BYTES
from pipeline.storage.s3_client import CONCURRENCY
from pipeline.storage.s3_objects import PAGE
from pipeline.storage.s3_uploads import part_count

PARTS_AT_ONCE = 4
FOOTERS_AT_ONCE = PlannerSettings().footer_concurrency


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds that the three steps of a chunk take in a worker, which overlap with its neighbours'.

    Attributes:
        read: Until its bytes are there.
        compute: The transform, from bytes to a frame, and what it waits for.
        stage: Until its output is staged.
    """

    read: float
    compute: float
    stage: float

    @property
    def longest(self) -> float:
        """What a chunk takes once the others are under way."""
        return max(self.read, self.compute, self.stage)

    @property
    def all(self) -> float:
        """What a chunk takes alone."""
        return self.read + self.compute + self.stage


@dataclass(frozen=True, slots=True)
class BatchCost:
    """What one batch takes of everybody, if nobody else is there.

    Attributes:
        seconds: Of the worker thread.
        useful: Of those, its chunks' own: the rest is overhead.
        cpu: Seconds of a core, in the worker, and in a store on the same machine.
        gets: Requests that count as GET.
        puts: Requests that count as PUT.
        segments: Objects of completions that it stores.
    """

    seconds: float
    useful: float
    cpu: float
    gets: int
    puts: int
    segments: int


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of one case."""

    case: Case
    parameters: Parameters

    # -- a chunk ----------------------------------------------------------------------------

    @property
    def decoded_bytes(self) -> float:
        """Of a chunk."""
        return self.case.chunk_bytes * self.parameters.data.decoded_share

    @property
    def output_bytes(self) -> float:
        """Of a chunk, stored."""
        return self.case.chunk_bytes * self.parameters.data.output_share

    @property
    def is_copied(self) -> bool:
        """Whether an output is so small that it is staged as an object and copied."""
        return self.output_bytes <= COPIED_BYTES

    @property
    def parts(self) -> int:
        """Of a chunk's upload; none if there is no upload."""
        return 0 if self.is_copied else part_count(math.ceil(self.output_bytes))

    @property
    def is_whole(self) -> bool:
        """Whether an object is so small that it is read in one request."""
        return self.case.stored_bytes / self.case.files <= WHOLE_BYTES

    @property
    def chunk_gets(self) -> float:
        """GET requests of a chunk."""
        fragments = max(1.0, self.case.files / self.case.chunks)
        return fragments * (1.0 if self.is_whole else 1.0 + self.parameters.data.reads_per_chunk)

    @property
    def chunk_puts(self) -> int:
        """PUT requests of a chunk: its object; or one to begin its upload, and its parts."""
        return 0 if self.case.reduces else 1 + self.parts

    @property
    def chunk_cpu(self) -> float:
        """Seconds of a core."""
        worker = self.parameters.worker
        if self.case.reduces and self.case.rows:
            rows = self.case.rows / self.case.chunks
            return worker.chunk_seconds + rows * worker.aggregate_row_seconds
        return worker.chunk_seconds + self.decoded_bytes * worker.byte_seconds

    def steps(self) -> Steps:
        """Of one chunk."""
        store = self.parameters.store
        streams = 1.0 if self.is_whole else max(1.0, self.parameters.data.reads_per_chunk)
        trips = 1 if self.is_whole else 2
        waves = math.ceil(self.parts / PARTS_AT_ONCE)
        at_once = max(1, min(self.parts, PARTS_AT_ONCE))
        return Steps(
            read=trips * store.get_seconds + self.case.chunk_bytes / (store.stream_bytes * streams),
            compute=self.chunk_cpu + self.case.wait_seconds,
            stage=0.0
            if self.case.reduces
            else (1 + waves) * store.put_seconds
            + self.output_bytes / (store.stream_bytes * at_once),
        )

    # -- a batch ----------------------------------------------------------------------------

    def batch(self, chunks: int) -> BatchCost:
        """One batch: a pipeline of three steps, and its completions stored now and then."""
        worker, store, limits = self.parameters.worker, self.parameters.store, self.case.batches
        steps = self.steps()
        pipeline = steps.all + (chunks - 1) * steps.longest
        segments = max(
            1,
            math.ceil(chunks / limits.flush_chunks),
            self._timed_segments(chunks, pipeline),
        )
        # A job that reduces stores a partial result with each segment.
        objects = segments * (2 if self.case.reduces else 1)
        looks = math.floor(pipeline / max(CANCEL_SECONDS, steps.longest))
        flushes = segments * worker.flush_seconds + looks * store.get_seconds
        flushes += objects * store.put_seconds
        gets = math.ceil(chunks * self.chunk_gets) + looks
        puts = chunks * self.chunk_puts + objects + 1
        around = worker.batch_seconds + worker.enter_seconds
        own = around + chunks * self.chunk_cpu + segments * worker.flush_seconds
        return BatchCost(
            seconds=around + store.list_seconds + pipeline + flushes,
            useful=chunks * steps.longest,
            cpu=own + (gets + puts) * store.cpu_seconds,
            gets=gets,
            puts=puts,
            segments=segments,
        )

    def _timed_segments(self, chunks: int, seconds: float) -> int:
        """Segments of a batch that are stored because it is time to (see `flush_if_due`)."""
        pause, longest = self.case.batches.flush_seconds, self.steps().longest
        often = math.floor(seconds / max(pause, longest))
        late = math.floor(seconds / max(LATE_FLUSHES * pause, longest))
        return min(chunks, often, max(SEGMENTS_PER_BATCH, late))

    @property
    def plan_bytes(self) -> float:
        """Of the stored plan."""
        return self.case.chunks * self.parameters.data.plan_bytes_per_chunk

    def opening(self) -> float:
        """Seconds until a worker process has opened the run."""
        if not self.case.cold:
            return 0.0
        store, worker = self.parameters.store, self.parameters.worker
        own = worker.open_seconds + self.case.chunks * worker.open_chunk_seconds
        return own + 3 * store.get_seconds + self.plan_bytes / store.stream_bytes

    # -- the driver ---------------------------------------------------------------------------

    def look(self, segments: int, new: int, entries: int, known: int) -> float:
        """Seconds to read the ledger.

        Args:
            segments: Objects of completions that are listed.
            new: Of those, not read yet.
            entries: Completions in those.
            known: Completions altogether.
        """
        driver, store = self.parameters.driver, self.parameters.store
        pages = max(1, math.ceil(segments / PAGE))
        reading = max(
            math.ceil(new / CONCURRENT_READS) * store.get_seconds, new * driver.segment_seconds
        )
        return (
            pages * store.list_seconds
            + segments * driver.key_seconds
            + reading
            + entries * driver.entry_seconds
            + known * driver.known_seconds
        )

    def fold(self, known: int) -> float:
        """Seconds to fold the ledger."""
        store = self.parameters.store
        stored = known * self.parameters.data.state_bytes_per_chunk / store.stream_bytes
        return known * self.parameters.driver.fold_seconds + store.put_seconds + stored

    def planning(self) -> float:
        """Seconds to list, to read the footers, to pack and to store the plan."""
        case, driver, store = self.case, self.parameters.driver, self.parameters.store
        listing = math.ceil(case.files / PAGE) * store.list_seconds
        readers = case.workers if case.files >= case.footer_mappers else 1
        if store.cores:
            readers = min(readers, store.cores)
        footers = max(
            case.files * driver.plan_file_seconds / readers,
            case.files * store.get_seconds / (FOOTERS_AT_ONCE * readers),
            case.files / (store.gets_per_second * case.prefixes),
        )
        packing = case.chunks * driver.plan_chunk_seconds
        return listing + footers + packing + self.plan_bytes / store.stream_bytes

    def publishing(self) -> float:
        """Seconds to look for every staged output and to show it, from one process."""
        case, store = self.case, self.parameters.store
        if case.reduces:
            return 6 * store.put_seconds
        # They are listed by the page; then uploads are completed, and small outputs copied.
        each = max(
            self.parameters.driver.publish_file_seconds,
            store.put_seconds / CONCURRENCY,
            1 / (store.puts_per_second * case.prefixes),
        )
        listing = self.staged_pages * store.list_seconds
        return case.chunks * each + listing + 4 * store.put_seconds

    @property
    def staged_pages(self) -> int:
        """Pages of a listing of what is staged."""
        return 0 if self.case.reduces else math.ceil(self.case.chunks / PAGE)

    def reducing(self, partials: int) -> float:
        """Seconds to combine partial results in a tree, one step a Prefect task run."""
        if not self.case.reduces:
            return 0.0
        store = self.parameters.store
        steps = math.ceil(partials / (FAN_IN - 1))
        each = self.parameters.worker.batch_seconds + store.put_seconds
        each += FAN_IN * store.get_seconds
        depth = max(1, math.ceil(math.log(max(partials, 2), FAN_IN)))
        submitting = steps * self.parameters.driver.submit_seconds
        return max(submitting, steps * each / self.case.workers) + depth * each

    def reporting(self) -> float:
        """Seconds to make the report."""
        return self.case.chunks * self.parameters.driver.report_chunk_seconds
