"""A value arrives as it is, or is refused: never as another one."""

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SchemaChangedError
from pipeline.ingest.contents import ContentError, json_records, typed_columns
from pipeline.ingest.frames import (
    MisfitError,
    converter,
    frame_of,
    needs_exact_numbers,
    parse_records,
)
from pipeline.ingest.schema import MAX_DEPTH, ContradictionError, Types, add_types, decide
from pipeline.ingest.texts import read_texts
from pipeline.ingest.values import frame_of_records
from pipeline.runs.worker.encoding import Compression, FileFormat, write_parquet
from tests.support.examples import fewer

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
        ("9007199254740993.0", pl.Int64()),
        ("9223372036854775808", pl.Int64()),
        ("[300]", pl.List(pl.Int8)),
        ('{"a": 9223372036854775808}', pl.Struct({"a": pl.Int64})),
        ('["9999-01-01T00:00"]', pl.List(pl.Datetime("ns"))),
        ("true", pl.Int64()),
        ("true", pl.Float64()),
        ("true", pl.Decimal(9, 2)),
        ("1", pl.Boolean()),
        ("1e300", pl.Float32()),
        ("16777217", pl.Float32()),
        ('"1_000"', pl.Decimal(9, 2)),
        ('"\u0661"', pl.Decimal(9, 2)),
        ('"1e999999999999"', pl.Decimal(9, 2)),
        ('"2024-03-01T12:00:00,1234567"', pl.Datetime("us")),
        ('"2024-03-31T02:30"', pl.Datetime("us", "Europe/Berlin")),
        ('"2024-10-27T02:30"', pl.Datetime("us", "Europe/Berlin")),
        ('"2024-03-01T00:00:00Z"', pl.Date()),
        ('"9999-01-01T00:00"', pl.Datetime("ns")),
        ('""', pl.Date()),
        ('""', pl.Decimal(9, 2)),
        (r'"\ud800"', pl.String()),
    ],
)
def test_values_of_json_that_would_change_are_refused(text: str, kind: pl.DataType) -> None:
    with pytest.raises(SchemaChangedError, match="field 'x' is"):
        from_json(text, kind)


def test_zeros_at_the_end_of_a_decimal_do_not_count() -> None:
    convert = converter(pl.Decimal(4, 2))
    assert convert("12.3000") == Decimal("12.3")
    assert convert("1." + "0" * 1_000_000) == 1
    for text in ("1" + "0" * 1_000_000, "1.001", "100"):
        with pytest.raises(MisfitError):
            convert(text)


@pytest.mark.parametrize("text", ["1.10", "12345678901234567890.12", "9007199254740993"])
def test_numbers_become_the_text_that_they_are(text: str) -> None:
    assert from_json(text, pl.String(), is_text=True) == [text]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":[12345678901234567890.12,1.10,null,true]}',) * 2,
        ('[1,"x\\"é"]',) * 2,
        ("1e2", "1E+2"),
    ],
)
def test_values_become_their_json_with_all_digits(text: str, value: str) -> None:
    [found] = from_json(text, pl.String(), is_text=True)
    assert found == value
    assert json.loads(found, parse_float=Decimal) == json.loads(text, parse_float=Decimal)


def test_a_key_that_is_there_twice_is_refused() -> None:
    for text in (b'[{"id": 1, "id": 2}]', b'[{"id": {"a": 1, "b": 2, "a": 1}}]'):
        with pytest.raises(ContentError, match=r"has the key '(id|a)' twice"):
            json_records(text, None, exact=False)


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(SchemaChangedError, match="a name that is no valid text"):
        add_types({}, parse_records(b'[{"\\ud800": null}]', exact=False), ())
    with pytest.raises(SchemaChangedError, match="surrogates not allowed"):
        from_json(r'{"\ud800": 1}', pl.Struct({"\ud800": pl.Int64}))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 480, 950, 5_000])
def test_what_is_nested_too_deeply_is_refused(depth: int) -> None:
    """However much of the interpreter's own limit is left."""
    deep: Any = 1
    for _ in range(depth):
        deep = [deep]
    mixed: list[dict[str, Any]] = [{"x": 1}, {"x": {"y": deep}}]
    for records in ([{"x": deep}], mixed):
        with pytest.raises(SchemaChangedError, match="nested too deeply"):
            add_types({}, records, ())
    with pytest.raises(SchemaChangedError, match="nested too deeply"):
        frame_of_records([{"x": deep}], {}, "here")


def test_what_is_nested_deeply_is_written() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    types: Types = {}
    add_types(types, [{"x": deep}], ())
    frame = frame_of([{"x": deep}], types, frozenset(), "here")
    data, _ = write_parquet(frame, FileFormat(Compression.parse("zstd:3")))
    assert pl.read_parquet(bytes(data)).equals(frame)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=4,
)


@settings(max_examples=fewer(150), deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("xy"), VALUES), min_size=1, max_size=3))
def test_json_arrives_as_it_is_or_is_refused(records: list[dict[str, Any]]) -> None:
    text = json.dumps(records).encode()
    types: Types = {}
    try:
        parsed = parse_records(text, exact=False)
        add_types(types, parsed, ())
        decided = decide(types, None, {}, "pinned").types
        rows: list[dict[str, Any]] = [{}] * len(records)  # An ingest without values is refused.
        if decided:
            rows = frame_of(parsed, decided, frozenset(), "a page").to_dicts()
    except (ContradictionError, SchemaChangedError):
        return
    for record, row in zip(json.loads(text), rows, strict=True):
        assert is_same(record, row), (record, row)


@settings(max_examples=fewer(80), deadline=None)
@given(VALUES)
def test_json_as_text_is_the_same_json(value: Any) -> None:
    text = json.dumps(value)
    try:
        [found] = from_json(text, pl.String(), is_text=True)
    except SchemaChangedError:
        return
    is_text = isinstance(value, str) or value is None
    assert found == value if is_text else json.loads(found) == json.loads(text)


def is_same(before: Any, after: Any) -> bool:
    """Whether a value is as JSON has it; what has no values at all may be null."""
    if is_empty(before):
        return is_empty(after)
    if isinstance(before, dict):
        names = before.keys() | after.keys() if isinstance(after, dict) else ()
        return bool(names) and all(is_same(before.get(n), after.get(n)) for n in names)
    if isinstance(before, list):
        same_length = isinstance(after, list) and len(before) == len(after)
        return same_length and all(map(is_same, before, after))
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    return bool(before == after)


def is_empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, list) and all(map(is_empty, value)))


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
    assert read_texts(pl.Series("x", values))[0].dtype == kind


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
