"""Measure the parameters that need no cluster: ledger, planner, worker's own work, object store.

Costs of code are seconds of a core (`process_time`, all threads), so that others on the machine
do not count; what waits for the store is wall time, medians of many.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.micro.ledger_only import NO_INPUT, ManyObjects, ledger_only_run, synthetic_plan
from benchmarks.suite.datasets import ensure
from partitioning import Plan, PlanRequest, plan_dataset
from pipeline.cluster import local
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.heartbeat import Heartbeat
from pipeline.runs.driver.plan import PreparedRun, ResumeOptions, plan_run
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.report import store_report
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Completion
from pipeline.runs.worker.batch import Batch, map_batch
from pipeline.runs.worker.chunk import open_chunk, open_run
from pipeline.runs.worker.sparse_file import coalesce
from pipeline.storage import Storage, StorageReader

BURSTS, BURST = 5, 400
"""Bursts of requests, and requests of each."""

Figures = dict[str, tuple[float, str]]
"""Name of a parameter to its value and how it was measured."""


@dataclass(slots=True)
class Stopwatch:
    """What a block took."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Measure a block: wall clock, and seconds of a core in this process."""
    found, wall, cpu = Stopwatch(), time.perf_counter(), time.process_time()
    yield found
    found.wall, found.cpu = time.perf_counter() - wall, time.process_time() - cpu


def quick(count: int, call: Callable[[int], object]) -> float:
    """Wall seconds of a call that is given its number: what the fastest quarter stays below.

    Others on the machine make calls slower, never faster.
    """
    found = []
    for number in range(count):
        with stopwatch() as took:
            call(number)
        found.append(took.wall)
    return statistics.quantiles(found, n=4)[0]


def burst(count: int, call: Callable[[int], object]) -> float:
    """Calls a second from 32 threads: of the fastest of several bursts."""
    rates = []
    with ThreadPoolExecutor(32) as pool:
        for number in range(BURSTS):
            with stopwatch() as took:
                list(pool.map(call, range(number * count, (number + 1) * count)))
            rates.append(count / took.wall)
    return max(rates)


def job_of(root: str, source: str, transform: str, **more: Any) -> Job:
    """A job into a prefix of its own."""
    return Job.model_validate(
        {
            "name": "probe",
            "input": {"uri": source, **more.pop("input", {})},
            "transform": f"benchmarks.transforms:{transform}",
            "output": {"uri": f"{root}simulation/{uuid.uuid4().hex[:12]}/"},
            **more,
        }
    )


def store(settings: Settings, storage: Storage, root: str) -> Figures:
    """Latency and throughput of the object store, as this machine sees them."""
    at, small, large = f"{root}simulation/store/{uuid.uuid4().hex[:8]}/", b"x" * 500, 64 << 20
    put = quick(100, lambda n: storage.put(f"{at}small/{n}", small))
    get = quick(100, lambda n: storage.get(f"{at}small/{n}"))
    storage.put(f"{at}large", bytes(large))
    info = storage.head(f"{at}large")
    stream = quick(8, lambda n: storage.get_ranges(info, [(0, large)]))
    [server] = [
        service.pid for service in local.status(settings) if service.name == "s3" and service.pid
    ]
    processes = [
        server,
        *(process.pid for process in psutil.Process(server).children(recursive=True)),
    ]
    before = cpu_of(processes)
    puts = burst(BURST, lambda n: storage.put(f"{at}many/{n}", small))
    gets = burst(BURST, lambda n: storage.get(f"{at}many/{n}"))
    each = (cpu_of(processes) - before) / (2 * BURSTS * BURST)
    listed = quick(8, lambda n: storage.objects(f"{at}many/")) / 2
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda info: storage.delete(info.uri), storage.objects(at)))
    return {
        "get_seconds": (get, "lower quartile of 100 gets of 500 bytes, one after the other"),
        "put_seconds": (put, "lower quartile of 100 puts of 500 bytes, one after the other"),
        "list_seconds": (listed, "half of the lower quartile of 8 listings of 2,000 keys"),
        "stream_bytes": (large / stream, "lower quartile of 8 reads of 64 MiB in one request"),
        "gets_per_second": (gets, "fastest of 5 bursts of 400 gets of 500 bytes from 32 threads"),
        "puts_per_second": (puts, "fastest of 5 bursts of 400 puts of 500 bytes from 32 threads"),
        "cpu_seconds": (each, "processor time of the server for each request of those bursts"),
    }


def cpu_of(pids: Iterable[int]) -> float:
    """Seconds of processor time that processes have had."""
    found = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(process.user + process.system for process in found)


