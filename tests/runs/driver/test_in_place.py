"""Jobs whose input is their own output: files get columns where they are, once."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from pipeline.config.job import Job
from pipeline.errors import ChunkmapError, ConflictError, JobError, UsageError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.plan import WindowSelection, draft
from pipeline.runs.backfill.records import Options
from pipeline.runs.driver.plan import ResumeOptions, plan_input, plan_run
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.worker import chunk
from pipeline.storage import Storage
from pipeline.table.adopt import adopt
from pipeline.table.errors import CommitsConflictError
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from pipeline.table.retention import locate
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, dies_at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.small import Small

CODE = """
import polars as pl

def raised(frame):
    return frame.select(pl.col("price") + 1)

def longer(frame):
    return frame.select(pl.col("text") + "!")

def twice(frame):
    return frame.select(twice=pl.col("price") * 2)
"""
OTHER_CODE = CODE.replace("+ 1", "+ 10")
PLACE = "s3://out/t/"
FILES, ROWS = 3, 20


def month(number: int) -> pl.DataFrame:
    """The rows of one file."""
    ids = pl.Series("n", range(number * ROWS, (number + 1) * ROWS))
    return pl.DataFrame({"n": ids, "price": ids * 10, "text": ids.cast(pl.String)})


def raised(*numbers: int, by: int = 1) -> pl.DataFrame:
    """The rows of some files, with raised prices."""
    return pl.concat(map(month, numbers)).with_columns(pl.col("price") + by)


class Case:
    """Files in memory, and processes that run jobs on them."""

    def __init__(self, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
        self.small, self.patch = small, monkeypatch
        self.backend = MemoryBackend()
        for number in range(FILES):
            self.put(number)

    def put(self, number: int, key: str = "") -> None:
        buffer = io.BytesIO()
        month(number).write_parquet(buffer, row_group_size=8)
        self.backend.put(f"{PLACE}{key or f'k={number}/all.parquet'}", buffer.getvalue())

    def job(self, function: str = "raised", mode: str = "overwrite-partitions", **more: Any) -> Job:
        output = {"uri": PLACE, "mode": mode, "keep": "all"} | more.pop("output", {})
        source = {"uri": PLACE} | more.pop("input", {})
        return self.small.job(function, input=source, output=output, **more)

    def run(
        self, job: Job | None = None, script: Script = lambda n, name: None, **resume: Any
    ) -> RunSummary:
        """Run a job as another process does."""
        return self._run(job or self.job(), Faulty(self.backend, script, KilledError), resume)

    def _run(self, job: Job, faulty: Faulty, resume: dict[str, Any]) -> RunSummary:
        storage = Storage({"s3": faulty}, AT_ONCE)
        chunk.open_run.cache_clear()
        self.patch.setattr(chunk, "own_storage", lambda: storage)
        options = ResumeOptions(take_over=True, **resume)
        return run_serially(job, self.small.settings, storage, options)

    def requests(self) -> int:
        faulty = Faulty(self.backend, lambda n, name: None, KilledError)
        self._run(self.job(), faulty, {})
        return len(faulty.calls)

    @property
    def storage(self) -> Storage:
        return Storage({"s3": self.backend}, AT_ONCE)

    @property
    def table_log(self) -> TableLog:
        return TableLog(self.storage, PLACE)

    @property
    def version(self) -> int:
        return self.table_log.head()[0].current

    def adopt(self) -> None:
        adopt(self.storage, PLACE)

    def rows(self, version: int | None = None) -> pl.DataFrame:
        """The rows of a version, by its files."""
        table_log = self.table_log
        places = locate(table_log, table_log.manifest(version)).values()
        frames = [pl.read_parquet(io.BytesIO(self.backend.get(uri).data)) for uri in places]
        return pl.concat(frames).sort("n")

    def check(self, expected: pl.DataFrame) -> None:
        """A plain glob sees these rows once, as the manifest does."""
        uris = [info.uri for info in self.backend.objects(PLACE)]
        frames = [pl.read_parquet(io.BytesIO(self.backend.get(uri).data)) for uri in uris]
        assert_frame_equal(pl.concat(frames).sort("n"), expected)
        assert_frame_equal(self.rows(), expected)
        assert verify_output(self.storage, PLACE).problems == ()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(tmp_path)
    # Most of what a run of a few rows takes.
    monkeypatch.setattr("pipeline.runs.driver.report.render_html", lambda report: "")
    return Case(Small(tmp_path, CODE), monkeypatch)


@pytest.mark.parametrize("mode", ["overwrite", "overwrite-partitions"])
def test_a_column_is_added_in_place_and_rolled_back(case: Case, mode: str) -> None:
    case.adopt()
    whole = pl.concat(map(month, range(FILES)))
    expected = whole.with_columns(twice=pl.col("price") * 2)
    case.run(case.job("twice", mode))
    case.check(expected)
    vacuum(case.storage, PLACE, older_than=0.0)
    rollback(case.table_log)
    case.check(whole)
    # The version without the column is the input of a run of its own.
    case.run(case.job("twice", mode))
    case.check(expected)
    assert case.version == 4


def test_the_same_command_again_does_nothing(case: Case) -> None:
    case.adopt()
    first = case.run()
    before = {uri for uri in case.backend.stored if uri.startswith(PLACE)}
    again = case.run()
    assert (again.run, again.manifest) == (first.run, 2)
    assert any("there is nothing to do" in note for note in again.notes)
    assert {uri for uri in case.backend.stored if uri.startswith(PLACE)} == before
    with pytest.raises(UsageError, match="there is nothing to do"):
        plan_input(case.job(), case.small.settings, case.storage)
    case.check(raised(0, 1, 2))


def test_a_renamed_column_is_not_missed_when_the_command_is_repeated(case: Case) -> None:
    case.adopt()
    job = case.job("twice", output={"rename": {"text": "name"}})
    first = case.run(job)
    assert case.run(job).run == first.run


@pytest.mark.parametrize("mode", ["overwrite", "overwrite-partitions"])
def test_two_jobs_in_turn_do_their_work_once(case: Case, mode: str) -> None:
    """Files of the second have what the first has made, so that it has nothing to do."""
    case.adopt()
    jobs = [case.job("raised", mode), case.job("longer", mode)]
    first, _ = [case.run(job) for job in jobs]
    again = case.run(jobs[0])
    assert again.run == first.run
    assert not any("rollback" in note for note in again.notes)
    case.run(jobs[1])
    assert case.version == 3
    case.put(3)
    case.adopt()
    if mode == "overwrite-partitions":
        for job in [*jobs, *jobs]:
            case.run(job)
        assert case.version == 6
        case.check(raised(0, 1, 2, 3).with_columns(pl.col("text") + "!"))


def test_a_rebuild_or_other_code_maps_again(case: Case) -> None:
    case.adopt()
    case.run()
    case.run(rebuild=True)
    case.check(raised(0, 1, 2, by=2))
    case.small.code(OTHER_CODE)
    case.run()
    case.check(raised(0, 1, 2, by=12))


def test_after_a_rollback_the_same_command_runs_again(case: Case) -> None:
    case.adopt()
    first = case.run()
    rollback(case.table_log)
    assert case.run().run != first.run
    case.check(raised(0, 1, 2))


@pytest.mark.parametrize("fault", ["before", "after"])
def test_any_request_may_be_the_last(case: Case, fault: Fault) -> None:
    """Prices are raised once, whatever happens: they are made of themselves."""
    case.adopt()
    requests = case.requests()
    for number in instants(requests, fault):
        again = Case(case.small, case.patch)
        again.adopt()
        # The last requests may be those of a thread, whose end nobody sees.
        with suppress(KilledError, ChunkmapError):
            again.run(script=dies_at(number, fault))
        again.run()
        again.run()
        vacuum(again.storage, PLACE, older_than=0.0)
        again.check(raised(0, 1, 2))
        assert again.version == 2
        assert_frame_equal(again.rows(1), pl.concat(map(month, range(FILES))))


def test_folders_adopted_later_are_mapped_alone(case: Case) -> None:
    case.adopt()
    case.run()
    case.put(3)
    case.adopt()
    with pytest.raises(UsageError, match="would be mapped again"):
        case.run(case.job(mode="overwrite"))
    case.run()
    case.check(raised(0, 1, 2, 3))


def test_a_folder_with_both_is_refused(case: Case) -> None:
    case.adopt()
    case.run()
    case.put(3, "k=0/more.parquet")
    case.adopt()
    with pytest.raises(UsageError, match="k=0 has both") as caught:
        case.run()
    assert "--rebuild" in str(caught.value.hint)


def test_what_is_not_adopted_is_refused(case: Case) -> None:
    before = dict(case.backend.stored)
    with pytest.raises(UsageError, match="lie within each other") as caught:
        case.run()
    assert f"chunkmap adopt {PLACE}" in str(caught.value.hint)
    assert case.backend.stored == before
    case.adopt()
    case.put(3)
    with pytest.raises(UsageError, match="did not publish") as caught:
        case.run()
    assert f"chunkmap adopt {PLACE}" in str(caught.value.hint)


@pytest.mark.parametrize(
    "changes",
    [
        {"output": {"mode": "append"}},
        {"output": {"mode": "error"}},
        {"input": {"uri": f"{PLACE}k=0/"}},
        {"input": {"uri": f"{PLACE}k=*/"}},
        {"output": {"keep": None}},
        {"output": {"uri": f"{PLACE}k=0/"}},
    ],
)
def test_other_jobs_that_read_their_output_are_refused(case: Case, changes: dict[str, Any]) -> None:
    case.adopt()
    with pytest.raises((ValidationError, UsageError), match="the next run would read"):
        case.run(case.job(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"input": {"exclude": ["k=0/*"]}},
        {"input": {"include": ["all.parquet"]}},
        {"input": {"changed_only": True}},
        {"output": {"keep_versions": 0}},
    ],
)
def test_jobs_that_would_leave_rows_out_are_refused(case: Case, changes: dict[str, Any]) -> None:
    case.adopt()
    [(section, values)] = changes.items()
    with pytest.raises(JobError) as caught:
        case.run(case.job(**changes))
    assert f"{section}.{next(iter(values))}" in str(caught.value)


def test_files_in_other_folders_are_replaced_together_only(case: Case) -> None:
    """A run writes to folders of Hive partitions, so these files would stay beside its own."""
    for number in range(FILES):
        case.backend.delete(f"{PLACE}k={number}/all.parquet")
        case.put(number, f"2024/{number}.parquet")
    case.adopt()
    with pytest.raises(UsageError, match="would not stay in their folders") as caught:
        case.run()
    assert "output.mode overwrite" in str(caught.value.hint)
    case.run(case.job(mode="overwrite"))
    case.check(raised(0, 1, 2))


def test_a_rollback_during_a_run_is_a_conflict(case: Case) -> None:
    """The run has read files that are no longer current: to publish it would undo the rollback."""
    case.adopt()
    case.run(case.job("twice"))

    def script(number: int, name: str) -> Fault:
        if name == "missing" and case.version == 2:  # It begins to publish.
            rollback(case.table_log)
        return None

    with pytest.raises(CommitsConflictError, match="there was a rollback"):
        case.run(case.job("raised"), script)
    case.check(pl.concat(map(month, range(FILES))))
    with pytest.raises(ConflictError, match="replaced or rolled back since"):
        case.run(case.job("raised"))
    case.run(case.job("raised"), replan=True)
    case.check(raised(0, 1, 2))


def test_a_version_published_while_it_is_planned_is_a_conflict(case: Case) -> None:
    case.adopt()

    def script(number: int, name: str) -> Fault:
        if name == "get_ranges" and case.version == 1:
            case.put(3)
            case.adopt()
        return None

    with pytest.raises(ConflictError, match="was published while the run was planned"):
        case.run(script=script)
    assert runs_of(case.storage, PLACE) == []
    case.run()
    case.check(raised(0, 1, 2, 3))


def test_failed_chunks_cannot_be_left_out(case: Case) -> None:
    case.adopt()
    planned = plan_run(case.job(), case.small.settings, case.storage, ResumeOptions())
    with pytest.raises(UsageError, match="a publish without failed chunks cannot change"):
        publish_run(case.storage, planned.ledger, without_failed=True)


def test_backfills_are_refused(case: Case) -> None:
    case.adopt()
    job = case.job(window={"column": "k", "grain": "value"})
    with pytest.raises(UsageError, match="a backfill cannot change its own input"):
        draft(job, case.small.settings, case.storage, WindowSelection(), Options())


def test_tables_are_refused(case: Case) -> None:
    case.adopt()
    table = {"uri": PLACE, "mode": "overwrite", "table": {"format": "delta"}}
    case.backend.stored["s3://in/t/k=0/all.parquet"] = case.backend.stored[
        f"{PLACE}k=0/all.parquet"
    ]
    job = case.small.job("twice", input={"uri": "s3://in/t/"}, output=table)
    with pytest.raises(UsageError, match="has adopted files, and cannot become a table"):
        case.run(job)
