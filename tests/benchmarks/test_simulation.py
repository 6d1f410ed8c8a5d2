"""The simulation against what can be worked out by hand, and laws that any of its answers obeys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.answer import Answer, simulate
from benchmarks.simulation.case import Case
from benchmarks.simulation.charts import build_page, plot
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.curve import Point, efficient_up_to, numbers, simulate_around
from benchmarks.simulation.model import Mapping, Queue
from benchmarks.simulation.parameters import (
    SECTIONS,
    Data,
    Driver,
    Parameters,
    Prices,
    Services,
    Worker,
    load_parameters,
)
from pipeline.config.sections import BatchSettings
from pipeline.runs.worker.batch import Batch
from tests.support.examples import fewer

PLENTY = 1e18


def free(**changes: float) -> Parameters:
    """Everything costs nothing and nothing is limited, but for what is given."""
    sections: dict[str, Any] = {
        "driver": dict.fromkeys(Driver.model_fields, 0.0),
        "worker": dict.fromkeys(Worker.model_fields, 0.0),
        "services": dict.fromkeys(Services.model_fields, 0.0),
        "data": {**dict.fromkeys(Data.model_fields, 0.0), "decoded_share": 1, "reads_per_chunk": 1},
        "store": {
            "get_seconds": 0,
            "put_seconds": 0,
            "list_seconds": 0,
            "stream_bytes": PLENTY,
            "gets_per_second": PLENTY,
            "puts_per_second": PLENTY,
            "cores": 0,
            "cpu_seconds": 0,
        },
        "prices": dict.fromkeys(Prices.model_fields, 0.0),
    }
    for name, value in changes.items():
        section = next(section for section in SECTIONS if name in sections[section])
        sections[section][name] = value
    return Parameters.model_validate(sections)


def case(workers: int = 1, chunks: int = 100, **changes: Any) -> Case:
    given = {"stored_bytes": chunks * 1e6, "files": chunks, "cold": False, **changes}
    return Case(workers=workers, chunks=chunks, **given)


def test_one_worker_that_only_waits_takes_as_long_as_all_waits() -> None:
    answer = simulate(case(chunks=100, wait_seconds=0.5), free())
    assert answer.seconds == pytest.approx(50)
    assert answer.efficiency == pytest.approx(1)
    assert answer.limit.name == "worker threads"


@pytest.mark.parametrize("workers", [2, 5, 20])
def test_workers_share_the_work(workers: int) -> None:
    answer = simulate(case(workers, 2000, wait_seconds=0.5), free())
    # The tail: nobody has more than one batch when the last is handed out.
    assert 1000 / workers <= answer.seconds <= 1000 / workers + 5


def test_reading_computing_and_staging_overlap() -> None:
    """Three steps in a row for the first chunk; then each chunk takes as long as its longest."""
    parameters = free(stream_bytes=1e6, chunk_seconds=3.0, output_share=0.5)
    costs = Costs(case(chunks=8), parameters)
    steps = costs.steps()
    assert (steps.read, steps.compute, steps.stage) == (1.0, 3.0, 0.5)
    assert costs.batch(8).seconds == pytest.approx(4.5 + 7 * 3.0)
    assert costs.batch(8).useful == pytest.approx(24)


def test_the_slow_submitter_is_the_limit() -> None:
    """Batches of at most 8 chunks of no work: 1,000 chunks are at least 125 submissions."""
    limits = BatchSettings(max_chunks=8)
    answer = simulate(case(4, 1000, batches=limits), free(submit_seconds=0.1))
    assert answer.batches >= 125
    assert answer.seconds == pytest.approx(answer.batches * 0.1, rel=0.02)
    assert answer.limit.name == "driver"


@pytest.mark.parametrize(("name", "each"), [("gets_per_second", 2), ("puts_per_second", 2)])
def test_the_limit_of_requests_is_the_limit(name: str, each: int) -> None:
    """Two gets (footer and columns) and two puts (begin and one part) a chunk; more for the state.

    1e6 bytes are too many to be read whole in one request, and 5e6 too many to be copied.
    """
    limited = free(output_share=5.0, **{name: 1000.0})
    answer = simulate(case(50, 20_000), limited)
    least = 20_000 * each / 1000
    assert least <= answer.phases["mapping"] <= least * 1.05 + 2
    assert answer.limit.name.startswith(name[:3].upper())
    spread = simulate(case(50, 20_000, prefixes=10), limited)
    assert spread.phases["mapping"] == pytest.approx(answer.phases["mapping"] / 10, rel=0.1)


def test_shared_cores_are_the_limit() -> None:
    """8 workers on 2 cores: 1,000 chunks of 0.1 s of a core are 50 s."""
    answer = simulate(case(8, 1000), free(chunk_seconds=0.1, cores=2))
    assert answer.phases["mapping"] == pytest.approx(50, rel=0.02)
    assert answer.limit.name == "cores"
    alone = simulate(case(8, 1000), free(chunk_seconds=0.1))
    assert alone.phases["mapping"] == pytest.approx(12.5, rel=0.1)


@pytest.mark.parametrize(("output_share", "is_copied"), [(1.0, True), (5.0, False)])
def test_outputs_are_published_by_a_listing_and_a_request_each(
    output_share: float, is_copied: bool
) -> None:
    """No request looks at each: 3,200 of 50 ms, 192 at a time, and four pages of 0.1 s."""
    costs = {"put_seconds": 0.05, "get_seconds": 9.0, "list_seconds": 0.1}
    parameters = free(**costs, output_share=output_share)
    answer = simulate(case(chunks=3200, stored_bytes=3200 * 1e6), parameters)
    assert Costs(answer.case, parameters).is_copied == is_copied
    assert answer.phases["publishing"] == pytest.approx(3200 * 0.05 / 192 + 4 * 0.1 + 0.2)


def test_what_is_reduced_is_neither_staged_nor_completed() -> None:
    prices = {"put_seconds": 0.05, "get_seconds": 0.01, "submit_seconds": 0.001}
    answer = simulate(case(10, 1000, wait_seconds=0.2, reduces=True), free(**prices))
    assert answer.requests["CreateMultipartUpload"] == answer.requests["ListMultipartUploads"] == 0
    assert answer.phases["publishing"] == pytest.approx(0.3)
    partials = answer.requests["PutObject"] / 2
    assert partials >= answer.batches
    assert 0 < answer.phases["reducing"] < 2


def test_rows_that_are_aggregated_are_not_charged_as_if_they_were_written() -> None:
    costs = free(aggregate_row_seconds=1e-6, byte_seconds=1.0)
    answer = simulate(case(1, 100, rows=1e7, reduces=True), costs)
    assert answer.phases["mapping"] == pytest.approx(10)


def test_many_files_are_planned_by_the_cluster() -> None:
    costly = free(plan_file_seconds=0.01)
    assert simulate(case(10, 10_000), costly).phases["planning"] == pytest.approx(100)
    assert simulate(case(10, 20_000), costly).phases["planning"] == pytest.approx(20)


def test_every_worker_opens_the_run_once() -> None:
    cold = case(4, 1000, wait_seconds=0.1, cold=True)
    answer = simulate(cold, free(open_seconds=2.0))
    assert answer.threads["opening the run"] == pytest.approx(8)


def test_requests_and_dollars_are_counted() -> None:
    prices = {"put_1000": 0.005, "get_1000": 0.0004, "worker_hour": 3.6}
    answer = simulate(case(2, 1000, wait_seconds=0.1), free(output_share=80.0, **prices))
    assert answer.requests["CreateMultipartUpload"] == 1000
    assert answer.requests["CompleteMultipartUpload"] == 1000
    assert answer.requests["UploadPart"] == 3000, "80 MB in parts of 32 MiB"
    assert 3000 <= answer.requests["GetObject"] < 3600, "footers, footers again, columns; segments"
    assert answer.dollars["workers"] == pytest.approx(2 * answer.seconds * 0.001)
    gets = answer.requests["GetObject"] * 4e-7
    assert answer.dollars["GET requests"] == pytest.approx(gets)


def test_small_outputs_are_staged_in_one_request_and_copied() -> None:
    large = simulate(case(2, 1000), free(output_share=5.0, put_seconds=0.05))
    small = simulate(case(2, 1000), free(output_share=4.0, put_seconds=0.05))
    assert small.requests["CopyObject"] == 1000
    assert small.requests["UploadPart"] == large.requests["CopyObject"] == 0
    assert (small.requests["DeleteObjects"], large.requests["DeleteObjects"]) == (1, 0)
    saved = sum(large.requests.values()) - sum(small.requests.values())
    assert saved == pytest.approx(1000, rel=0.2)
    assert small.phases["mapping"] < large.phases["mapping"]


def test_batches_are_the_engines_own() -> None:
    """Small probes first, then what the pace says, and smaller ones in the end, to a tenth."""
    mapping = Mapping(case(4, 1000, wait_seconds=0.1), free())
    sizes: list[int] = []
    submit = mapping._submit

    def spied(batch: Batch) -> None:
        sizes.append(len(batch))
        submit(batch)

    mapping._submit = spied  # type: ignore[method-assign]
    mapping.run()
    assert sizes[:8] == [8] * 8
    assert max(sizes) in (49, 50), "5 s of 0.1 s each"
    assert min(sizes[8:-1]) in (4, 5) and sizes[-1] <= 5
    assert sum(sizes) == 1000


@pytest.mark.parametrize(
    ("workers", "chunks", "size"),
    [(1000, 20_000, 1e8), (100, 20_000, 1e7), (400, 20_000, 2e7), (10, 40_000, 1e6)],
)
def test_a_reduced_case_is_much_like_the_whole(workers: int, chunks: int, size: float) -> None:
    """Groups of workers, and a part of a long run, with the costs that were measured."""
    parameters = load_parameters("amazon")
    given_case = case(workers, chunks, stored_bytes=chunks * size, cold=True)
    whole, part = (Mapping(given_case, parameters, most) for most in (10**9, 4000))
    exact, near = whole.run(), part.run()
    assert part.reduced.chunks < chunks
    assert near.seconds == pytest.approx(exact.seconds, rel=0.1)
    assert near.threads.useful == pytest.approx(exact.threads.useful, rel=0.01)
    # Of ten workers few batches are simulated, whose number depends on single chunks.
    assert near.driver.total() == pytest.approx(exact.driver.total(), rel=0.25)
    assert near.puts == pytest.approx(exact.puts, rel=0.1)
    assert near.chunks == pytest.approx(exact.chunks, rel=0.001)


def test_a_queue_serves_in_the_order_of_arrival() -> None:
    queue = Queue(rate=2.0)
    assert queue.claim(4, now=10.0) == 12.0
    assert queue.claim(2, now=10.5) == 13.0
    assert queue.claim(2, now=20.0) == 21.0
    assert queue.busy_seconds() == 4.0


amounts = st.floats(0, 0.2)


@settings(max_examples=fewer(40), deadline=None)
@given(
    workers=st.integers(1, 40),
    chunks=st.integers(1, 3000),
    wait=amounts,
    submit=amounts,
    latency=amounts,
    limit=st.floats(50, 1e6),
)
def test_laws(
    workers: int, chunks: int, wait: float, submit: float, latency: float, limit: float
) -> None:
    given_case = case(workers, chunks, wait_seconds=wait)
    costs = {"submit_seconds": submit, "get_seconds": latency, "puts_per_second": limit}
    answer = simulate(given_case, free(**costs))
    _obeys_bounds(answer)
    slower = simulate(given_case, free(**{**costs, "publish_file_seconds": 0.5}))
    assert slower.seconds >= answer.seconds, "what costs more cannot end sooner"
    assert answer.threads["chunks"] == pytest.approx(
        chunks * max(2 * latency, wait), rel=1e-6, abs=1e-6
    )


def _obeys_bounds(answer: Answer) -> None:
    mapping = answer.phases["mapping"]
    assert 0 <= answer.efficiency <= 1 + 1e-9
    assert mapping >= answer.threads["chunks"] / answer.case.workers - 1e-6
    assert mapping >= sum(answer.driver.values()) - 1e-6
    in_all = sum(answer.threads.values())
    assert in_all == pytest.approx(mapping * answer.case.workers, rel=0.02, abs=3.0)


@settings(max_examples=fewer(25), deadline=None)
@given(chunks=st.integers(200, 3000), wait=st.floats(0.05, 1.0), more=st.integers(2, 6))
def test_more_workers_are_never_much_slower(chunks: int, wait: float, more: int) -> None:
    """But for the tail: one batch of at most 5 s may be in other hands."""
    few = simulate(case(3, chunks, wait_seconds=wait), free())
    many = simulate(case(3 * more, chunks, wait_seconds=wait), free())
    assert many.seconds <= few.seconds + 5
    assert many.seconds >= few.seconds / more - 5


def test_the_curve() -> None:
    assert numbers(1000) == [16, 62, 250, 1000, 4000, 16_000]
    assert numbers(1) == [1, 4, 16]
    own, points = simulate_around(case(4, 500, wait_seconds=0.1), free(start_seconds=1.0))
    assert own.case.workers == 4
    assert [point.workers for point in points] == [1, 4, 16, 64]
    assert points[0].seconds > points[-1].seconds
    assert points[0].efficiency > points[-1].efficiency


def test_where_efficiency_falls_below_four_fifths() -> None:
    points = [Point(n, 1.0, share, 0.0, "") for n, share in ((10, 1.0), (40, 0.6), (160, 0.2))]
    assert efficient_up_to(points) == pytest.approx(20)
    assert efficient_up_to(points[:1]) is None


def test_the_plot_shows_every_point() -> None:
    points = [Point(10**n, 1000 / 10**n + 5, 0.5, 0.0, "") for n in range(5)]
    drawn = plot(points)
    assert drawn.count("●") == 5
    assert "10,000 workers" in drawn


def test_the_page_holds_the_charts_and_loads_nothing() -> None:
    own, points = simulate_around(case(4, 500, wait_seconds=0.1), free())
    page = build_page(own, points, {"driver.x": "<b>1</b>"})
    assert "Time against workers" in page
    assert "&lt;b&gt;1" in page
    assert "default-src &#39;none&#39;" in page
