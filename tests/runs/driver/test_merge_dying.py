"""A merge is interrupted: any request may be the last of a process, or its reply may be lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.config.job import Job
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Progress
from pipeline.runs.worker import chunk
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from tests.support.faulty_storage import Faulty, KilledError, Script, dies_at, each
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.small import Small

CODE = """
def same(frame):
    return frame
"""
INPUT, OUTPUT = "s3://in/t/", "s3://out/t/"
CHUNKS, ROWS = 3, 20
WHOLE = pl.DataFrame({"n": range(CHUNKS * ROWS)}).with_columns(k=pl.col("n") % 2)


class Case:
    """A job over objects in memory, and processes that run it."""

    def __init__(self, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
        self.small, self.patch = small, monkeypatch
        self.backend = MemoryBackend()
        for number in range(CHUNKS):
            buffer = io.BytesIO()
            WHOLE[number * ROWS : (number + 1) * ROWS].write_parquet(buffer)
            self.backend.put(f"{INPUT}{number}.parquet", buffer.getvalue())

    @property
    def job(self) -> Job:
        layout = {"uri": OUTPUT, "mode": "error", "partition_by": ["k"], "file_bytes": 300}
        return self.small.job(input={"uri": INPUT}, output=layout)

    def run(self, script: Script = lambda n, name: None) -> tuple[RunSummary, list[str]]:
        """Run the job as another process does; return its summary and its requests."""
        faulty = Faulty(self.backend, script, KilledError)
        return self._run(faulty), faulty.calls

    def run_with(self, script: Script) -> tuple[RunSummary, list[str]]:
        """Run the job; requests fail by script, and the process goes on."""
        faulty = Faulty(self.backend, script)
        return self._run(faulty), faulty.calls

    def _run(self, faulty: Faulty) -> RunSummary:
        storage = Storage({"s3": faulty}, AT_ONCE)
        chunk.open_run.cache_clear()
        self.patch.setattr(chunk, "own_storage", lambda: storage)
        return run_serially(self.job, self.small.settings, storage, ResumeOptions(take_over=True))

    @property
    def progress(self) -> Progress:
        [record] = runs_of(self.storage, OUTPUT)
        return Ledger(self.storage, OUTPUT, record.run).read()

    @property
    def storage(self) -> Storage:
        return Storage({"s3": self.backend})

    def check(self) -> None:
        """The output has each row once, in order, and nothing is left over."""
        table_log = TableLog(self.storage, OUTPUT)
        files = table_log.snapshot(table_log.manifest())
        stored = {info.uri.removeprefix(OUTPUT): info for info in self.backend.objects(OUTPUT)}
        assert stored.keys() == set(files["key"])
        for k in range(2):
            own = [key for key in sorted(stored) if key.startswith(f"k={k}/")]
            assert len(own) > 1
            frames = [
                pl.read_parquet(io.BytesIO(self.backend.get(OUTPUT + key).data)) for key in own
            ]
            assert_frame_equal(pl.concat(frames), WHOLE.filter(pl.col("k") == k).select("n"))
        left = [info.uri for info in self.backend.objects("s3://out/t.chunkmap/")]
        assert not [uri for uri in left if "/partials/" in uri or "/staged/" in uri]
        assert TableLog(self.storage, OUTPUT).head()[0].publishing is None


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(tmp_path)
    # Most of what a run of a few rows takes.
    monkeypatch.setattr("pipeline.runs.driver.report.render_html", lambda report: "")
    small = Small(tmp_path, CODE)
    with (tmp_path / "conf" / "base.yaml").open("a") as file:
        file.write("batches: {max_chunks: 1}\n")  # Each file's completion is stored at once.
    return Case(small, monkeypatch)


def test_nothing_goes_wrong(case: Case) -> None:
    case.run()
    case.check()
    assert case.progress.merged.height == case.progress.merged["index"].n_unique() >= 4


@pytest.mark.parametrize("fault", ["before", "after"])
def test_any_request_may_be_the_last(case: Case, fault: Any) -> None:
    requests = len(Case(case.small, case.patch).run()[1])
    first = requests // 4  # Planning is not changed by layouts.
    for number in instants(requests, "merge", fault, step=16):
        if number < first:
            continue
        again = Case(case.small, case.patch)
        with pytest.raises(BaseException):  # noqa: B017
            again.run(dies_at(number, fault))
        merged = set(again.progress.merged["index"]) if runs_of(again.storage, OUTPUT) else set()
        _, calls = again.run()
        vacuum(again.storage, OUTPUT)  # A process may end between publishing and cleaning up.
        again.check()
        if merged:  # Only files without a completion are merged again.
            done = again.progress.merged
            assert done.filter(pl.col("index").is_in(list(merged))).height == len(merged)
            assert calls.count("stage") == done["index"].n_unique() - len(merged)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["stage", "put_new", "get_ranges", "complete", "put_if"])
def test_the_reply_to_a_request_is_lost(case: Case, name: str) -> None:
    _, calls = case.run_with(each(name, 3, "after"))
    assert name in calls
    case.check()


def test_partial_results_that_are_lost_are_mapped_again(case: Case) -> None:
    calls = Case(case.small, case.patch).run()[1]
    died = calls.index("stage") + 2
    with pytest.raises(BaseException):  # noqa: B017
        case.run(dies_at(died, "before"))
    partials = sorted(info.uri for info in case.backend.objects("s3://out/t.chunkmap/runs/"))
    partials = [uri for uri in partials if "/partials/" in uri]
    assert len(partials) == CHUNKS
    case.backend.delete(partials[1])
    case.run()
    case.check()
    assert case.progress.completions.height == CHUNKS


def test_merged_files_that_are_lost_are_merged_again(case: Case) -> None:
    calls = Case(case.small, case.patch).run()[1]
    with pytest.raises(BaseException):  # noqa: B017
        case.run(dies_at(len(calls) - calls[::-1].index("stage"), "after"))
    staged = case.backend.staged_under(OUTPUT, "s3://out/t.chunkmap/staged/")
    case.backend.abort(list(staged)[:2])
    _, again = case.run()
    case.check()
    assert again.count("stage") >= 2


def test_a_completion_that_the_plan_does_not_explain_does_not_count(case: Case) -> None:
    """What workers write is untrusted: another folder, another number, more rows."""
    case.run()
    [record] = runs_of(case.storage, OUTPUT)
    ledger = Ledger(case.storage, OUTPUT, record.run)
    [plan] = ledger.merge_plans()
    merged = ledger.read().merged
    assert plan.done(merged, OUTPUT, record.run).height == plan.files.height
    elsewhere = merged.with_columns(pl.col("uri").str.replace("k=0", "k=1"))
    moved = merged["uri"].str.contains("k=0").sum()
    assert plan.done(elsewhere, OUTPUT, record.run).height == plan.files.height - moved
    shifted = merged.with_columns(pl.col("index") + 1)
    assert plan.done(shifted, OUTPUT, record.run).is_empty()
