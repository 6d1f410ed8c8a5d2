"""One batch: chunks fail alone, completions are stored as they come, and nothing is left open."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import stamina

from partitioning import Plan
from pipeline.config.settings import Settings
from pipeline.errors import (
    ObjectChangedError,
    ObjectMissingError,
    TransformError,
    TransientStorageError,
)
from pipeline.runs.ledger.keys import output_uri
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.transforms.loading import Transform
from pipeline.runs.worker import batch
from pipeline.runs.worker.batch import Batch, BatchAttempt
from pipeline.runs.worker.chunk import RunContext, apply, encode, types_text
from pipeline.runs.worker.memory import DEFAULT_AHEAD_BYTES, WorkerMemory
from pipeline.storage import Storage, Tables
from pipeline.table.keys import run_of_key
from tests.support.faulty_storage import Faulty, Script, each
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.runs_by_hand import INPUT, OUTPUT, Run, job_of, parquet, plan_of, run_of

PLAN = plan_of(6)
ALL = Batch("r1-00001", "0-6")


def nothing_wrong(number: int, name: str) -> None:
    return None


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass is tried again at once."""
    retry = stamina.retry_context
    waits: dict[str, Any] = {"wait_initial": 0.0, "wait_max": 0.0, "wait_jitter": 0.0}
    monkeypatch.setattr(stamina, "retry_context", lambda **a: retry(**(a | waits)))


