from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.suite import datasets, generating
from benchmarks.suite.datasets import DATASETS, Dataset, ensure, find_card
from benchmarks.suite.expected import expect
from benchmarks.suite.workloads import WORKLOADS
from pipeline.config.settings import Settings
from pipeline.storage import open_storage

SMALL = {
    "measurements": lambda: generating.measurements(2, 1000, 250, 1),
    "events": lambda: generating.events(2, 100, 20, 1),
    "small": lambda: generating.small(3, 10, 2, 1),
    "windows": lambda: generating.windows(3, 10, 1),
    "wide": lambda: generating.wide(2, 30, 10, 1),
    "daily": lambda: generating.daily(3, 10, 1),
    "row-groups": lambda: generating.row_groups(2, 5, 4, 1),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_makes_the_same_bytes(name: str) -> None:
    assert list(SMALL[name]()) == list(SMALL[name]())


@pytest.mark.parametrize("name", SMALL)
def test_files_are_plain_and_zstd(name: str) -> None:
    for _, body in SMALL[name]():
        footer = pq.read_metadata(io.BytesIO(body))
        assert footer.row_group(0).column(0).compression == "ZSTD"
        schema = pq.read_schema(io.BytesIO(body))
        assert not any(pa.types.is_string_view(field.type) for field in schema)


def test_wide_has_a_hundred_columns() -> None:
    _, body = next(iter(SMALL["wide"]()))
    assert pl.read_parquet(io.BytesIO(body)).width == 100


def test_events_hold_one_row_group_50_times_the_others() -> None:
    groups = [
        pq.read_metadata(io.BytesIO(body)).row_group(0).num_rows for _, body in SMALL["events"]()
    ]
    assert groups == [1000, 20]


def test_the_three_years_are_whole() -> None:
    keys = [key for key, _ in generating.daily(1096, 1, 1)]
    assert (keys[0], keys[-1]) == (
        "day=2022-01-01/events.parquet",
        "day=2024-12-31/events.parquet",
    )


def test_small_files_are_of_4_kib_and_two_row_groups() -> None:
    bodies = [body for _, body in islice(DATASETS["small"].makers["s"](), 3)]
    assert all(3.5 * 1024 < len(body) < 4.5 * 1024 for body in bodies), [len(x) for x in bodies]
    assert {pq.read_metadata(io.BytesIO(body)).num_row_groups for body in bodies} == {2}


def test_ids_count_all_rows_of_all_files() -> None:
    """So that the rows of the first files are those with the lowest ids."""
    for name in ("small", "windows"):
        frames = [pl.read_parquet(io.BytesIO(body)) for _, body in SMALL[name]()]
        assert pl.concat(frames)["id"].to_list() == list(range(30))


def test_all_windows_are_in_the_past() -> None:
    *_, (last, _) = generating.windows(10_000, 1, 1)
    assert last == "day=2024-05-18/part.parquet"


def test_plain_types() -> None:
    table = pa.table(
        {
            "text": pa.array(["a"], pa.string_view()),
            "money": pa.array(["1.25"]).cast(pa.decimal128(15, 2)),
            "id": pa.array([1]),
        }
    )
    plain = generating.plain_types(table)
    assert [str(field.type) for field in plain.schema] == ["string", "double", "int64"]
    assert plain.to_pylist() == [{"text": "a", "money": 1.25, "id": 1}]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    calls: list[int] = []

    def make() -> object:
        calls.append(1)
        return SMALL["row-groups"]()

    made = Dataset("row-groups", "small", {"s": make})  # type: ignore[dict-item]
    monkeypatch.setattr(datasets, "DATASETS", {"row-groups": made})
    monkeypatch.setattr(made.__class__, "calls", calls, raising=False)
    return made


def test_a_dataset_is_made_once_and_has_a_card(small: Dataset, tmp_path: Path) -> None:
    storage, root, said = open_storage(Settings()), tmp_path.as_uri(), list[str]()
    card = ensure(storage, root, "row-groups", "s", said.append)
    assert (card.rows, card.files, card.row_groups) == (40, 2, 10)
    assert card.columns == {"id": "int64", "value": "double"}
    assert card.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    assert ensure(storage, root, "row-groups", "s", said.append) == card
    assert len(said) == 2, "it was made twice"


def test_what_an_interrupted_generation_left_is_removed(small: Dataset, tmp_path: Path) -> None:
    storage, root = open_storage(Settings()), tmp_path.as_uri()
    stray = tmp_path / "datasets" / "row-groups-s" / "data" / "stray.parquet"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half")
    assert find_card(storage, root, "row-groups", "s") is None
    ensure(storage, root, "row-groups", "s")
    assert not stray.exists()


def test_another_version_is_made_anew(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, root = open_storage(Settings()), tmp_path.as_uri()
    ensure(storage, root, "row-groups", "s")
    monkeypatch.setattr(datasets, "VERSION", 99)
    assert find_card(storage, root, "row-groups", "s") is None
    assert ensure(storage, root, "row-groups", "s").version == 99


def test_what_must_come_out_is_kept(small: Dataset, tmp_path: Path) -> None:
    storage, root = open_storage(Settings()), tmp_path.as_uri()
    card = ensure(storage, root, "row-groups", "s")
    first = expect(storage, root, WORKLOADS["chunks"], card)
    assert first.digest.rows == 0
    whole = expect(storage, root, WORKLOADS["resume-half"], card)
    assert whole.digest.rows == 40
    for info in storage.objects(card.uri):
        if not info.uri.endswith("0000.parquet"):
            storage.delete(info.uri)
    assert expect(storage, root, WORKLOADS["resume-half"], card) == whole


def test_datasets_have_three_sizes() -> None:
    assert all(set(dataset.makers) == {"s", "m", "l"} for dataset in DATASETS.values())
