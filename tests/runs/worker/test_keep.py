"""Queries that keep the rows of their input, in batches, and what follows a file's kept bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.io.plugins import register_io_source
from polars.testing import assert_frame_equal

from partitioning import ObjectInfo
from partitioning.footer_columns import FooterEdit
from pipeline.errors import TransformError
from pipeline.runs.worker.encoding import Compression, FileFormat
from pipeline.runs.worker.keep import (
    Kept,
    KeptFile,
    batches_of,
    make_tail,
    result_schema,
    row_problem,
)
from tests.support.parquet_file import check_file, stored, written

STEP = 20_000
PLAIN = FileFormat(Compression.parse("zstd"))


class Source:
    """A scan of integers, and how many steps of it were read."""

    def __init__(self, steps: int) -> None:
        self.steps, self.read = steps, 0
        self.scan = register_io_source(self._frames, schema={"n": pl.Int64})

    def _frames(
        self, names: Any, predicate: Any, rows: int | None, size: int | None
    ) -> Iterator[pl.DataFrame]:
        for number in range(self.steps):
            self.read += 1
            yield pl.DataFrame({"n": range(number * STEP, (number + 1) * STEP)})


# -- steps of a query ---------------------------------------------------------------------------

N = pl.col("n")
OTHER = pl.LazyFrame({"n": [1, 2], "name": ["one", "two"]})
TEXTS = [
    "\n  FILTER [x]",
    "\nSORT BY [n]",
    '\nDF ["n"]; PROJECT */1 COLUMNS',
    "\nRIGHT PLAN ON: [x]\n",
    '\n  p1[label="FILTER BY x"]\n  p2 -> p1',
    "\x85FILTER\u2028FILTER\r\x0bFILTER",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_no_step(text: str) -> None:
    scan = Source(1).scan
    looked_up = scan.join(OTHER, on="n", how="left", maintain_order="left")
    for result in (
        scan.select(x=pl.lit(text)),
        scan.with_columns(x=pl.when(N > 1).then(pl.lit(text))).select(pl.col("x").alias(text)),
        scan.select(x=N.cast(pl.String).replace([text], ["a"])),
        looked_up.select(x=pl.col("name") == text),
    ):
        assert row_problem("f", scan, result) is None


@pytest.mark.parametrize(
    "text", [*TEXTS, "\nPYTHON SCAN []\n", "\nRIGHT PLAN ON: [x]\n PYTHON SCAN"]
)
def test_a_text_hides_no_step(text: str) -> None:
    scan = Source(1).scan
    noted = scan.with_columns(x=pl.lit(text))
    for result, step in (
        (noted.sort("n").with_columns(y=pl.lit(text)), "SORT"),
        (noted.filter(pl.col("x") != text).select("x"), "FILTER"),
        (OTHER.with_columns(x=pl.lit(text)), "another frame"),
        (OTHER.with_columns(x=pl.lit(text)).join(noted, on="n", how="left"), "another frame"),
        (noted.join(OTHER, on="n", how="left").with_columns(y=pl.lit(text)), "maintain_order"),
    ):
        assert step in str(row_problem("f", scan, result))


def test_another_scan_is_another_frame() -> None:
    """Polars shows both in the same words."""
    scan, other = Source(1).scan, Source(1).scan
    for result in (
        other.select(x=N),
        other.join(scan, on="n", how="left", maintain_order="left").select(x=N),
    ):
        assert "another frame" in str(row_problem("f", scan, result))
    assert (
        row_problem("f", scan, scan.join(other, on="n", how="left", maintain_order="left")) is None
    )


@pytest.mark.parametrize(
    ("query", "step"),
    [
        (lambda scan: scan.join(OTHER, on="n"), "JOIN INNER"),
        (lambda scan: scan.join_asof(OTHER, on="n"), "JOIN ASOF"),
        (lambda scan: scan.head(3), "SLICE"),
        (lambda scan: scan.unique(), "DISTINCT"),
        (lambda scan: scan.group_by("n").agg(), "AGG"),
        (lambda scan: pl.concat([scan, scan]), "UNION"),
        (lambda scan: scan.reverse(), "REVERSE"),
        (lambda scan: scan.unpivot(), "UNPIVOT"),
        (lambda scan: scan.map_batches(lambda frame: frame), "OPAQUE_PYTHON"),
    ],
)
def test_steps_that_may_change_rows(
    query: Callable[[pl.LazyFrame], pl.LazyFrame], step: str
) -> None:
    scan = Source(1).scan
    assert f"the step {step} " in str(row_problem("f", scan, query(scan).with_columns(x=1)))


@pytest.mark.parametrize(
    "query",
    [
        lambda scan: scan.with_row_index().select("index"),
        lambda scan: scan.cache().set_sorted("n").select(x=N + 1),
        lambda scan: scan.rename({"n": "m"}).cast({"m": pl.Int32}).select("m"),
        lambda scan: scan.fill_null(0).shift(1).select(x=N.rank().over(N % 3)),
        lambda scan: scan.select([]),
    ],
)
def test_steps_that_keep_all_rows(query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> None:
    scan = Source(1).scan
    assert row_problem("f", scan, query(scan)) is None


# -- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cast"),
    [(pl.Int128(), "Int64"), (pl.List(pl.UInt128), "String"), (pl.Struct({}), "String")],
)
def test_a_type_that_cannot_be_written(kind: pl.DataType, cast: str) -> None:
    schema = pl.Schema({"n": pl.Int64(), "m": pl.Int64()})
    with pytest.raises(TransformError) as caught:
        result_schema(Kept(("n", "m"), {}), schema, pl.Schema({"x": pl.Int8(), "big": kind}))
    assert f"the new column 'big' is {kind}," in str(caught.value)
    assert f"pl.col('big').cast(pl.{cast})" in str(caught.value.hint)


# -- batches ------------------------------------------------------------------------------------


def test_batches_come_while_the_input_is_read() -> None:
    source = Source(300)
    batches = batches_of("f", source.scan.select(x=N * 2), 300 * STEP, "streaming", at_once=False)
    first = next(batches)
    assert source.read < 200
    rest = list(batches)
    assert source.read == 300
    assert pl.concat([first, *rest])["x"].equals(
        pl.int_range(0, 600 * STEP, 2, eager=True), check_names=False
    )


@pytest.mark.parametrize(
    "query",
    [
        N - N.sum(),
        N.cum_sum(),
        N.shift(1),
        N.rank(),
        N.sum().over(N % 3),
        N.reverse(),
        N.map_batches(lambda values: values * 2, return_dtype=pl.Int64),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_batches_are_parts_of_the_whole(query: pl.Expr, *, at_once: bool) -> None:
    whole = pl.DataFrame({"n": range(5 * STEP)}).select(x=query)
    batches = list(
        batches_of("f", Source(5).scan.select(x=query), 5 * STEP, "streaming", at_once=at_once)
    )
    assert len(batches) == 1 or not at_once
    assert_frame_equal(pl.concat(batches), whole)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (lambda scan: scan.select(N.filter(N > 7)), f"99,992 rows for {5 * STEP:,} rows"),
        (lambda scan: scan.select(pl.lit(1)), "1 rows for"),
        (
            lambda scan: scan.join(pl.LazyFrame({"n": [0, 0]}), on="n", how="left"),
            "at least 100,001 rows for",
        ),
    ],
)
def test_batches_of_other_rows(query: Callable[[pl.LazyFrame], pl.LazyFrame], message: str) -> None:
    batches = batches_of("f", query(Source(5).scan), 5 * STEP, "streaming", at_once=False)
    with pytest.raises(TransformError, match=message):
        list(batches)


def test_no_columns_and_no_rows() -> None:
    [none] = batches_of("f", Source(5).scan.select([]), 5 * STEP, "streaming", at_once=False)
    assert none.shape == (0, 0)
    empty = batches_of("f", Source(0).scan.select(x=N * 2), 0, "streaming", at_once=False)
    assert pl.concat(empty).schema == {"x": pl.Int64}


def test_an_error_amid_batches_is_of_the_transform() -> None:
    def bad(values: pl.Series) -> pl.Series:
        raise ZeroDivisionError("three")

    query = Source(2).scan.select(N.map_batches(bad, return_dtype=pl.Int64))
    with pytest.raises(TransformError, match="f raised ZeroDivisionError: three"):
        list(batches_of("f", query, 2 * STEP, "streaming", at_once=False))


# -- what follows the kept bytes ----------------------------------------------------------------

ROWS = [20, 0, 15, 25]
OLD = pa.table({"n": pa.array(range(60), pa.int64())})
NEW = pl.DataFrame(
    {
        "text": [None if n % 7 == 0 else f"row {n % 11}" for n in range(60)],
        "kind": pl.Series(["a", "b", None] * 20, dtype=pl.Categorical),
        "list": [list(range(n % 4)) for n in range(60)],
        "pair": [{"x": n, "y": str(n)} for n in range(60)],
        "none": [None] * 60,
    }
)


def kept_file() -> tuple[bytes, KeptFile]:
    old = written(OLD, ROWS)
    info = ObjectInfo("file:///in.parquet", "0" * 32, len(old))
    return old, KeptFile(info, stored(old), FooterEdit(("n",)))


@pytest.mark.parametrize("cuts", [[60], [1, 18, 41], [0, 20, 0, 15, 25, 0], [59, 1], [2] * 30])
def test_a_file_does_not_depend_on_the_batches(cuts: Sequence[int]) -> None:
    old, file = kept_file()
    ends = list(accumulate(cuts, initial=0))
    frames = [NEW[start:stop] for start, stop in pairwise(ends)]
    tail = make_tail(file, frames, NEW.schema, PLAIN)
    made = old[: file.end] + tail.data
    check_file(made)
    metadata = pq.read_metadata(io.BytesIO(made))
    assert [metadata.row_group(at).num_rows for at in range(len(ROWS))] == ROWS
    assert_frame_equal(pl.read_parquet(io.BytesIO(made)).drop("n"), NEW)
    assert tail.data == make_tail(file, [NEW], NEW.schema, PLAIN).data


def test_encodings_are_those_of_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 40_000
    old = written(pa.table({"n": pa.array(range(2 * count))}), [count] * 2)
    file = KeptFile(ObjectInfo("file:///x", "0" * 32, len(old)), stored(old), FooterEdit(("n",)))
    new = pl.DataFrame({"few": [n % 3 for n in range(2 * count)]})
    monkeypatch.setattr("pipeline.runs.worker.keep.DEFAULT_ROW_GROUP_ROWS", count)
    tail = make_tail(file, [new], new.schema, PLAIN)
    assert tail.encodings == PLAIN.choose(new[:count])
    assert tail.encodings
    check_file(old[: file.end] + tail.data)


def test_encodings_hold_for_later_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """fastparquet decodes differences of more than 32 bits to wrong values."""
    count = 40_000
    old = written(pa.table({"n": pa.array(range(2 * count))}), [count] * 2)
    file = KeptFile(ObjectInfo("file:///x", "0" * 32, len(old)), stored(old), FooterEdit(("n",)))
    new = pl.DataFrame({"late": [n if n < count else n * 2**20 for n in range(2 * count)]})
    monkeypatch.setattr("pipeline.runs.worker.keep.DEFAULT_ROW_GROUP_ROWS", count)
    assert PLAIN.choose(new[:count])["late"].encoding == "delta"
    tail = make_tail(file, [new], new.schema, PLAIN)
    assert tail.encodings["late"].encoding == "plain"
    made = old[: file.end] + tail.data
    check_file(made)
    assert_frame_equal(pl.read_parquet(io.BytesIO(made)).select("late"), new)


def test_a_file_without_row_groups() -> None:
    old = written(OLD[:0], [])
    info = ObjectInfo("file:///in.parquet", "0" * 32, len(old))
    file = KeptFile(info, stored(old), FooterEdit(("n",), {"n": "m"}))
    made = old[: file.end] + make_tail(file, [NEW[:0]], NEW.schema, PLAIN).data
    check_file(made)
    assert pl.read_parquet(io.BytesIO(made)).schema == {"m": pl.Int64, **NEW.schema}
