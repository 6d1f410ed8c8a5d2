"""What becomes of right, wrong, failing, missing and noisy peers. All of them are made up."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from benchmarks.suite.checking import Written, written
from benchmarks.suite.compare import comparisons
from benchmarks.suite.measure import Contender, measure, measure_noise
from pipeline.config.settings import Settings
from pipeline.errors import RunFailedError
from pipeline.storage import Storage, open_storage
from tests.support.benchmark_records import (
    EXPECTED,
    FRAME,
    WORKLOAD,
    MadeUp,
    card,
    conditions,
    contender,
    record,
)


@pytest.fixture
def storage() -> Storage:
    return open_storage(Settings())


def test_a_right_peer_has_all_its_samples(storage: Storage, tmp_path: Path) -> None:
    subject = MadeUp("right", seconds=lambda call: 1.0 + call / 10)
    (found,) = measure(
        storage, conditions(tmp_path), WORKLOAD, card(), [contender(subject)], expected=EXPECTED
    )
    assert (found.state, found.error) == ("ok", "")
    assert [process.round for process in found.processes] == [0, 1, 2]
    assert found.cold() == found.warm() == [1.1, 1.2, 1.3]
    assert found.startup().value == 0.25
    assert found.processes[0].iterations[0].figures == {"extra": 1}
    assert found.versions == {"made-up": "1.0"}
    assert found.cpu_samples() == [0.5, 0.5, 0.5]


def test_what_was_written_is_listed_with_its_codec(storage: Storage, tmp_path: Path) -> None:
    zstd, plain = MadeUp("zstd"), MadeUp("plain", codec="uncompressed")
    contenders = [contender(zstd), contender(plain)]
    found = measure(storage, conditions(tmp_path), WORKLOAD, card(), contenders, expected=EXPECTED)
    assert [result.codecs for result in found] == [("ZSTD",), ("UNCOMPRESSED",)]
    for result, subject in zip(found, (zstd, plain), strict=True):
        assert (result.output_files(), result.output_bytes()) == (1, subject.wrote_bytes)


def test_a_footer_that_is_longer_than_the_first_read(storage: Storage, tmp_path: Path) -> None:
    wide = pl.DataFrame({f"{'column' * 20}-{n}": [n] for n in range(500)})
    wide.write_parquet(tmp_path / "wide.parquet", compression="snappy")
    (size, *_), footer = (
        (tmp_path / "wide.parquet").stat()[6:7],
        pq.read_metadata(tmp_path / "wide.parquet"),
    )
    assert footer.serialized_size > 64 * 1024
    assert written(storage, tmp_path.as_uri() + "/") == Written(1, size, ("SNAPPY",))


def test_what_was_written_is_removed(storage: Storage, tmp_path: Path) -> None:
    measure(
        storage, conditions(tmp_path), WORKLOAD, card(), [contender(MadeUp("a"))], expected=EXPECTED
    )
    assert list(tmp_path.rglob("*.parquet")) == []


@pytest.mark.parametrize(
    ("writes", "words"),
    [
        (FRAME.head(2), "2 rows, expected 3"),
        (FRAME.with_columns(id=pl.col("id").reverse()), "exact columns"),
        (FRAME.with_columns(value=pl.col("value") * 1.001), "column value sums to"),
        (FRAME.drop("name"), "no column name"),
        (FRAME.with_columns(id=pl.lit("x")), "does not convert"),
        (None, "no Parquet file"),
    ],
    ids=["rows missing", "rows mixed up", "values off", "column missing", "type", "nothing"],
)
def test_a_wrong_peer_is_told_and_its_time_does_not_count(
    storage: Storage, tmp_path: Path, writes: pl.DataFrame | None, words: str
) -> None:
    wrong, right = MadeUp("polars", writes, lambda call: 0.001), MadeUp("chunkmap")
    contenders = [contender(wrong), contender(right)]
    found = measure(storage, conditions(tmp_path), WORKLOAD, card(), contenders, expected=EXPECTED)
    assert [result.state for result in found] == ["wrong", "ok"]
    assert words in found[0].error
    assert len(wrong.calls) == 1, "it was measured again although it was wrong"
    (compared,) = comparisons(record(*found))
    assert compared.found is None


def test_a_failing_peer_is_told_and_the_others_go_on(storage: Storage, tmp_path: Path) -> None:
    failing, right = MadeUp("failing", error="MemoryError: too much"), MadeUp("right")
    found = measure(
        storage,
        conditions(tmp_path),
        WORKLOAD,
        card(),
        [contender(failing), contender(right)],
        expected=EXPECTED,
    )
    assert [(result.state, result.error) for result in found] == [
        ("failed", "MemoryError: too much"),
        ("ok", ""),
    ]
    assert len(right.calls) == 3


def test_a_missing_peer_is_told(storage: Storage, tmp_path: Path) -> None:
    missing = Contender("missing", "Missing", None, "it could not be installed: no network")
    (found,) = measure(storage, conditions(tmp_path), WORKLOAD, card(), [missing])
    assert (found.state, found.error) == ("missing", "it could not be installed: no network")


def test_a_peer_that_tells_nothing_has_failed(storage: Storage, tmp_path: Path) -> None:
    class Mute(MadeUp):
        def run(self, spec: object, variables: object) -> object:  # type: ignore[override]
            from benchmarks.suite.subjects import Answer

            return Answer(0.1)

    (found,) = measure(storage, conditions(tmp_path), WORKLOAD, card(), [contender(Mute("mute"))])
    assert (found.state, found.error) == ("failed", "it reported no iteration")


def test_rounds_are_interleaved(storage: Storage, tmp_path: Path) -> None:
    order: list[str] = []
    names = ("a", "b", "c")
    contenders = [contender(MadeUp(name, order=order)) for name in names]
    measure(storage, conditions(tmp_path, 4), WORKLOAD, card(), contenders, expected=EXPECTED)
    rounds = [tuple(order[start : start + 3]) for start in range(0, 12, 3)]
    assert all(sorted(order) == sorted(names) for order in rounds)
    assert len(set(rounds)) > 1, "the same order each time favours whoever comes after whom"


def test_a_noisy_machine_shows_no_difference(storage: Storage, tmp_path: Path) -> None:
    """Times that jump by a factor of two make a floor that hides a difference of a quarter."""
    noisy = MadeUp("chunkmap", seconds=lambda call: (1.0, 2.0, 1.4)[call % 3])
    noise = measure_noise(
        storage, conditions(tmp_path, 3), WORKLOAD, card(), [contender(noisy)], expected=EXPECTED
    )
    assert noise.floor > 0.3
    slower = MadeUp("polars", seconds=lambda call: (1.25, 2.5, 1.75)[call % 3])
    found = measure(
        storage,
        conditions(tmp_path, 3),
        WORKLOAD,
        card(),
        [contender(noisy), contender(slower)],
        expected=EXPECTED,
    )
    noisy_record = record(*found).model_copy(update={"noise": noise})
    (compared,) = comparisons(noisy_record)
    assert compared.said == "no difference"


def test_a_quiet_machine_shows_the_same_difference(storage: Storage, tmp_path: Path) -> None:
    ours, theirs = MadeUp("chunkmap"), MadeUp("polars", seconds=lambda call: 1.25)
    noise = measure_noise(
        storage, conditions(tmp_path, 3), WORKLOAD, card(), [contender(ours)], expected=EXPECTED
    )
    assert noise.floor == 0
    found = measure(
        storage,
        conditions(tmp_path, 3),
        WORKLOAD,
        card(),
        [contender(ours), contender(theirs)],
        expected=EXPECTED,
    )
    (compared,) = comparisons(record(*found).model_copy(update={"noise": noise}))
    assert compared.said == "faster"


def test_noise_cannot_be_known_from_a_failure(storage: Storage, tmp_path: Path) -> None:
    failing = contender(MadeUp("chunkmap", error="no cluster"))
    with pytest.raises(RunFailedError, match=r"A/A run failed: chunkmap-.: no cluster") as caught:
        measure_noise(storage, conditions(tmp_path), WORKLOAD, card(), [failing])
    assert "chunkmap down" in str(caught.value.hint)


def test_a_peer_with_a_limit_is_given_fewer_tasks(storage: Storage, tmp_path: Path) -> None:
    from dataclasses import replace

    workload = replace(WORKLOAD, limits={"slow": 200})
    slow, fast = MadeUp("slow"), MadeUp("fast")
    found = measure(
        storage,
        conditions(tmp_path, 1),
        workload,
        card(),
        [contender(slow), contender(fast)],
        tasks=10_000,
    )
    assert [result.tasks for result in found] == [200, 10_000]
    assert (slow.calls[0].tasks, fast.calls[0].tasks) == (200, 10_000)
