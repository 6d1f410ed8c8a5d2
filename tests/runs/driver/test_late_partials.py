"""A second copy of a batch stores partials of the same chunks, when these are reduced already."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typing_extensions import override

from pipeline.config.job import Job
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.orchestrator import NoOrchestrator
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import RunDriver
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Completion
from pipeline.runs.worker import reduce
from pipeline.runs.worker.reduce import Step
from tests.support.faulty_storage import KilledError
from tests.support.small import Small

CODE = """
import polars as pl

def partial(lf):
    return lf.group_by("k").agg(n=pl.col("n").sum())

def combine(frames):
    return pl.concat(frames).group_by("k").agg(pl.col("n").sum())

def ordered(lf):
    return lf.sort("k")

def same(lf):
    return lf
"""
FILES, ROWS = 4, 10
WHOLE = pl.DataFrame({"n": range(FILES * ROWS)}).with_columns(k=pl.col("n") % 3)
EXPECTED = WHOLE.group_by("k").agg(pl.col("n").sum()).sort("k")


@dataclass(slots=True)
class Late(NoOrchestrator):
    """Calls a function when the reduce has ended."""

    reduced: Callable[[], None] = lambda: None
    steps: list[Step] = field(default_factory=list)

    @override
    def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
        NoOrchestrator.reduce(self, run_uri, fingerprint, steps)
        self.steps += steps
        if steps[-1].is_last:
            self.reduced()


@dataclass(frozen=True)
class Case:
    """A job of four chunks, the first two in one partial, and its run."""

    small: Small
    job: Job

    @property
    def ledger(self) -> Ledger:
        [path] = (self.small.root / "out.chunkmap" / "runs").iterdir()
        return Ledger(self.small.storage, self.small.output, path.name)

    def run(self, orchestrator: Late) -> RunSummary:
        small, resume = self.small, ResumeOptions(take_over=True)
        planned = plan_run(self.job, small.settings, small.storage, resume)
        driver = RunDriver(self.job, small.settings, small.storage, planned, orchestrator, resume)
        driver.heartbeat.begin(None, time.time())
        return driver.run()

    def store_copy(self, chunks: Sequence[int]) -> None:
        """Store a partial of some chunks, whose name comes before all others."""
        ledger = self.ledger
        rows = [WHOLE[chunk * ROWS : (chunk + 1) * ROWS] for chunk in chunks]
        frame = pl.concat(rows).group_by("k").agg(pl.col("n").sum())
        uri = f"{ledger.prefix}partials/0-late.arrow"
        self.small.storage.put_new(uri, reduce._to_ipc(frame))
        done = [
            replace(completion_of(row), attempt=f"{number:032x}", uri=uri)
            for number, row in enumerate(ledger.read().completions.iter_rows(named=True))
            if row["index"] in chunks
        ]
        ledger.write_segment("0-late-0001", done)

    def check(self, summary: RunSummary) -> None:
        assert (summary.state, summary.chunks) == ("done", FILES)
        assert_frame_equal(self.small.rows().sort("k"), EXPECTED, check_column_order=False)
        assert not verify_output(self.small.storage, self.small.output).problems


def completion_of(row: dict[str, Any]) -> Completion:
    lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
    return Completion(**row | lists)


@pytest.fixture(params=[False, True], ids=["reduce", "then"])
def case(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    with (tmp_path / "conf" / "base.yaml").open("a") as file:
        file.write("batches: {flush_chunks: 2}\n")
    for number in range(FILES):
        small.write(f"{number}.parquet", WHOLE[number * ROWS : (number + 1) * ROWS])
    functions = {"combine": f"{small.module}:combine", "finalize": f"{small.module}:ordered"}
    then = {"function": f"{small.module}:same", "by": ["k"], "max_groups": 1}
    more = {"then": then} if request.param else {}
    return Case(small, small.job("partial", "error", reduce=functions, **more))


SAME, LARGER = (0, 1), (1, 2, 3)
"""Chunks of the first partial; more, of which others would leave chunk 0 to be mapped again."""


@pytest.mark.parametrize("chunks", [SAME, LARGER])
def test_a_copy_that_ends_after_the_reduce_changes_nothing(
    case: Case, chunks: Sequence[int]
) -> None:
    late = Late(reduced=lambda: case.store_copy(chunks))
    summary = case.run(late)
    case.check(summary)
    assert [step.is_last for step in late.steps] == [True], "it is reduced once"
    assert summary.mapped == FILES
    assert case.ledger.read().left(FILES) == []


@pytest.mark.parametrize("chunks", [SAME, LARGER])
def test_the_next_driver_takes_what_was_reduced_before_a_copy_ended(
    case: Case, chunks: Sequence[int]
) -> None:
    def dies() -> None:
        case.store_copy(chunks)
        raise KilledError

    with pytest.raises(KilledError):
        case.run(Late(reduced=dies))
    late = Late()
    summary = case.run(late)
    case.check(summary)
    assert (late.steps, summary.mapped) == ([], 0)


def test_partials_that_are_lost_are_mapped_again_and_reduced(case: Case) -> None:
    """Their plan no longer counts, and the partial of a copy may take their place."""

    def dies() -> None:
        for path in (case.small.root / "out.chunkmap").rglob("partials/*"):
            path.unlink()
        case.store_copy(SAME)
        raise KilledError

    class Dying(Late):
        @override
        def reduce(self, run_uri: str, fingerprint: str, steps: list[Step]) -> None:
            dies()

    with pytest.raises(KilledError):
        case.run(Dying())
    summary = case.run(Late())
    case.check(summary)
    assert summary.mapped == 2
    [first, second] = sorted((case.small.root / "out.chunkmap").rglob("reduce/plan-*.arrow"))
    assert first.read_bytes() != second.read_bytes()
