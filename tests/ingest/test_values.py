"""A value arrives as it is, or is refused: never as another one."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from pipeline.errors import SchemaChangedError
from pipeline.ingest.contents import typed_columns
from pipeline.ingest.frames import frame_of, needs_exact_numbers, parse_records
from pipeline.ingest.texts import look_at

BERLIN = datetime(2024, 3, 1, 13, tzinfo=ZoneInfo("Europe/Berlin"))


def from_json(text: str, kind: pl.DataType, *, is_text: bool = False) -> list[Any]:
    """A field as it comes from the JSON of a page."""
    types, texts = {"x": kind}, frozenset({"x"} if is_text else ())
    exact = needs_exact_numbers(types, texts)
    records = parse_records(b'[{"x": %b}]' % text.encode(), exact=exact)
    return frame_of(records, types, texts, "a page")["x"].to_list()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("9007199254740993", pl.Float64()),
        ("1e400", pl.Float64()),
        ("1" + "0" * 400, pl.Float64()),
        ("NaN", pl.Float64()),
        ("1.00000000000000000000000000000000001", pl.Decimal(38, 10)),
        ('"2024-03-01T12:00:00.123456"', pl.Datetime("ms")),
        ('"0001-01-01T00:00:00+01:00"', pl.Datetime("us", "UTC")),
        ("1.5", pl.Int64()),
    ],
)
def test_values_of_json_that_would_change_are_refused(text: str, kind: pl.DataType) -> None:
    with pytest.raises(SchemaChangedError, match="field 'x' is"):
        from_json(text, kind)


@pytest.mark.parametrize("text", ["1.10", "12345678901234567890.12", "9007199254740993"])
def test_numbers_become_the_text_that_they_are(text: str) -> None:
    assert from_json(text, pl.String(), is_text=True) == [text]


def test_values_of_json_that_fit_are_taken() -> None:
    assert from_json("9007199254740992", pl.Float64()) == [9007199254740992.0]
    assert from_json("1.100", pl.Decimal(9, 1)) == [Decimal("1.1")]
    assert from_json("0.000", pl.Decimal(9, 2)) == [Decimal("0.00")]
    assert from_json("1200", pl.Decimal(4, 0)) == [Decimal(1200)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1234567890123456789", "1234567890123456788"], pl.Int64()),
        (["1234567890123456789", None], pl.Int64()),
        (["12345678901234567890", "1"], pl.String()),
        (["1234567890123456789", "1.5"], pl.String()),
        (["123456789012345", "1.5"], pl.Float64()),
    ],
)
def test_whole_numbers_of_csv_never_become_floats(values: list[str], kind: pl.DataType) -> None:
    assert look_at(pl.Series("x", values)).dtype == kind


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pl.Series([1.0, 1.5]), pl.Int64()),
        (pl.Series([datetime(2024, 3, 1, 13)]), pl.Date()),
        (pl.Series([Decimal("1.2345")]), pl.Decimal(18, 2)),
        (pl.Series([1_700_000_000]), pl.Datetime("us")),
        (pl.Series([7]), pl.Boolean()),
        (pl.Series([9007199254740993]), pl.Float64()),
        (pl.Series([datetime(2024, 3, 1, 13)]), pl.Datetime("us", "Europe/Berlin")),
        (pl.Series([BERLIN], dtype=pl.Datetime("us", "Europe/Berlin")), pl.Datetime("us")),
        (pl.Series([[1.5]]), pl.List(pl.Int64())),
    ],
)
def test_columns_of_files_that_would_change_are_refused(
    column: pl.Series, kind: pl.DataType
) -> None:
    with pytest.raises(SchemaChangedError, match="field 'x' is"):
        typed_columns(column.alias("x").to_frame(), {"x": kind}, frozenset(), "a.parquet")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pl.Series([1.0, None]), pl.Int64()),
        (pl.Series([1], dtype=pl.Int8), pl.Int64()),
        (pl.Series([1.5, float("nan")], dtype=pl.Float32), pl.Float64()),
        (pl.Series([Decimal("1.20")]), pl.Decimal(18, 1)),
        (pl.Series([None, None]), pl.Date()),
        (pl.Series([date(2024, 3, 1)]), pl.Date()),
        (pl.Series([datetime(2024, 3, 1)], dtype=pl.Datetime("ns")), pl.Datetime("us")),
    ],
)
def test_columns_of_files_that_fit_are_taken(column: pl.Series, kind: pl.DataType) -> None:
    frame = typed_columns(column.alias("x").to_frame(), {"x": kind}, frozenset(), "a.parquet")
    assert frame["x"].dtype == kind
    assert frame["x"].null_count() == column.null_count()
