"""More chunks are read ahead while storage is slow, and one otherwise."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.worker.read_ahead import MAX_CHUNKS, Overlap


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=200))
def test_the_number_stays_within_its_limits(chunks: list[tuple[float, float]]) -> None:
    ahead = Overlap()
    for waited, computed in chunks:
        before = ahead.chunks
        ahead.add(waited, computed)
        assert 1 <= ahead.chunks <= MAX_CHUNKS
        assert ahead.chunks in (before, before - 1, min(2 * before, MAX_CHUNKS))


@given(st.floats(0.001, 10), st.floats(0, 0.2))
def test_one_is_enough_where_reads_are_no_bottleneck(computed: float, share: float) -> None:
    ahead = Overlap()
    for _ in range(100):
        ahead.add(share * computed, computed)
    assert ahead.chunks == 1


@given(st.floats(0.02, 5), st.floats(0.01, 1))
def test_it_grows_until_the_latency_is_hidden(latency: float, computed: float) -> None:
    """Chunks that are read together arrive together, and the next ones are read meanwhile."""
    ahead = Overlap()
    clock, started = 0.0, [0.0, 0.0]
    waits = []
    for number in range(300):
        arrived = started[number] + latency
        waits.append(max(0.0, arrived - clock))
        clock = max(clock, arrived) + computed
        ahead.add(waits[-1], computed)
        while len(started) <= number + 1 + ahead.chunks:
            started.append(clock)
    share = sum(waits[200:]) / (sum(waits[200:]) + 100 * computed)
    assert ahead.chunks == MAX_CHUNKS or share < 0.35


def test_it_shrinks_again() -> None:
    ahead = Overlap(chunks=MAX_CHUNKS)
    for _ in range(2 * MAX_CHUNKS * (MAX_CHUNKS + 1)):
        ahead.add(0.0, 0.1)
    assert ahead.chunks == 1
