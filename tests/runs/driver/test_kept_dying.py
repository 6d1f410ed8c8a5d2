"""Files that keep columns: any request may be the last of a process, or its reply may be lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.config.job import Job
from pipeline.errors import ObjectChangedError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker import chunk
from pipeline.storage import Storage
from tests.support.faulty_storage import Fault, Faulty, KilledError, Script, dies_at, each
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.small import Small

CODE = """
import polars as pl

def doubled(frame):
    return frame.select(twice=pl.col("n") * 2)
"""
INPUT, OUTPUT = "s3://in/t/", "s3://out/t/"
FILES, ROWS = 3, 20
WHOLE = pl.DataFrame({"n": range(FILES * ROWS)}).with_columns(text=pl.format("row {}", "n"))
EXPECTED = WHOLE.with_columns(twice=pl.col("n") * 2)


class Case:
    """A job over objects in memory, and processes that run it."""

    def __init__(self, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
        self.small, self.patch = small, monkeypatch
        self.backend = MemoryBackend()
        for number in range(FILES):
            self.put(number, WHOLE[number * ROWS : (number + 1) * ROWS])

    def put(self, number: int, frame: pl.DataFrame) -> None:
        buffer = io.BytesIO()
        frame.write_parquet(buffer, row_group_size=8)
        self.backend.put(f"{INPUT}{number}.parquet", buffer.getvalue())

    @property
    def job(self) -> Job:
        output = {"uri": OUTPUT, "mode": "error", "keep": "all"}
        return self.small.job("doubled", input={"uri": INPUT}, output=output, retries=0)

    def run(self, script: Script = lambda n, name: None) -> list[str]:
        """Run the job as another process does; return its requests."""
        faulty = Faulty(self.backend, script, KilledError)
        self._run(faulty)
        return faulty.calls

    def run_with(self, script: Script) -> list[str]:
        """Run the job; requests fail by script, and the process continues."""
        faulty = Faulty(self.backend, script)
        self._run(faulty)
        return faulty.calls

    def _run(self, faulty: Faulty) -> None:
        storage = Storage({"s3": faulty}, AT_ONCE)
        chunk.open_run.cache_clear()
        self.patch.setattr(chunk, "own_storage", lambda: storage)
        run_serially(self.job, self.small.settings, storage, ResumeOptions(take_over=True))

    @property
    def storage(self) -> Storage:
        return Storage({"s3": self.backend})

    @property
    def ledger(self) -> Ledger:
        [record] = runs_of(self.storage, OUTPUT)
        return Ledger(self.storage, OUTPUT, record.run)

    def check(self) -> None:
        """The output has each row once, in order, and nothing is left over."""
        uris = sorted(info.uri for info in self.backend.objects(OUTPUT))
        frames = [pl.read_parquet(io.BytesIO(self.backend.get(uri).data)) for uri in uris]
        assert_frame_equal(pl.concat(frames), EXPECTED)
        assert verify_output(self.storage, OUTPUT).problems == ()
        assert list(self.backend.staged_under(OUTPUT, "")) == []


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(tmp_path)
    # Most of what a run of a few rows takes.
    monkeypatch.setattr("pipeline.runs.driver.report.render_html", lambda report: "")
    small = Small(tmp_path, CODE)
    with (tmp_path / "conf" / "base.yaml").open("a") as file:
        file.write("batches: {max_chunks: 1}\n")
    return Case(small, monkeypatch)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_any_request_may_be_the_last(case: Case, fault: Fault) -> None:
    requests = len(Case(case.small, case.patch).run())
    for number in instants(requests, fault):
        again = Case(case.small, case.patch)
        with pytest.raises(BaseException):  # noqa: B017
            again.run(dies_at(number, fault))
        again.run()
        vacuum(again.storage, OUTPUT, older_than=0.0)
        again.check()


@pytest.mark.parametrize("name", ["extend", "put_new", "get_ranges", "complete", "put_if"])
def test_the_reply_to_a_request_is_lost(case: Case, name: str) -> None:
    calls = case.run_with(each(name, 3, "after"))
    assert name in calls
    vacuum(case.storage, OUTPUT, older_than=0.0)  # A retry may leave a staged object.
    case.check()


def test_a_copy_that_never_succeeds_fails_its_chunk_alone(case: Case) -> None:
    """The other files are staged, and are not made again."""
    tries, most = 0, 2 * AT_ONCE.attempts  # A result is staged once more after transient errors.

    def fails(number: int, name: str) -> Fault:
        nonlocal tries
        tries += name == "extend"
        return "before" if name == "extend" and tries <= most else None

    with pytest.raises(RunIncompleteError):
        case.run_with(fails)
    assert case.ledger.read().failures["transient"].to_list() == [True]
    assert list(case.backend.objects(OUTPUT)) == []
    assert case.run().count("extend") == 1
    case.check()


def test_a_file_that_is_replaced_before_it_is_copied(case: Case) -> None:
    """The chunk fails, and nothing is published; the next plan has the new version."""

    def replace(number: int, name: str) -> Fault:
        if name == "extend":
            case.put(1, WHOLE[ROWS : 2 * ROWS].with_columns(n=pl.col("n") + 1000))
        return None

    with pytest.raises(RunIncompleteError):
        case.run_with(replace)
    errors: list[Any] = case.ledger.read().failures["error"].to_list()
    assert ObjectChangedError.__name__ in errors
    assert list(case.backend.objects(OUTPUT)) == []
