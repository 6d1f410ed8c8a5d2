"""A map over groups is interrupted: any request may be the last of a process, or its reply lost."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from partitioning import PlanRequest, plan_dataset
from pipeline.config.job import Job
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.driver import report, then_stage
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.driver.then_stage import Pieces, pieces_of
from pipeline.runs.ledger import then
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import PARTIAL, Completion
from pipeline.runs.ledger.then import ThenLedger
from pipeline.runs.worker import chunk
from pipeline.storage import Storage, StorageReader
from pipeline.table.log import TableLog
from tests.support.faulty_storage import Faulty, KilledError, Script, dies_at, each
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.small import Small

CODE = """
import polars as pl

def partial(lf):
    return lf.group_by("k").agg(n=pl.col("n").sum())

def combine(frames):
    return pl.concat(frames).group_by("k").agg(pl.col("n").sum())

def doubled(lf):
    return lf.with_columns(twice=pl.col("n") * 2)
"""
INPUT, OUTPUT = "s3://in/t/", "s3://out/t/"
STATE = "s3://out/t.chunkmap/"
CHUNKS, ROWS, KEYS = 3, 20, 4
WHOLE = pl.DataFrame({"n": range(CHUNKS * ROWS)}).with_columns(k=pl.col("n") % KEYS)
EXPECTED = WHOLE.group_by("k").agg(pl.col("n").sum()).sort("k").with_columns(twice=pl.col("n") * 2)


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
        module = self.small.module
        return self.small.job(
            "partial",
            input={"uri": INPUT},
            output={"uri": OUTPUT, "mode": "error"},
            reduce={"combine": f"{module}:combine"},
            then={"function": f"{module}:doubled", "by": ["k"], "max_groups": 1},
        )

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
    def storage(self) -> Storage:
        return Storage({"s3": self.backend})

    @property
    def ledger(self) -> Ledger:
        [record] = runs_of(self.storage, OUTPUT)
        return Ledger(self.storage, OUTPUT, record.run)

    @property
    def pieces(self) -> Pieces | None:
        if not runs_of(self.storage, OUTPUT):
            return None
        return pieces_of(self.ledger, self.ledger.read())

    def uris(self, folder: str) -> list[str]:
        found = (info.uri for info in self.backend.objects(STATE + "runs/"))
        return sorted(uri for uri in found if folder in uri)

    def check(self) -> None:
        """The output has each group once, in order, and nothing is left over."""
        table_log = TableLog(self.storage, OUTPUT)
        files = table_log.snapshot(table_log.manifest())
        stored = {info.uri.removeprefix(OUTPUT): info for info in self.backend.objects(OUTPUT)}
        assert stored.keys() == set(files["key"])
        frames = [
            pl.read_parquet(io.BytesIO(self.backend.get(OUTPUT + key).data))
            for key in sorted(stored)
        ]
        assert len(frames) == KEYS
        assert_frame_equal(pl.concat(frames), EXPECTED)
        left = [info.uri for info in self.backend.objects(STATE)]
        assert not [uri for uri in left if "/partials/" in uri or "/reduced/" in uri]
        assert not self.backend.uploads
        assert table_log.head()[0].publishing is None


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(tmp_path)
    # Drawing a page takes most of the time of such a run.
    monkeypatch.setattr(report, "render_html", lambda report: "")
    small = Small(tmp_path, CODE)
    with (tmp_path / "conf" / "base.yaml").open("a") as file:
        file.write("batches: {max_chunks: 1}\n")  # Each completion is stored at once.
    return Case(small, monkeypatch)


def test_nothing_goes_wrong(case: Case) -> None:
    case.run()
    case.check()
    assert case.pieces is not None and case.pieces.progress.completions.height == KEYS


def test_any_request_may_be_the_last(case: Case) -> None:
    calls = Case(case.small, case.patch).run()[1]
    first = len(calls) // 4  # Planning is not changed by `then`.
    numbers = {number for number in instants(len(calls), "then") if number >= first}
    numbers |= {at for at, name in enumerate(calls) if name == "stage"}
    mapped_before = set()
    for number in sorted(numbers):
        again = Case(case.small, case.patch)
        with pytest.raises(BaseException):  # noqa: B017
            again.run(dies_at(number, "after" if number % 2 else "before"))
        before = again.pieces
        _, calls = again.run()
        vacuum(again.storage, OUTPUT)  # A process may end between publishing and cleaning up.
        again.check()
        if before is not None:  # Only pieces without a completion are mapped again.
            done, kept = again.pieces, before.progress.completions
            assert done is not None
            attempts = done.progress.completions["attempt"].to_list()
            assert set(kept["attempt"]) <= set(attempts)
            assert calls.count("stage") == KEYS - kept.height
            mapped_before.add(kept.height)
    assert len(mapped_before) > 2, "processes died before, among and after the pieces"


@pytest.mark.parametrize("name", ["stage", "put_new", "get_ranges", "complete", "put_if"])
def test_the_reply_to_a_request_is_lost(case: Case, name: str) -> None:
    _, calls = case.run_with(each(name, 3, "after"))
    assert name in calls
    vacuum(case.storage, OUTPUT, older_than=0.0)  # Nobody knows what was staged without a reply.
    case.check()


def dies_at_stage(case: Case, number: int) -> None:
    """A process dies after it has staged some of the groups' results."""
    calls = Case(case.small, case.patch).run()[1]
    stages = [at for at, name in enumerate(calls) if name == "stage"]
    with pytest.raises(BaseException):  # noqa: B017
        case.run(dies_at(stages[number], "before"))


