"""Excel workbooks as files of an ingest."""

from __future__ import annotations

import io
import re
import sys
import zipfile
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


def changed(data: bytes, pattern: bytes, text: bytes) -> bytes:
    """Replace a pattern in the XML of the sheets of a workbook."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, re.sub(pattern, text, part) if "sheets/" in name else part)
    return buffer.getvalue()


TWO = workbook({"A": [["id"], [1]]})
FAR = {
    "by its name": (b'"A2"', b'"XFD1048576"'),
    "by its row": (b'<row r="2"><c r="A2"', b'<row r="1048576"><c/><c'),
    "in quotes of another kind": (b'<c r="A2"', b"<x:c a='>' r = 'BXZ999999'"),
}
"""Places of the second cell, far from the first."""


def declared_small(data: bytes) -> bytes:
    """Declare 10 bytes for the last part, which is a sheet."""
    size = data.rindex(b"PK\x01\x02") + 24
    return data[:size] + (10).to_bytes(4, "little") + data[size + 4 :]


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


def test_cells_of_a_sheet_need_no_places(it: World) -> None:
    data = changed(
        workbook({"A": [["id", "name"], [1, "a"], [2, "b"]]}), rb' r="[A-Z]*[0-9]+"', b""
    )
    assert ingest(it, data, files={"max_bytes": 3000}).rows == 2
    assert it.frame().to_dicts() == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


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
        *(
            (
                changed(TWO, *far),
                {"max_bytes": 9000},
                "more than 9,000 bytes",
            )
            for far in FAR.values()
        ),
        (declared_small(workbook({"A": [["id"], ["x" * 99]]})), {}, "it is no Excel workbook"),
    ],
    ids=range(10),
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
