"""A function as the source: what it may yield, what is refused, and that it is read whole."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow as pa
import pytest

from pipeline.config.sections import TransformSettings
from pipeline.config.settings import Settings
from pipeline.errors import JobError, SchemaChangedError, TransformNotAllowedError
from pipeline.ingest import functions
from pipeline.ingest.errors import SourceError
from pipeline.ingest.functions import frames_of
from pipeline.ingest.values import frame_of_records
from pipeline.runs.admin.verify import verify_output
from tests.ingest.conftest import OUTPUT, World
from tests.servers.api import Api
from tests.support.instants import instants

MODULE = "ingested_shop"
CODE = """
    from pathlib import Path

    import polars as pl
    import pyarrow as pa

    CALLS = Path(__file__).with_suffix(".calls")


    def rows(count=5, fails=None):
        with CALLS.open("a") as calls:
            calls.write("x")
        for number in range(count):
            if number == fails:
                raise ValueError("the shop is closed")
            yield {"id": number, "name": f"n{number}"}


    def listed():
        return [[{"id": 0}, {"id": 1, "name": "n1"}], {"id": 2}]


    def frames():
        yield pl.DataFrame({"id": [0], "name": ["n0"]})
        yield pl.LazyFrame({"id": [1], "name": ["n1"]})
        yield {"id": 2, "name": "n2"}
        table = pa.table({"id": [3], "name": pa.array(["n3"]).dictionary_encode()})
        yield table
        yield pa.record_batch({"id": [4], "name": ["n4"]})
        yield pa.table({"id": [5], "name": ["n5"]}).to_reader()


    def table():
        return pa.table({"id": [1, 2]})


    def nothing():
        return []


    def number():
        return 5


    def text():
        yield "id"
"""


@dataclass
class Shop:
    """A module whose functions are ingested."""

    world: World
    folder: Path

    @property
    def calls(self) -> int:
        path = self.folder / f"{MODULE}.calls"
        return len(path.read_text()) if path.exists() else 0

    def source(self, function: str, **params: Any) -> dict[str, Any]:
        return {"source": {"function": f"{MODULE}:{function}", "params": params}}

    def ingest(self, function: str, params: Any = None, **changes: Any) -> Any:
        return self.world.ingest(**self.source(function, **(params or {})), **changes)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    (tmp_path / f"{MODULE}.py").write_text(textwrap.dedent(CODE))
    transforms = TransformSettings(allow=(MODULE,), path=(str(tmp_path),))
    return Shop(World(Api([]), settings=Settings(transforms=transforms)), tmp_path)


def test_what_a_generator_yields_arrives_once(shop: Shop) -> None:
    summary = shop.ingest("rows", {"count": 7})
    assert (summary.rows, summary.source) == (7, "source")
    expected = pl.DataFrame({"id": range(7), "name": [f"n{i}" for i in range(7)]})
    assert shop.world.frame().equals(expected)
    assert verify_output(shop.world.backend.storage(), OUTPUT).problems == ()
    assert shop.ingest("rows", {"count": 7}).already
    assert shop.calls == 1


@pytest.mark.parametrize(
    ("function", "ids"), [("listed", 3), ("frames", 6), ("table", 2), ("nothing", 0)]
)
def test_frames_tables_and_lists_are_rows_too(shop: Shop, function: str, ids: int) -> None:
    assert shop.ingest(function).rows == ids
    frame = shop.world.frame()
    if ids:
        assert sorted(frame["id"].to_list())[-1] == max(range(ids + (function == "table")))
    if function == "frames":
        assert frame["name"].to_list() == [f"n{i}" for i in range(6)]


def test_an_ingest_that_dies_anywhere_calls_it_again_only_if_it_must(shop: Shop) -> None:
    it, source = shop.world, shop.source("rows")
    for number in instants(len(it.calls(**source))):
        it.forget()
        before = shop.calls
        it.dies(number, **source)
        is_read = bool(it.state("reading.json"))
        it.ingest(**source)
        assert shop.calls - before <= (1 if is_read else 2)
        assert it.frame()["id"].to_list() == list(range(5))
        assert len({name.split("/")[2] for name in it.state("/readings/")}) == 1


def test_a_function_that_fails_is_named(shop: Shop) -> None:
    with pytest.raises(SourceError, match=f"{MODULE}:rows failed: ValueError: the shop is") as e:
        shop.ingest("rows", {"fails": 3})
    assert "calls it again" in (e.value.hint or "")
    assert shop.world.state("reading.json") == []


@pytest.mark.parametrize(
    ("function", "params", "kind", "message"),
    [
        ("rws", {}, JobError, "has no function 'rws'"),
        ("rows", {"more": 1}, JobError, "cannot be called with params"),
        ("number", {}, SourceError, "returned int, which are no rows"),
        ("text", {}, SourceError, "yielded str, which are no rows"),
    ],
)
def test_what_is_no_source_is_refused(
    shop: Shop, function: str, params: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        shop.ingest(function, params)


def test_a_module_that_is_not_allowed_is_not_imported(shop: Shop) -> None:
    shop.world.settings = Settings(transforms=TransformSettings(path=(str(shop.folder),)))
    (shop.folder / f"{MODULE}.py").write_text("raise SystemExit('imported')")
    with pytest.raises(TransformNotAllowedError, match="is not allowed"):
        shop.ingest("rows")


def test_parts_of_several_types_become_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        from decimal import Decimal

        def rows(other):
            yield {"id": 1, "v": 1, "d": Decimal("1.5")}
            yield {"id": 2, "v": other, "d": Decimal("1.25"), "new": True}
    """
    (shop.folder / f"{MODULE}.py").write_text(textwrap.dedent(code))
    monkeypatch.setattr(functions, "RECORDS_AT_ONCE", 1)
    shop.ingest("rows", {"other": 2.5})
    assert shop.world.frame().rows() == [
        (1, 1.0, Decimal("1.50"), None),
        (2, 2.5, Decimal("1.25"), True),
    ]
    shop.world.forget()
    with pytest.raises(SchemaChangedError, match="'v' is Int64 and String"):
        shop.ingest("rows", {"other": "x"})
    assert shop.ingest("rows", {"other": "x"}, types={"v": "string"}).rows == 2
    assert shop.world.frame()["v"].to_list() == ["1", "x"]