def double(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.select(pl.col("id") * 2)


class Case:
    """A batch over objects in memory."""

    def __init__(
        self,
        call: Callable[..., Any] = double,
        script: Script = nothing_wrong,
        settings: dict[str, Any] | None = None,
        plan: Plan = PLAN,
        **job: Any,
    ) -> None:
        self.backend = MemoryBackend()
        for number in range(len(plan)):
            self.backend.put(f"{INPUT}{number:03d}.parquet", parquet(2 * number, 2))
        self.run: Run = run_of(self.backend.storage(), plan)
        self.faulty = Faulty(self.backend, script)
        storage = Storage({"s3": self.faulty}, AT_ONCE)
        self.context = RunContext(
            storage=storage,
            settings=Settings.model_validate(settings or {}),
            ledger=Ledger(storage, OUTPUT, self.run.ledger.run),
            record=self.run.record,
            job=job_of(**job),
            plan=plan,
            transform=Transform("module:function", "code", call),
            code="code",
            schema=plan.dtypes,
            row_filter=None,
            tables=Tables(),
        )

    def map(self, batch: Batch = ALL) -> batch.BatchResult:
        return BatchAttempt(self.context, batch, "worker").run()

    def staged(self) -> dict[int, list[int]]:
        """The ids staged for each chunk that the ledger calls done."""
        uploads = self.backend.uploads
        done = self.run.again(self.backend.storage()).ledger.read().completions
        found = {}
        for index, upload in zip(done["index"], done["upload"], strict=True):
            found[index] = pl.read_parquet(io.BytesIO(uploads[upload][1]))["id"].to_list()
        return found

    def failures(self) -> pl.DataFrame:
        return self.run.again(self.backend.storage()).ledger.read().failed()


@pytest.mark.parametrize("prefetch", [True, False])
def test_every_chunk_of_a_batch_is_mapped(prefetch: bool) -> None:
    case = Case(settings={"reading": {"prefetch": prefetch}})
    result = case.map(Batch("b", "0-2,4-6"))
    assert (result.done, result.failed, result.rows_in, result.rows_out) == (4, 0, 8, 8)
    assert case.staged() == {n: [4 * n, 4 * n + 2] for n in (0, 1, 4, 5)}
    assert result.bytes_in == sum(
        case.backend.head(f"{INPUT}{n:03d}.parquet").size for n in (0, 1, 4, 5)
    )


@pytest.mark.parametrize("prefetch", [True, False])
def test_bad_chunks_fail_alone(prefetch: bool) -> None:
    def picky(frame: pl.LazyFrame) -> pl.LazyFrame:
        if frame.collect()["id"][0] in (2, 6):
            raise ValueError("not these")
        return frame

    case = Case(picky, settings={"reading": {"prefetch": prefetch}})
    result = case.map()
    assert (result.done, result.failed) == (4, 2)
    assert sorted(case.staged()) == [0, 2, 4, 5]
    failed = case.failures()
    assert failed["index"].to_list() == [1, 3]
    assert failed["error"].unique().to_list() == ["TransformError"]
    assert failed["message"].str.contains("ValueError: not these").all()
    assert failed["trace"].str.contains("picky").all()
    assert not failed["transient"].any()


@pytest.mark.parametrize("lazily", [False, True], ids=["called", "collected"])
@pytest.mark.parametrize("kind", [pl.exceptions.PanicException, SystemExit, GeneratorExit])
def test_a_chunk_fails_alone_whatever_its_transform_raises(
    kind: type[BaseException], lazily: bool
) -> None:
    def picky(frame: pl.LazyFrame) -> pl.LazyFrame:
        def check(some: pl.DataFrame) -> pl.DataFrame:
            if some["id"][0] in (2, 6):
                raise kind("not these")
            return some

        return frame.map_batches(check) if lazily else check(frame.collect()).lazy()

    case = Case(picky)
    result = case.map()
    assert (result.done, result.failed) == (4, 2)
    failed = case.failures()
    assert failed["index"].to_list() == [1, 3]
    assert failed["error"].unique().to_list() == ["TransformError"]
    assert failed["message"].str.contains(f"module:function raised {kind.__name__}: not").all()
    assert not failed["transient"].any()


def test_a_chunk_whose_message_is_no_utf_8_fails_alone() -> None:
    def picky(frame: pl.LazyFrame) -> pl.LazyFrame:
        if frame.collect()["id"][0] == 2:
            raise ValueError("no file caf\udce9")
        return frame

    case = Case(picky)
    assert case.map().done == 5
    assert case.failures()["message"].to_list() == [
        "module:function raised ValueError: no file caf\\udce9"
    ]


def test_ctrl_c_ends_the_batch() -> None:
    def interrupted(frame: pl.LazyFrame) -> pl.LazyFrame:
        signal.raise_signal(signal.SIGINT)
        return frame

    case = Case(interrupted)
    with pytest.raises(KeyboardInterrupt):
        case.map()
    assert case.failures().is_empty()


def test_memory_of_results_is_free_after_a_batch_that_ends_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All batches of a process share it."""
    ends = Event()

    def interrupted(frame: pl.LazyFrame) -> pl.LazyFrame:
        if frame.collect()["id"][0] == 4:
            ends.set()
            signal.raise_signal(signal.SIGINT)
        return frame

    case, memory = Case(interrupted), WorkerMemory(0)
    case.context.uploads.chunks = 8
    stage = case.backend.stage

    def slow(*args: Any, **more: Any) -> Any:
        ends.wait(10)
        return stage(*args, **more)

    monkeypatch.setattr(case.backend, "stage", slow)
    with pytest.raises(KeyboardInterrupt):
        BatchAttempt(case.context, ALL, "worker", memory=memory).run()
    assert memory.reserve(DEFAULT_AHEAD_BYTES)


def test_a_chunk_whose_result_cannot_be_written_fails_alone() -> None:
    def odd(frame: pl.LazyFrame) -> pl.LazyFrame:
        rows = frame.collect()
        objects = pl.Series("o", [object()] * rows.height, dtype=pl.Object)
        return rows.with_columns(objects).lazy() if rows["id"][0] == 2 else frame

    case = Case(odd)
    assert case.map().done == 5
    failed = case.failures()
    assert failed["index"].to_list() == [1]
    assert failed["message"].to_list() == ["column 'o' has Python objects, not a type of Parquet"]


def test_a_chunk_whose_schema_is_too_large_for_the_ledger_fails_alone() -> None:
    names = [f"a category of many: {number:08d}" for number in range(40_000)]

    def wide(frame: pl.LazyFrame) -> pl.LazyFrame:
        if frame.collect()["id"][0] != 2:
            return frame
        return frame.with_columns(kind=pl.lit(names[0], dtype=pl.Enum(names)))

    case = Case(wide)
    assert case.map().done == 5
    assert case.faulty.calls.count("stage") == 5
    assert sorted(case.staged()) == [0, 2, 3, 4, 5]
    [failed] = case.failures().iter_rows(named=True)
    assert (failed["index"], failed["transient"]) == (1, False)
    assert "largest column is 'kind', whose name and type have 1," in failed["message"]
    assert "(Enum(categories=['a category of many: 00000000'" in failed["message"]


def test_many_columns_are_too_large_for_the_ledger() -> None:
    columns = {f"column number {number}": pl.Int64() for number in range(40_000)}
    with pytest.raises(TransformError, match="'column number 10000', whose name and type have 24"):
        types_text(pl.Schema(columns))
    few = dict(list(columns.items())[:20_000])
    assert len(json.loads(types_text(pl.Schema(few)))) == 20_000


@pytest.mark.parametrize("name", ["get_ranges", "stage"])
def test_a_panic_beside_the_transform_is_its_chunks(name: str) -> None:
    case = Case()
    work = getattr(case.backend, name)

    def panicking(first: Any, *rest: Any) -> Any:
        if "002" in str(first) or "0000002" in str(first):
            raise pl.exceptions.PanicException("index out of bounds")
        return work(first, *rest)

    setattr(case.backend, name, panicking)
    result = case.map()
    assert (result.done, result.failed) == (5, 1)
    assert case.failures().select("index", "error").rows() == [(2, "PanicException")]


def test_a_batch_that_runs_again_leaves_alone_what_is_settled() -> None:
    case = Case()
    case.map(Batch(ALL.name, "0-3"))
    case.context.ledger.write_segment(f"{ALL.name}-x-0001", [case.run.failure(4, time.time())])
    case.faulty.calls.clear()
    assert case.map().done == 2
    assert case.faulty.calls.count("stage") == 2
    assert sorted(case.staged()) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        (BatchAttempt, [0]),
        (batch.SlicingBatchAttempt, [0]),
        (batch.ReducingBatchAttempt, []),
        (batch.SeveralOutputsBatchAttempt, []),
    ],
)
def test_a_chunk_that_hangs_leaves_what_may_be_stored_alone(
    monkeypatch: pytest.MonkeyPatch, kind: type[BatchAttempt], done: list[int]
) -> None:
    """A partial, or the completions for other outputs, are not stored while a chunk hangs."""
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    case = Case(chunk_timeout=1.0)
    attempt = kind(case.context, ALL, "worker")
    attempt.entries = [case.run.completion(0), case.run.failure(1, time.time())]
    attempt._exit_on_timeout(PLAN.chunk(2))
    assert exits == [batch.TIMEOUT_EXIT]
    progress = case.run.again(case.backend.storage()).ledger.read()
    assert progress.completions["index"].to_list() == done
    assert progress.failures["index"].to_list() == [1, 2]


@pytest.mark.parametrize(("flush", "segments"), [(1, 6), (2, 3), (100, 1)])
def test_completions_are_stored_in_groups(flush: int, segments: int) -> None:
    case = Case(settings={"batches": {"flush_chunks": flush, "flush_seconds": 1000}})
    assert case.map().done == 6
    assert case.faulty.calls.count("put_new") == segments


@pytest.mark.parametrize(
    ("chunks", "waited", "segments"), [(24, 1.0, 0), (24, 3.0, 8), (24, 21.0, 24), (6, 3.0, 6)]
)
def test_a_long_batch_is_stored_an_eighth_at_a_time(
    chunks: int, waited: float, segments: int
) -> None:
    """Unless its chunks take ten times as long as completions are to wait (2 s)."""
    case = Case(plan=plan_of(chunks))
    attempt = BatchAttempt(case.context, Batch("b", f"0-{chunks}"), "worker")
    for index in range(chunks):
        attempt.entries.append(case.run.completion(index))
        attempt.flushed = time.monotonic() - waited
        attempt.flush_if_due()
    assert case.faulty.calls.count("put_new") == segments


@pytest.mark.parametrize(
    ("what", "error"), [("changed", ObjectChangedError), ("gone", ObjectMissingError)]
)
def test_an_input_that_is_not_the_planned_one_is_a_failure_by_name(
    what: str, error: type[Exception]
) -> None:
    case = Case()
    uri = f"{INPUT}003.parquet"
    case.backend.delete(uri)
    if what == "changed":
        case.backend.put(uri, parquet(100, 2))
    assert (case.map().done, case.map(Batch("again", "3-4")).done) == (5, 0)
    failed = case.failures()
    assert failed["error"].to_list() == [error.__name__]
    assert uri in failed["message"][0]


@pytest.mark.parametrize("name", ["get_ranges", "stage"])
def test_what_passes_in_time_is_waited_out(name: str) -> None:
    times = AT_ONCE.attempts * 2  # more than one operation's own patience
    case = Case(script=each(name, times, "before"), retries=3)
    assert case.map().done == 6
    assert case.failures().is_empty()


@pytest.mark.parametrize("name", ["get_ranges", "stage"])
def test_what_does_not_pass_is_left_to_the_next_round(name: str) -> None:
    case = Case(script=each(name, 10_000, "before"), retries=1)
    result = case.map(Batch("b", "0-2"))
    assert (result.done, result.failed) == (0, 2)
    failed = case.failures()
    assert failed["transient"].all()
    assert failed["error"].unique().to_list() == ["TransientStorageError"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="there is no /proc to look at")
@pytest.mark.parametrize("prefetch", [True, False])
def test_a_batch_that_cannot_store_its_completions_ends_and_holds_nothing(prefetch: bool) -> None:
    pl.LazyFrame({"a": [1]}).collect(engine="streaming")
    settings = {"batches": {"flush_chunks": 1}, "reading": {"prefetch": prefetch}}
    case = Case(script=each("put_new", 10_000, "before"), settings=settings)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TransientStorageError):
        case.map()
    assert len(os.listdir("/proc/self/fd")) == before


# -- one chunk --------------------------------------------------------------------------------


def transform(call: Callable[..., Any]) -> Transform:
    return Transform("module:function", "code", call)


@pytest.mark.parametrize("result", [None, pl.DataFrame({"a": [1]}), 3])
def test_a_transform_returns_a_lazy_frame(result: object) -> None:
    with pytest.raises(TransformError, match=f"returned {type(result).__name__}, not a LazyFrame"):
        apply(transform(lambda frame: result), pl.LazyFrame())


def test_what_a_transform_raises_is_its_own() -> None:
    with pytest.raises(TransformError, match="module:function raised ColumnNotFoundError"):
        apply(transform(lambda frame: frame.select("b")), pl.LazyFrame({"a": [1]}))


def test_the_key_of_an_output() -> None:
    run, attempt = "0123456789abcdef", "fedcba98" + "0" * 24
    assert output_uri(OUTPUT, run, PLAN.chunk(4), attempt) == (
        f"{OUTPUT}part-0000004-{run}-fedcba98.parquet"
    )
    plan = plan_of(2, folders=(3,))
    uri = output_uri(OUTPUT, run, plan.chunk(1), attempt)
    assert uri.startswith(f"{OUTPUT}k=3/part-0000001-")
    assert run_of_key(uri) == run


@pytest.mark.parametrize("compression", ["zstd", "snappy", "uncompressed"])
def test_outputs_are_written_as_the_job_says(compression: str) -> None:
    output = {"compression": compression, "row_group_rows": 3}
    frame = pl.DataFrame({"id": range(10), "k": [1] * 10})
    job = job_of()
    job = job.model_copy(update={"output": job.output.model_copy(update=output)})
    data = bytes(encode(frame.drop("k"), job)[0])
    metadata = pq.read_metadata(io.BytesIO(data))
    assert metadata.num_row_groups == 4
    assert metadata.row_group(0).column(0).compression.lower() == compression
    assert pl.read_parquet(io.BytesIO(data)).equals(frame.drop("k"))


def test_a_completion_counts_what_was_tried_again() -> None:
    case = Case(script=each("get_ranges", 2, "before"), retries=0)
    assert case.map().done == 6
    done = case.run.again(case.backend.storage()).ledger.read().completions
    assert done["retries"].sum() == 2
    assert (done["memory"] > 0).all() and (done["encode_seconds"] > 0).all()
    assert (done["encode_seconds"] <= done["compute_seconds"]).all()