def test_pieces_that_are_lost_are_made_again(case: Case) -> None:
    dies_at_stage(case, 2)
    pieces = [uri for uri in case.uris("/reduced/") if uri.endswith(".parquet")]
    assert len(pieces) == KEYS
    case.backend.delete(pieces[-1])
    case.run()
    case.check()
    assert case.pieces is not None and case.pieces.ledger.number == 2


def test_pieces_that_have_changed_are_made_again(case: Case) -> None:
    dies_at_stage(case, 2)
    uri = [uri for uri in case.uris("/reduced/") if uri.endswith(".parquet")][-1]
    other = io.BytesIO()
    pl.read_parquet(io.BytesIO(case.backend.get(uri).data)).with_columns(n=0).write_parquet(other)
    case.backend.put(uri, other.getvalue())
    case.run()
    case.check()
    assert case.pieces is not None and case.pieces.ledger.number == 2


def test_pieces_and_partial_results_that_are_lost_are_made_again(case: Case) -> None:
    dies_at_stage(case, 2)
    for uri in [*case.uris("/reduced/"), *case.uris("/partials/")]:
        case.backend.delete(uri)
    case.run()
    case.check()


def dies_before_its_plan(case: Case) -> list[str]:
    """A process dies when it has stored the pieces, but not their plan; return the pieces."""
    calls = Case(case.small, case.patch).run()[1]
    stages = calls.index("stage")
    plans = [at for at, name in enumerate(calls[:stages]) if name == "put_new"]
    with pytest.raises(BaseException):  # noqa: B017
        case.run(dies_at(plans[-1], "before"))
    assert not case.uris("/then/")
    pieces = [uri for uri in case.uris("/reduced/") if uri.endswith(".parquet")]
    assert len(pieces) == KEYS
    return pieces


@pytest.mark.parametrize("lost", [slice(0, 1), slice(None)])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_pieces_that_are_lost_before_their_plan_are_made_again(
    case: Case, lost: slice, is_damaged: bool
) -> None:
    for uri in dies_before_its_plan(case)[lost]:
        if is_damaged:
            case.backend.put(uri, b"no Parquet at all")
        else:
            case.backend.delete(uri)
    case.run()
    case.check()
    assert case.pieces is not None and case.pieces.ledger.number == 1


@pytest.mark.parametrize("is_claimed", [False, True])
def test_results_that_are_lost_are_made_again(case: Case, is_claimed: bool) -> None:
    """Staged files vanish before the commit, or when it is claimed and waits for them."""
    calls = Case(case.small, case.patch).run()[1]
    last = max(at for at, name in enumerate(calls) if name == "stage")
    died = calls.index("complete") if is_claimed else last + 2
    with pytest.raises(BaseException):  # noqa: B017
        case.run(dies_at(died, "before"))
    assert (TableLog(case.storage, OUTPUT).head()[0].publishing is not None) == is_claimed
    staged = list(case.backend.staged_under(OUTPUT, f"{STATE}staged/"))
    assert len(staged) == KEYS
    case.backend.abort(staged[:2])
    _, again = case.run()
    vacuum(case.storage, OUTPUT)
    case.check()
    assert again.count("stage") == 2


