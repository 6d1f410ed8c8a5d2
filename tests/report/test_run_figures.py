"""The report's figures against slow, obvious computations of the same."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report import run_figures, run_timeline
from pipeline.report.run_model import (
    COMPLETION_SCHEMA,
    FAILURE_SCHEMA,
    OPTIONAL,
    Attempt,
    Phase,
    Prices,
    Requests,
    RunReport,
)
from tests.support.examples import fewer
from tests.support.report_samples import START, all_failed, empty, info, make

moments = st.floats(0, 500, allow_nan=False).map(lambda at: round(at, 3))
lengths = st.floats(0, 60, allow_nan=False).map(lambda seconds: round(seconds, 3))
workers = st.sampled_from(["w1", "w2", "w10"])


def completions(rows: Sequence[tuple[str, str, float, float]]) -> pl.DataFrame:
    """Completions from (chunk, worker, start after START, seconds), a thousand rows each."""
    amounts = (1000, 900, 4000, 3000)
    return pl.DataFrame(
        [
            (chunk, at, "b", f"a{at}", worker, START + start, seconds, *parts(seconds), *amounts)
            for at, (chunk, worker, start, seconds) in enumerate(rows)
        ],
        schema={name: t for name, t in COMPLETION_SCHEMA.items() if name not in OPTIONAL},
        orient="row",
    )


def parts(seconds: float) -> tuple[float, float, float]:
    return seconds * 0.3, seconds * 0.4, seconds * 0.2


def failure(
    chunk: str, error: str, message: str, at: float = 1.0, final: bool = False
) -> tuple[object, ...]:
    place = ("trace", "where", "line")
    return (chunk, 0, "b", "a", "w1", START + at, error, message, *place, False, final)


def failures(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=FAILURE_SCHEMA, orient="row")


@given(st.lists(st.tuples(workers, moments, lengths), min_size=1, max_size=30))
@settings(deadline=None, max_examples=fewer(60))
def test_lanes_and_concurrency(rows: list[tuple[str, float, float]]) -> None:
    report = RunReport(info(), completions([(f"c{at}", *row) for at, row in enumerate(rows)]))
    spans = run_timeline.spans(report, run_timeline.make_clock(report))
    taken = spans.with_columns(run_timeline.lanes(spans)).rows(named=True)
    for at, one in enumerate(taken):
        for other in taken[at + 1 :]:
            if (one["worker"], one["lane"]) == (other["worker"], other["lane"]):
                assert other["start"] >= one["stop"] - 2e-3
    most = dict(run_timeline.concurrency(spans).iter_rows())
    used = defaultdict(set)
    for row in taken:
        used[row["worker"]].add(row["lane"])
    # Greedy lanes in order of start are as few as can be, but for rounding at the millisecond.
    for name, lanes in used.items():
        assert len(lanes) <= most[name]


@given(st.lists(st.tuples(workers, moments, lengths), min_size=1, max_size=30))
@settings(deadline=None, max_examples=fewer(60))
def test_throughput_adds_up_to_the_rows(rows: list[tuple[str, float, float]]) -> None:
    report = RunReport(info(), completions([(f"c{at}", *row) for at, row in enumerate(rows)]))
    clock = run_timeline.make_clock(report)
    series = run_timeline.throughput(run_timeline.spans(report, clock), clock.active_seconds)
    width = pl.col("stop") - pl.col("start")
    total = series.select((pl.col("rows_per_second") * width).sum()).item()
    assert total == pytest.approx(1000 * len(rows), rel=1e-3)
    assert series["rows_per_second"].is_finite().all()


@given(st.lists(st.tuples(workers, moments, lengths), min_size=1, max_size=20))
@settings(deadline=None, max_examples=fewer(60))
def test_utilisation_adds_up_to_the_busy_time(rows: list[tuple[str, float, float]]) -> None:
    report = RunReport(info(), completions([(f"c{at}", *row) for at, row in enumerate(rows)]))
    clock = run_timeline.make_clock(report)
    spans = run_timeline.spans(report, clock)
    # With a thread for each chunk no cell is cut off at 100%.
    cells = run_timeline.utilisation(spans, clock.active_seconds, threads=len(rows))
    busy = cells.select(
        (pl.col("busy") * (pl.col("stop") - pl.col("start"))).sum() * len(rows)
    ).item()
    assert busy == pytest.approx(float((spans["stop"] - spans["start"]).sum()), abs=1e-3)


@given(
    st.lists(st.floats(1e-4, 1e4, allow_nan=False), max_size=200),
    st.integers(1, 50),
)
@settings(deadline=None)
def test_histogram_counts_each_duration_once(seconds: list[float], bins: int) -> None:
    table, _ = run_figures.histogram(pl.Series(seconds, dtype=pl.Float64), bins)
    assert table["count"].sum() == len(seconds)
    if seconds:
        assert table["start"][0] <= min(seconds) * (1 + 1e-9)
        assert table["stop"][-1] >= max(seconds) * (1 - 1e-9)
        assert (table["stop"] > table["start"]).all()


def test_a_long_tail_gets_a_logarithmic_axis() -> None:
    assert run_figures.histogram(pl.Series([1.0] * 50 + [60.0]))[1]
    assert not run_figures.histogram(pl.Series([1.0, 1.2, 1.4, 2.0]))[1]


def test_a_chunk_that_completed_twice_counts_once() -> None:
    twice = completions([("a", "w1", 0, 5), ("a", "w2", 1, 2), ("b", "w1", 5, 1)])
    report = RunReport(info(chunks=3), twice, failures(failure("b", "E", "m")))
    totals = run_figures.totals(report, run_timeline.make_clock(report))
    assert (totals.chunks_done, totals.rows_in, totals.chunks_left) == (2, 2000, 1)
    assert totals.attempts_redone == 2  # the second copy of a, and b's failed attempt
    assert totals.seconds_redone == pytest.approx(5)  # w2's copy ended first


def test_the_first_failure_of_a_chunk_that_never_completed_is_no_redone_work() -> None:
    thrice = failures(*(failure("a", "E", "m", at, final=True) for at in (1, 2, 3)))
    report = RunReport(info("failed", chunks=1), failures=thrice)
    totals = run_figures.totals(report, run_timeline.make_clock(report))
    assert (totals.chunks_failed, totals.attempts_failed, totals.attempts_redone) == (1, 3, 2)


def test_failures_alike_but_for_names_and_numbers_are_one_kind() -> None:
    groups = run_figures.failure_groups(
        RunReport(
            info("failed"),
            failures=failures(
                failure("a", "Timeout", "no bytes for 60 s from s3://lake/1.parquet"),
                failure("b", "Timeout", "no bytes for 75.5 s from s3://lake/2.parquet", final=True),
                failure("c", "Timeout", "connection refused"),
                failure("c", "Other", "no bytes for 60 s from s3://lake/1.parquet"),
            ),
        ).failures
    )
    assert [(g.error, g.attempts, g.chunks_final) for g in groups] == [
        ("Timeout", 2, 1),
        ("Timeout", 1, 0),
        ("Other", 1, 0),
    ]
    assert groups[0].chunk == "b"  # a chunk that is still failed is the example


def test_a_night_between_two_drivers_is_cut_out_of_the_time() -> None:
    rows = [("a", "w1", 0, 10), ("b", "w1", 10, 10), ("c", "w1", 30_020, 10)]
    report = RunReport(info(), completions(rows), phases=(Phase("map", START, 30_030),))
    clock = run_timeline.make_clock(report)
    assert clock.pauses == ((START + 20, START + 30_020),)
    assert clock.active_seconds == pytest.approx(30)
    assert clock.pause_marks()[0] == pytest.approx((20, 30_000))
    assert run_timeline.spans(report, clock)["stop"].to_list() == pytest.approx([10, 20, 30])
    assert run_figures.phase_shares(report, clock)[0].seconds == pytest.approx(30)


def test_planning_for_an_hour_is_work_not_a_pause() -> None:
    phases = (Phase("plan", START, 3600), Phase("map", START + 3600, 10))
    report = RunReport(info(), completions([("a", "w1", 3600, 10)]), phases=phases)
    assert run_timeline.make_clock(report).pauses == ()


def test_where_time_went_is_the_whole_of_the_slots() -> None:
    report = make(200, workers=4)
    spans = run_timeline.spans(report, run_timeline.make_clock(report))
    shares = run_figures.time_shares(report, spans)
    assert sum(share.share for share in shares) == pytest.approx(1)
    span = float(spans["stop"].max()) - float(spans["start"].min())  # type: ignore[arg-type]
    assert sum(share.seconds for share in shares) == pytest.approx(4 * span)


@pytest.mark.parametrize("report", [empty(), empty("failed"), all_failed(3)])
def test_nothing_completed_gives_figures_of_zero(report: RunReport) -> None:
    clock = run_timeline.make_clock(report)
    totals = run_figures.totals(report, clock)
    spans = run_timeline.spans(report, clock)
    assert (totals.chunks_done, totals.rows_per_second) == (0, 0.0)
    assert math.isfinite(totals.bytes_per_second)
    assert run_figures.time_shares(report, spans) == []
    assert run_figures.durations(report.completions["seconds"]) is None


def test_many_workers_share_rows() -> None:
    names = [f"w{at}" for at in range(950)]
    rows = run_timeline.worker_rows(names)
    assert list(rows) == names  # in people's order: w2 before w10
    assert len(set(rows.values())) == 95
    assert rows["w13"] == "w10 … w19"


@pytest.mark.parametrize("seconds", [1e-5, 0.02, 0.3, 1, 7, 59, 61, 3599, 90_000, 4e6, 1e8])
def test_ticks_are_few_and_within(seconds: float) -> None:
    ticks = run_timeline.ticks(seconds)
    assert 2 <= len(ticks) <= 10
    assert ticks[0] == 0
    assert ticks[-1] <= seconds * (1 + 1e-9)


def test_frames_are_checked() -> None:
    with pytest.raises(ValueError, match="completions lack chunk, index"):
        RunReport(info(), pl.DataFrame({"worker": ["w"]}))
    with pytest.raises(ValueError, match="completions have 1 rows without 'started'"):
        RunReport(info(), completions([("a", "w", 0, 1)]).with_columns(started=None))
    holes = completions([("a", "w", 0, 1)]).with_columns(read_seconds=None, batch=None)
    assert RunReport(info(), holes).completions.select("read_seconds", "batch").row(0) == (0, "")


def test_the_phases_of_several_attempts_add_up_to_the_time() -> None:
    report = make(40)
    first, second = START + 1, START + 90_000
    attempts = (
        Attempt(
            first,
            first + 60,
            "failed",
            phases=(Phase("start", first, 2.0), Phase("plan", first + 2, 58.0)),
            requests=Requests(10, 4, 1),
        ),
        Attempt(
            second,
            second + 200,
            "done",
            phases=(Phase("plan", second, 5.0), Phase("map", second + 5, 195.0)),
            requests=Requests(1, 2, 0),
        ),
    )
    moved = report.completions.with_columns(started=pl.col("started") + 90_000)
    report = RunReport(
        replace(report.run, started=first, finished=second + 200),
        moved,
        phases=tuple(phase for attempt in attempts for phase in attempt.phases),
        attempts=attempts,
    )
    clock = run_timeline.make_clock(report)
    assert clock.active_seconds == pytest.approx(260.0)
    shares = run_figures.phase_shares(report, clock)
    assert sum(share.seconds for share in shares) == pytest.approx(clock.active_seconds)
    assert {share.name: round(share.seconds) for share in shares} == {
        "start": 2,
        "plan": 63,
        "map": 195,
    }
    totals = run_figures.totals(report, clock)
    assert (totals.requests.reads, totals.requests.writes) == (40 * 3 + 11, 40 + 6)


def test_time_that_no_phase_covers_is_shown_as_other() -> None:
    report = RunReport(
        replace(info(), started=START, finished=START + 10), phases=(Phase("plan", START, 4.0),)
    )
    clock = run_timeline.make_clock(report)
    shares = run_figures.phase_shares(report, clock)
    assert [(share.name, round(share.seconds)) for share in shares] == [("plan", 4), ("other", 6)]


def test_rows_that_the_filter_removed_are_not_missing() -> None:
    report = make(10, error_rate=0)
    rows = int(report.completions["rows_in"].sum())
    run = replace(report.run, rows_planned=rows + 500, rows_done=rows + 500)
    totals = run_figures.totals(replace(report, run=run), run_timeline.make_clock(report))
    assert totals.rows_filtered == 500


def test_a_cost_is_use_times_price() -> None:
    report = replace(make(100), prices=Prices("EUR", 0.0004, 0.005, 0.36))
    clock = run_timeline.make_clock(report)
    totals = run_figures.totals(report, clock)
    costs = {cost.name: cost for cost in run_figures.costs(report, totals)}
    reads, writes = costs["requests that read"], costs["requests that write or list"]
    assert reads.amount == 300 and reads.cost == pytest.approx(300 * 0.0004 / 1000)
    assert writes.amount == 100 and writes.cost == pytest.approx(100 * 0.005 / 1000)
    time = costs["worker time"]
    assert time.amount == totals.worker_seconds > 0
    assert time.cost == pytest.approx(totals.worker_seconds * 0.36 / 3600)
    assert run_figures.costs(make(3), totals) == []


def test_workers_that_took_the_place_of_others_after_a_resume_do_not_count_twice() -> None:
    rows = [(f"c{at}", f"w{at % 2}", float(at // 2), 1.0) for at in range(8)]
    again = [(f"d{at}", f"v{at % 2}", 100.0 + at // 2, 1.0) for at in range(8)]
    phases = (Phase("map", START, 4.0), Phase("map", START + 100, 4.0))
    attempts = tuple(
        Attempt(phase.started, phase.started + 4.0, "done", phases=(phase,)) for phase in phases
    )
    report = RunReport(
        replace(info(), started=START, finished=START + 104, threads_per_worker=1),
        completions([*rows, *again]),
        phases=phases,
        attempts=attempts,
    )
    clock = run_timeline.make_clock(report)
    totals = run_figures.totals(report, clock)
    assert totals.workers == 4
    assert totals.working_seconds == pytest.approx(8)
    assert totals.worker_seconds == pytest.approx(16)
    shares = run_figures.time_shares(report, run_timeline.spans(report, clock))
    assert sum(share.seconds for share in shares) == pytest.approx(16)


def test_a_driver_that_first_watched_another_one_has_only_its_own_workers() -> None:
    """It began a minute after the first, which mapped for an hour and died."""
    rows = [(f"c{at}", f"w{at % 2}", at * 60.0, 60.0) for at in range(60)]
    again = [(f"d{at}", f"v{at % 2}", 3700.0 + at, 1.0) for at in range(10)]
    phases = (Phase("map", START, 3600.0), Phase("map", START + 3700, 10.0))
    attempts = (
        Attempt(START, START + 3600, "interrupted", phases=phases[:1]),
        Attempt(START + 60, START + 3710, "done", phases=phases[1:]),
    )
    report = RunReport(
        replace(info(), started=START, finished=START + 3710, threads_per_worker=1),
        completions([*rows, *again]),
        phases=phases,
        attempts=attempts,
    )
    totals = run_figures.totals(report, run_timeline.make_clock(report))
    assert totals.worker_seconds == pytest.approx(2 * 3600 + 2 * 10)


def test_an_attempt_that_only_merged_has_the_workers_of_the_one_before() -> None:
    rows = [(f"c{at}", f"w{at}", -1.0, 2.0) for at in range(3)]  # By a clock that is late.
    phases = (Phase("map", START, 2.0), Phase("merge", START + 10, 5.0))
    attempts = tuple(
        Attempt(phase.started, phase.started + phase.seconds, "done", phases=(phase,))
        for phase in phases
    )
    report = RunReport(
        replace(info(), started=START, finished=START + 15),
        completions(rows),
        phases=phases,
        attempts=attempts,
    )
    totals = run_figures.totals(report, run_timeline.make_clock(report))
    assert totals.worker_seconds == pytest.approx(3 * 7)