def ledger(settings: Settings, storage: Storage, root: str) -> Figures:
    """Writing, reading and folding completions, and the report of them."""
    few = _written(settings, storage, root, 200, 1)
    many = _written(settings, storage, root, 200, 250)
    entries, fewer = 200 * 250, 200
    with stopwatch() as read_few:
        few[0].read()
    with stopwatch() as read_many:
        many[0].read()
    with stopwatch() as listing:
        keys = len(storage.objects(many[0].prefix + "completions/"))
    with stopwatch() as again:
        many[0].read()
    with stopwatch() as fold:
        many[0].compact()
    base = storage.head(many[0].prefix + "folded/base-000001.arrow").size
    driver = Heartbeat.of(storage, many[0].prefix)
    driver.record.phases.append(("map", time.time() - 60, 60.0))
    folder = Path(tempfile.mkdtemp(prefix="chunkmap-bench-"))
    try:
        store_report(storage, few[0], driver.record, "done", folder)
        with stopwatch() as short:
            store_report(storage, few[0], driver.record, "done", folder)
        with stopwatch() as long:
            store_report(storage, many[0], driver.record, "done", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    segment = read_few.cpu / fewer
    return {
        "driver.segment_seconds": (segment, "a read of 200 segments of 1 completion"),
        "driver.entry_seconds": (
            max(0.0, read_many.cpu - read_few.cpu) / (entries - fewer),
            "a read of 200 segments of 250 completions, less that of 200 of 1",
        ),
        "driver.key_seconds": (listing.cpu / keys, "a listing of 200 segments"),
        "driver.known_seconds": (
            max(0.0, again.cpu - listing.cpu) / entries,
            "a second read of 50,000 completions, less the listing",
        ),
        "driver.fold_seconds": (fold.cpu / entries, "folding 50,000 completions"),
        "driver.report_chunk_seconds": (
            max(0.0, long.cpu - short.cpu) / (entries - fewer),
            "reports of 50,000 chunks and of 200",
        ),
        "worker.flush_seconds": (few[1] / 200, "writing 200 segments of 1 completion"),
        "data.state_bytes_per_chunk": (base / entries, "a folded ledger of 50,000 completions"),
    }


def _written(
    settings: Settings, storage: Storage, root: str, segments: int, each: int
) -> tuple[Ledger, float]:
    """Write a ledger with this many segments and completions per segment; return it, timed."""
    job = job_of(root, NO_INPUT, "identity")
    made, _ = ledger_only_run(settings, job, synthetic_plan(segments * each))
    ids = iter(enumerate(made.plan().chunk_ids))
    with stopwatch() as writing:
        for number in range(segments):
            entries = [_completion(next(ids), f"b{number:05d}", made) for _ in range(each)]
            made.write_segment(f"b{number:05d}-{uuid.uuid4().hex[:12]}-0001", entries, ())
    return made, writing.cpu


def _completion(chunk: tuple[int, str], batch: str, ledger: Ledger) -> Completion:
    index, name = chunk
    return Completion(
        chunk=name,
        index=index,
        batch=batch,
        attempt=uuid.uuid4().hex,
        worker=f"worker-{index % 8}",
        started=time.time(),
        seconds=0.5,
        read_seconds=0.2,
        compute_seconds=0.2,
        stage_seconds=0.1,
        rows_in=1000,
        rows_out=1000,
        bytes_in=10**6,
        bytes_out=10**6,
        code="0" * 16,
        schema="0" * 16,
        uri=f"{ledger.output}part-{index:07d}-{ledger.run}.parquet",
        upload=uuid.uuid4().hex * 2,
        parts=(uuid.uuid4().hex,),
        sha256=uuid.uuid4().hex * 2,
    )


def planning(settings: Settings, storage: Storage, root: str) -> Figures:
    """Listing and footers of small files, and packing without either."""
    card = ensure(storage, root, "small", "s")
    reader = StorageReader(storage)
    with stopwatch() as real:
        files = plan_dataset(PlanRequest(uri=card.uri), reader).explain.footers_read
    chunks = 20_000
    with stopwatch() as pure:
        plan = plan_dataset(PlanRequest(NO_INPUT, per_file=True), ManyObjects(NO_INPUT, chunks))
    with stopwatch() as packing:
        data = plan.plan.to_bytes()
    with stopwatch() as opening:
        Plan.from_bytes(data).chunk_ids  # noqa: B018 - a property that builds what a worker needs
    return {
        "driver.plan_file_seconds": (
            real.cpu / files,
            f"planning {files:,} files of two row groups",
        ),
        "driver.plan_chunk_seconds": (
            (pure.cpu + packing.cpu) / chunks,
            f"planning {chunks:,} objects that need no request, and storing the plan",
        ),
        "data.plan_bytes_per_chunk": (len(data) / chunks, f"a plan of {chunks:,} chunks"),
        "worker.open_chunk_seconds": (opening.cpu / chunks, f"opening a plan of {chunks:,} chunks"),
    }


def worker(settings: Settings, storage: Storage, root: str) -> Figures:
    """A worker's own work, in this process: very small chunks, then a row-wise map."""
    groups = ensure(storage, root, "row-groups", "s")
    tiny = job_of(
        root, groups.uri, "identity", chunks={"target": 1}, input={"filter": [["id", "<", 1760]]}
    )
    planned = plan_run(tiny, settings, storage, ResumeOptions())
    with stopwatch() as opening:
        open_run(planned.ledger.prefix, planned.fingerprint)
    map_batch(planned.ledger.prefix, planned.fingerprint, Batch("probe0", "0-50"))
    with stopwatch() as small:
        map_batch(planned.ledger.prefix, planned.fingerprint, Batch("probe1", "50-400"))
    with stopwatch() as single:
        for number in range(400, 440):
            batch = Batch(f"alone{number}", f"{number}-{number + 1}")
            map_batch(planned.ledger.prefix, planned.fingerprint, batch)
    with stopwatch() as published:
        publish_run(storage, planned.ledger)
    lines = ensure(storage, root, "lineitem", "s")
    mapped = plan_run(job_of(root, lines.uri, "row_map"), settings, storage, ResumeOptions())
    count = len(mapped.plan)
    map_batch(mapped.ledger.prefix, mapped.fingerprint, Batch("probe0", "0-1"))
    with stopwatch() as large:
        result = map_batch(mapped.ledger.prefix, mapped.fingerprint, Batch("probe1", f"1-{count}"))
    each = small.cpu / 350
    rows, aggregating = _aggregated(settings, storage, root)
    decoded = sum(chunk.decoded_bytes for chunk in mapped.plan.chunks(range(1, count)))
    stored = sum(chunk.stored_bytes for chunk in mapped.plan.chunks(range(1, count)))
    how = f"{count - 1} chunks of TPC-H lineitem, a row-wise map of seven columns"
    return {
        "worker.open_seconds": (opening.cpu, "opening a run of 440 chunks in a fresh process"),
        "worker.chunk_seconds": (each, "350 chunks of four rows, one after the other"),
        "worker.enter_seconds": (
            max(0.0, single.cpu / 40 - each),
            "40 batches of one such chunk, less the chunks",
        ),
        "worker.byte_seconds": (max(0.0, large.cpu - (count - 1) * each) / decoded, how),
        "worker.aggregate_row_seconds": (
            max(0.0, aggregating.cpu - each) / rows,
            f"a chunk of {rows:,} measurements, grouped by station",
        ),
        "data.decoded_share": (decoded / stored, how),
        "data.output_share": (result.bytes_out / stored, how),
        "data.reads_per_chunk": (_reads(mapped), how),
        "driver.publish_file_seconds": (published.cpu / 440, "publishing 440 chunks"),
    }


def _aggregated(settings: Settings, storage: Storage, root: str) -> tuple[int, Stopwatch]:
    """Map a chunk of a job that reduces, after another one; returns its rows and what it took."""
    card = ensure(storage, root, "measurements", "s")
    functions = {"combine": "all_extremes", "finalize": "mean_extremes"}
    reduce = {name: f"benchmarks.transforms:{function}" for name, function in functions.items()}
    job = job_of(root, card.uri, "extremes", reduce=reduce)
    planned = plan_run(job, settings, storage, ResumeOptions())
    map_batch(planned.ledger.prefix, planned.fingerprint, Batch("probe0", "0-1"))
    with stopwatch() as aggregating:
        result = map_batch(planned.ledger.prefix, planned.fingerprint, Batch("probe1", "1-2"))
    return result.rows_in, aggregating


def _reads(mapped: PreparedRun) -> float:
    """Range requests for the columns of the first chunk, as its reader coalesces them."""
    context = open_run(mapped.ledger.prefix, mapped.fingerprint)
    [chunk] = mapped.plan.chunks([0])
    source = open_chunk(context, chunk)
    try:
        names = "l_orderkey l_linenumber l_suppkey l_shipdate l_extendedprice l_discount l_tax"
        copies = source._opened()
        return sum(len(coalesce(copy._spans(set(names.split())))) for copy in copies) / len(copies)
    finally:
        source.close()


def discard(storage: Storage, root: str) -> None:
    """Remove what the probes stored."""
    found = storage.objects(f"{root}simulation/")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda info: storage.delete(info.uri), found))
