"""A digest is the same for the same rows in any order and any files, and for no others."""

from collections.abc import Mapping

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.suite.digest import Digest, digest, digest_of, total
from pipeline.config.settings import Settings
from pipeline.storage import open_storage

ROWS = st.lists(
    st.tuples(st.integers(-(2**40), 2**40), st.text(max_size=5), st.floats(-1e6, 1e6)),
    min_size=1,
    max_size=30,
)
SCHEMA = {"id": pl.Int64(), "name": pl.String(), "value": pl.Float64()}


def frame(rows: list[tuple[int, str, float]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@given(ROWS, st.randoms(), st.integers(0, 30))
def test_order_and_files_do_not_matter(rows, random, cut) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(rows, len(rows))
    parts = [digest(frame(part), SCHEMA) for part in (shuffled[:cut], shuffled[cut:])]
    assert total(parts).difference(digest(frame(rows), SCHEMA)) == ""


@given(ROWS, st.data())
def test_a_changed_row_is_seen(rows, data) -> None:  # type: ignore[no-untyped-def]
    at = data.draw(st.integers(0, len(rows) - 1))
    key, name, value = rows[at]
    other = [*rows[:at], (key + 1, name, value), *rows[at + 1 :]]
    assert digest(frame(other), SCHEMA).difference(digest(frame(rows), SCHEMA))


def test_narrower_types_are_the_same_values() -> None:
    wide = pl.DataFrame({"n": [1, 2]}, schema={"n": pl.Int64})
    narrow = wide.cast(pl.Int32)
    schema = dict(wide.schema)
    assert digest(narrow, schema) == digest(wide, schema)


def test_floats_may_differ_in_the_last_digits_only() -> None:
    assert Digest(1, 0, {"x": 1.0}).difference(Digest(1, 0, {"x": 1.0 + 1e-12})) == ""
    assert "column x" in Digest(1, 0, {"x": 1.0}).difference(Digest(1, 0, {"x": 1.001}))
    assert "column x" in Digest(1, 0, {}).difference(Digest(1, 0, {"x": 1.0}))


def test_hive_values_are_columns(tmp_path) -> None:  # type: ignore[no-untyped-def]
    storage = open_storage(Settings())
    for day in ("2024-01-01", "2024-01-02"):
        folder = tmp_path / "data" / f"day={day}"
        folder.mkdir(parents=True)
        pl.DataFrame({"id": [1]}).write_parquet(folder / "x.parquet")
    schema = {"id": pl.Int64(), "day": pl.String()}
    expected = pl.DataFrame({"id": [1, 1], "day": ["2024-01-01", "2024-01-02"]})
    found = digest_of(storage, (tmp_path / "data").as_uri() + "/", schema)
    assert found.difference(digest(expected, schema)) == ""


@pytest.mark.parametrize("rows", [0, 1, 7, 10])
def test_a_large_file_is_read_some_rows_at_a_time(tmp_path, monkeypatch, rows) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("benchmarks.suite.digest.ROWS_AT_ONCE", 3)
    seen: list[int] = []

    def counted(frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> Digest:
        seen.append(frame.height)
        return digest(frame, schema)

    monkeypatch.setattr("benchmarks.suite.digest.digest", counted)
    whole = frame([(n, str(n), n / 3) for n in range(rows)])
    (tmp_path / "k=v").mkdir()
    whole.write_parquet(tmp_path / "k=v" / "x.parquet", row_group_size=4)
    schema = SCHEMA | {"k": pl.String()}
    found = digest_of(open_storage(Settings()), tmp_path.as_uri() + "/", schema)
    assert found.difference(digest(whole.with_columns(k=pl.lit("v")), schema)) == ""
    assert (sum(seen), max(seen)) == (rows, min(3, rows))


def test_nothing_is_no_result(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no Parquet file"):
        digest_of(open_storage(Settings()), tmp_path.as_uri() + "/", {})
