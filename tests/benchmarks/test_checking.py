"""Each result is read, but for those that are byte for byte one that was right."""

from __future__ import annotations

import io
import uuid
from typing import Any

import polars as pl
import pytest

from benchmarks.suite import digest as digests
from benchmarks.suite.checking import Checker, contents
from benchmarks.suite.digest import digest
from benchmarks.suite.expected import Expected
from partitioning import ObjectInfo
from pipeline.config.settings import Settings
from pipeline.storage import Storage, open_storage
from tests.servers.fixtures import moto
from tests.servers.launching import BUCKET, Server
from tests.support.benchmark_records import EXPECTED, FRAME

__all__ = ["moto"]


@pytest.fixture
def storage(moto: Server) -> Storage:
    return open_storage(Settings(s3=moto.settings()))


@pytest.fixture
def out() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prefixes that were read."""
    told: list[str] = []
    real = digests.digest_of

    def digest_of(storage: Storage, prefix: str, schema: Any) -> Any:
        told.append(prefix)
        return real(storage, prefix, schema)

    monkeypatch.setattr("benchmarks.suite.checking.digest_of", digest_of)
    return told


def written(storage: Storage, prefix: str, *frames: pl.DataFrame, folder: str = "") -> str:
    """The prefix, after writing frames under random names."""
    for frame in frames:
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        storage.put(f"{prefix}{folder}{uuid.uuid4().hex}.parquet", buffer.getvalue())
    return prefix


def told(*prefixes: str) -> list[dict[str, Any]]:
    return [{"output": prefix} for prefix in prefixes]


def test_the_same_bytes_are_read_once(storage: Storage, out: str, reads: list[str]) -> None:
    prefixes = [
        written(storage, f"{out}{number}/", FRAME.head(2), FRAME.tail(1)) for number in range(3)
    ]
    checker = Checker(storage, EXPECTED)
    assert checker.problem(told(*prefixes)) == ""
    assert checker.problem(told(prefixes[1])) == ""
    assert reads == prefixes[:1]


def test_other_bytes_are_read(storage: Storage, out: str, reads: list[str]) -> None:
    right = written(storage, f"{out}0/", FRAME)
    elsewhere = written(storage, f"{out}1/", FRAME.reverse())
    wrong = written(storage, f"{out}2/", FRAME.with_columns(id=pl.col("id") + 1))
    twice = written(storage, f"{out}3/", FRAME, FRAME)
    checker = Checker(storage, EXPECTED)
    assert checker.problem(told(right, elsewhere)) == ""
    assert "exact columns" in checker.problem(told(right, wrong, elsewhere))
    assert "6 rows, expected 3" in checker.problem(told(twice))
    assert reads == [right, elsewhere, wrong, twice]


def test_what_was_wrong_is_wrong_again(storage: Storage, out: str) -> None:
    wrong = written(storage, f"{out}0/", FRAME.head(1))
    checker = Checker(storage, EXPECTED)
    assert checker.problem(told(wrong)) == checker.problem(told(wrong)) != ""


def test_the_same_bytes_in_another_partition_are_read(
    storage: Storage, out: str, reads: list[str]
) -> None:
    frame = pl.DataFrame({"id": [1], "day": ["2024-01-01"]})
    expected = Expected(dict(frame.schema), digest(frame, dict(frame.schema)))
    right = written(storage, f"{out}0/", frame.drop("day"), folder="day=2024-01-01/")
    wrong = written(storage, f"{out}1/", frame.drop("day"), folder="day=2024-01-02/")
    checker = Checker(storage, expected)
    assert checker.problem(told(right)) == ""
    assert "exact columns" in checker.problem(told(wrong))
    assert reads == [right, wrong]


def test_a_result_that_is_gone_is_no_result(storage: Storage, out: str) -> None:
    assert "no Parquet file" in Checker(storage, EXPECTED).problem(told(out))


def test_contents_are_those_of_parquet_objects_in_any_order() -> None:
    one, two = (ObjectInfo(f"s3://b/{n}.parquet", f"etag{n}", n) for n in (1, 2))
    other = ObjectInfo("s3://b/_SUCCESS", "x", 0)
    assert contents([one, two]) == contents([two, other, one])
    assert contents([one]) != contents([one, one]) != contents([two])