# -- values ----------------------------------------------------------------------------------------

AT = datetime(2024, 3, 1, 12)
VALUES: dict[str, tuple[list[Any], pl.DataType]] = {
    "bool": ([True, None], pl.Boolean()),
    "int": ([1, 2**63 - 1], pl.Int64()),
    "both": ([1, 2.5], pl.Float64()),
    "text": (["a", ""], pl.String()),
    "uuid": ([UUID(int=1), None], pl.String()),
    "date": ([date(2024, 3, 1), None], pl.Date()),
    "time": ([time(1, 2, 3, 4), None], pl.Time()),
    "naive": ([AT, None], pl.Datetime("us")),
    "aware": ([AT.replace(tzinfo=timezone(timedelta(hours=2)))], pl.Datetime("us", "UTC")),
    "decimal": ([Decimal("1.50"), Decimal("-3")], pl.Decimal(38, 2)),
    "bytes": ([b"\x00", bytearray(b"a")], pl.Binary()),
    "list": ([[1, 2.5], []], pl.List(pl.Float64())),
    "dict": ([{"a": 1}, {"b": ["x"]}], pl.Struct({"a": pl.Int64(), "b": pl.List(pl.String())})),
    "nothing": ([None, None], pl.Null()),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_python_keep_what_they_are(name: str) -> None:
    values, kind = VALUES[name]
    frame = frame_of_records([{"v": value} for value in values], {}, "f")
    assert frame.schema["v"] == kind
    found = frame["v"].to_list()
    if name == "uuid":
        assert found[0] == "00000000-0000-0000-0000-000000000001"
    elif name == "dict":
        assert found == [{"a": 1, "b": None}, {"a": None, "b": ["x"]}]
    elif name == "aware":
        assert found == [datetime(2024, 3, 1, 10, tzinfo=UTC)]
    else:
        assert found == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "x"], "has a whole number and text"),
        ([True, 1], "has a boolean and a whole number"),
        ([AT, AT.date()], "has a date and a time"),
        ([2**64], "has a whole number that no type holds"),
        ([2**60 + 1, 0.5], "has a number and a whole number"),
        ([AT, AT.replace(tzinfo=UTC)], "some have a time zone"),
        ([time(1, tzinfo=UTC)], "has a time zone"),
        ([Decimal("NaN")], "NaN"),
        ([Decimal(10) ** 37, Decimal("0.01")], "more than 38 digits"),
        ([{"a": 1}, {"a": "x"}], "v.a is Int64 and String"),
        ([{"a": AT}], "datetime in it"),
        ([{1: 2}], "a key of it is no text"),
        ([object()], "type object, which is not known"),
        ([1j], "type complex, which is not known"),
        (["\ud800"], "has text that no type holds"),
    ],
)
def test_values_that_would_change_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(SchemaChangedError, match=message) as caught:
        frame_of_records([{"v": value} for value in values], {}, "f")
    assert "column 'v' of f" in str(caught.value)


def test_a_declared_column_may_mix_kinds() -> None:
    values = [1, 2.5, "x", True, AT.date(), b"y", [1], None]
    frame = frame_of_records([{"v": value} for value in values], {"v": pl.String()}, "f")
    assert frame["v"].to_list() == ["1", "2.5", "x", "true", "2024-03-01", "y", "[1]", None]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({1: 2}, "a key of a dict of f is 1"),
        (pl.DataFrame({"v": [object()]}), "objects of Python"),
        (pa.table({"v": pa.array([], pa.month_day_nano_interval())}), "which Polars lacks"),
        (pa.table({"v": pa.array([10**45], pa.decimal256(60, 0))}), "cannot be read"),
    ],
)
def test_tables_that_no_file_holds_are_refused(item: Any, message: str) -> None:
    with pytest.raises(SchemaChangedError, match=message):
        list(frames_of([item], {}, "f"))


def test_a_text_that_is_no_utf8_is_refused() -> None:
    raw = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(SchemaChangedError, match="cannot be read"):
        list(frames_of([pa.table({"v": raw})], {}, "f"))