def test_a_second_driver_takes_the_plan_of_the_first(case: Case) -> None:
    """Both have reduced; one plans the pieces of its own result, and the other follows it."""
    dies_at_stage(case, 1)
    ledger = case.ledger
    [reduced] = ledger.read().reduced.iter_rows(named=True)
    other = "0" * 32  # Sorts first, so that who looks for a result to plan would choose this one.
    uri = reduced["uri"].replace(reduced["attempt"], other)
    for info in list(case.backend.objects(reduced["uri"])):
        case.backend.put(uri + info.uri.rpartition("/")[2], case.backend.get(info.uri).data)
    ledger.write_segment("reduce-other", [changed(reduced, attempt=other, uri=uri)])
    case.run()
    vacuum(case.storage, OUTPUT)
    case.check()
    assert case.pieces is not None and case.pieces.ledger.number == 1
    assert case.pieces.ledger.result() == reduced["uri"]


def test_a_driver_takes_a_plan_that_another_stores_meanwhile(case: Case) -> None:
    """It has seen no plan; then another driver reduces too, and is the first to plan."""
    dies_before_its_plan(case)
    ledger = case.ledger
    [reduced] = ledger.read().reduced.iter_rows(named=True)
    other = "f" * 32
    uri = reduced["uri"].replace(reduced["attempt"], other)

    def another_driver() -> None:
        for info in list(case.backend.objects(reduced["uri"])):
            case.backend.put(uri + info.uri.rpartition("/")[2], case.backend.get(info.uri).data)
        ledger.write_segment("reduce-other", [changed(reduced, attempt=other, uri=uri)])
        request = PlanRequest(uri=(uri,), per_file=True)
        plan = plan_dataset(request, StorageReader(case.storage)).plan
        ThenLedger(ledger, 1).store_plan(plan)

    looks = 0

    def last_then(run: Ledger) -> ThenLedger | None:
        nonlocal looks
        looks += 1
        seen = then.last_then(run)
        if looks == 1:
            another_driver()
        return seen

    case.patch.setattr(then_stage, "last_then", last_then)
    case.run()
    vacuum(case.storage, OUTPUT)
    case.check()
    assert case.pieces is not None and case.pieces.ledger.number == 1
    assert case.pieces.ledger.result() == uri


def changed(row: dict[str, Any], **changes: Any) -> Completion:
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in row.items()
    }
    return replace(Completion(**values), **changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uri": "s3://other/reduced/x/"}, "not in pieces"),
        ({"upload": "upload-1"}, "not in pieces"),
        ({"parts": ("p",)}, "not in pieces"),
        ({"chunk": "reduced/none.arrow"}, "no step of the reduce"),
    ],
)
def test_a_reduced_result_elsewhere_does_not_count(
    case: Case, change: dict[str, Any], reason: str
) -> None:
    """What workers write is untrusted: a completion must not make drivers read other objects."""
    dies_at_stage(case, 0)
    [reduced] = case.ledger.read().reduced.iter_rows(named=True)
    assert reduced["upload"] == PARTIAL
    attempt = "1" * 32
    uri = reduced["uri"].replace(reduced["attempt"], attempt)
    hostile = changed(reduced, **{"attempt": attempt, "uri": uri, **change})
    case.ledger.write_segment("reduce-hostile", [hostile])
    progress = case.ledger.read()
    assert progress.reduced.height == 1
    assert any(reason in problem for problem in progress.problems)


def test_a_plan_for_later_is_not_begun_by_planning(case: Case) -> None:
    """Planning a run stores nothing of `then`: its pieces are known when it is reduced."""
    plan_run(case.job, case.small.settings, case.storage, ResumeOptions())
    assert not case.uris("/then/") and case.pieces is None
