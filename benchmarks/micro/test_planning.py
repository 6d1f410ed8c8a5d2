"""Plan thousands of small files on a real S3 server, compared with Dask and pyarrow.

    pytest benchmarks/micro/test_planning.py --benchmark-columns=min,median,rounds

Set-up (server, upload) is not timed. `-k 3000` leaves the large dataset out.
"""

from __future__ import annotations

import datetime
import hashlib
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.micro.planning_peers import dask_partitions, pyarrow_row_groups
from benchmarks.micro.planning_server import Server, serve, small_file, upload, weed
from benchmarks.suite.settings import load_suite_settings
from partitioning import ObjectInfo, Plan, PlanRequest, Tail, TailRequest, plan_dataset
from pipeline.storage import StorageReader, open_storage

SIZES = (3_000, 20_000)
SYNTHETIC = 100_000
SECONDS, MEGABYTES = 10.0, 500.0
"""What packing and storing the synthetic dataset may take."""
MIB = 2**20

Uri = Callable[[int], str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if weed() is None:
        pytest.skip("SeaweedFS is not installed")
    with serve(tmp_path_factory.mktemp("planning")) as running, pytest.MonkeyPatch.context() as at:
        for name, value in running.environment().items():
            at.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def uri(server: Server) -> Uri:
    made: dict[int, str] = {}

    def get(files: int) -> str:
        if files not in made:
            made[files] = upload(server, f"files-{files}", files)
        return made[files]

    return get


def open_reader() -> StorageReader:
    return StorageReader(open_storage(load_suite_settings()))


def once(benchmark: Any, run: Callable[[], Any], files: int, rounds: int = 1) -> Any:
    result = benchmark.pedantic(run, rounds=rounds, iterations=1)
    if benchmark.stats is not None:
        benchmark.extra_info["files"] = files
        benchmark.extra_info["files_per_second"] = round(files / benchmark.stats.stats.min)
    return result


@pytest.mark.parametrize("files", SIZES)
@pytest.mark.benchmark(group="plan")
def test_chunkmap(benchmark: Any, uri: Uri, files: int) -> None:
    request = PlanRequest(uri(files))
    result = once(benchmark, lambda: plan_dataset(request, open_reader()), files, rounds=3)
    assert result.explain.row_groups == 2 * files
    assert result.explain.footers_read == files


@pytest.mark.parametrize("files", SIZES)
@pytest.mark.benchmark(group="plan again, nothing changed")
def test_chunkmap_again(benchmark: Any, uri: Uri, files: int) -> None:
    request = PlanRequest(uri(files))
    stored = plan_dataset(request, open_reader()).plan.to_bytes()

    def run() -> Any:
        return plan_dataset(request, open_reader(), previous=Plan.from_bytes(stored))

    result = once(benchmark, run, files, rounds=3)
    assert result.changes.unchanged == files
    assert result.explain.footers_read == 0
    assert result.plan.to_bytes() == stored


@pytest.mark.parametrize("files", SIZES)
@pytest.mark.benchmark(group="plan")
def test_pyarrow(benchmark: Any, server: Server, uri: Uri, files: int) -> None:
    where = uri(files)
    assert once(benchmark, lambda: pyarrow_row_groups(server, where), files) == 2 * files


@pytest.mark.parametrize("files", SIZES)
@pytest.mark.benchmark(group="plan")
@pytest.mark.filterwarnings("ignore")  # pandas and Dask warn of their own dependencies
def test_dask(benchmark: Any, server: Server, uri: Uri, files: int) -> None:
    pytest.importorskip("dask.dataframe")
    where = uri(files)
    assert once(benchmark, lambda: dask_partitions(server, where), files) > 0


class Synthetic:
    """A listing and footers out of thin air: what is left is the planner itself."""

    def __init__(self, objects: int) -> None:
        self.objects = objects
        self._body = small_file(0)

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """Yield objects with keys and ETags that do not compress, as real ones do not."""
        first = datetime.date(2021, 1, 1)
        for number in range(self.objects):
            day = first + datetime.timedelta(days=number * 1000 // self.objects)
            mark = hashlib.md5(str(number).encode()).hexdigest()
            key = f"day={day}/part-{number:07d}-{mark}.parquet"
            yield ObjectInfo(uri_prefix + key, f'"{mark}"', len(self._body))

    def head(self, uri: str) -> ObjectInfo:
        """Find nothing."""
        raise FileNotFoundError(uri)

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        """Yield the same footer each time."""
        for request in requests:
            yield Tail(request.object, self._body[-request.length :])


def peak_megabytes() -> float:
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent held when it forked
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def pack_and_store(objects: int, results: Any) -> None:
    """Plan a synthetic dataset in a process of its own; tell its figures."""
    wall, cpu = time.perf_counter(), time.process_time()
    plan = plan_dataset(PlanRequest("s3://synthetic/t/"), Synthetic(objects)).plan
    stored = len(plan.to_bytes())
    figures = {
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_megabytes": round(peak_megabytes()),
        "stored_bytes": stored,
        "fragments": plan.fragments,
    }
    results.put(figures)


@pytest.mark.benchmark(group="synthetic")
def test_a_hundred_thousand_files_packed_and_stored(benchmark: Any) -> None:
    context = multiprocessing.get_context("spawn")

    def run() -> dict[str, float]:
        results = context.Queue()
        process = context.Process(target=pack_and_store, args=(SYNTHETIC, results))
        process.start()
        found: dict[str, float] = results.get(timeout=120)
        process.join(30)
        return found

    figures = benchmark.pedantic(run, rounds=1, iterations=1)
    benchmark.extra_info.update(figures)
    assert figures["fragments"] == SYNTHETIC
    assert figures["stored_bytes"] < 100 * SYNTHETIC  # a million fragments: well under 100 MB
    # Of the processor, so that a busy machine does not fail it.
    assert figures["cpu_seconds"] < SECONDS
    assert figures["peak_megabytes"] < MEGABYTES
