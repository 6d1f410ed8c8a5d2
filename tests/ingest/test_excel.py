"""Excel workbooks as files of an ingest."""

from __future__ import annotations

import sys
from datetime import date, datetime
from typing import Any

import pytest

from pipeline.errors import UnreadableObjectError, UsageError
from tests.ingest.conftest import World
from tests.servers.api import Api
from tests.support.workbooks import workbook

URI = "s3://in/orders.xlsx"
ORDERS: list[list[Any]] = [
    ["id", "name", "price", "day", "at", "paid", "mixed", "late", "none"],
    [1, "a", 1.5, date(2024, 3, 1), datetime(2024, 3, 1, 12), True, 1, None, None],
    [2, "#N/A", 2, date(2024, 3, 2), datetime(2024, 3, 2, 6), False, "x", None, None],
    *([3 + i, "b", 1, None, None, None, 7, None, None] for i in range(1200)),
    [None] * 9,
    [9999, "c", 1.25, None, None, None, 2, "only here", None],
]


@pytest.fixture
def it() -> World:
    pytest.importorskip("fastexcel")
    return World(Api([]))


def ingest(it: World, data: bytes, **more: Any) -> Any:
    it.backend.put(URI, data)
    return it.ingest(files={"uri": URI, **more.pop("files", {})}, **more)


def test_a_sheet_by_its_name_has_types_from_all_its_cells(it: World) -> None:
    data = workbook({"Notes": [["x"], ["y"]], "Orders": ORDERS})
    summary = ingest(it, data, files={"sheet": "Orders"})
    assert (summary.rows, summary.drift.empty) == (1203, ("none",))
    first, second, *_, last = it.frame().to_dicts()
    assert first == {
        "id": 1,
        "name": "a",
        "price": 1.5,
        "day": date(2024, 3, 1),
        "at": datetime(2024, 3, 1, 12),
        "paid": True,
        "mixed": "1",
        "late": None,
    }
    assert (second["name"], second["mixed"]) == (None, "x")
    assert (last["id"], last["late"], last["price"]) == (9999, "only here", 1.25)


def test_the_only_sheet_needs_no_name(it: World) -> None:
    assert ingest(it, workbook({"A": [["id"], [1], [2]]}), types={"id": "float64"}).rows == 2
    assert it.frame()["id"].to_list() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("data", "files", "message"),
    [
        (workbook({"A": [["id"]], "B": [["id"]]}), {}, r"the sheets 'A', 'B': name one \(files.sh"),
        (workbook({"A": [["id"]]}), {"sheet": "B"}, "has no sheet 'B' .*, but 'A'"),
        (workbook({"A": [["id"], [1], [True]]}), {}, "'id' of sheet 'A' has numbers and booleans"),
        (workbook({"A": [["id"], [1]]})[:-40], {}, "it is no Excel workbook"),
        (b"id\n1\n", {}, "it is no Excel workbook"),
        (workbook({"A": [["id"], ["x" * 9999]]}), {"max_bytes": 9000}, "more than 9,000 bytes"),
    ],
    ids=range(6),
)
def test_what_is_no_such_workbook_is_named(
    it: World, data: bytes, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnreadableObjectError, match=message) as caught:
        ingest(it, data, files=files)
    assert URI in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(UsageError, match="needs the package fastexcel") as caught:
        ingest(World(Api([])), b"PK")
    assert caught.value.hint == "pip install 'chunkmap[excel]'"
