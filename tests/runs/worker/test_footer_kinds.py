"""Kinds of odd footers: what some reader reads is read, or refused when planning, with the reason.

Each made from a good file, of which one field is changed.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitioning import BadObjectsError, Term
from tests.fuzz.thrift_tree import (
    BINARY,
    I32,
    I64,
    STRUCT,
    Node,
    Steps,
    at,
    footer_of,
    read_tree,
    replaced,
    with_footer,
    write_tree,
    written_by,
)
from tests.runs.worker.test_types import by_pyarrow, one, read

GOOD = by_pyarrow(pa.table({"a": [1, 2, 3], "s": ["x", None, "z"]}))
COLUMN: Steps = (4, 0, 1, 0)
"""The first column chunk of the first row group; its metadata are field 3."""


def changed(path: Steps, new: Node | None, data: bytes = GOOD) -> bytes:
    return with_footer(data, replaced(footer_of(data), path, new))


def added(path: Steps, number: int, new: Node, data: bytes = GOOD) -> bytes:
    """With one more field in a struct."""
    footer = footer_of(data)
    struct = at(footer, path)
    more = Node(STRUCT, tuple(sorted((*struct.value, (number, new)), key=lambda pair: pair[0])))
    return with_footer(data, replaced(footer, path, more))


REFUSED: dict[str, tuple[bytes, str]] = {
    "LZO": (changed((*COLUMN, 3, 4), Node(I32, 3)), "column a: compressed with LZO"),
    "a codec of the future": (changed((*COLUMN, 3, 4), Node(I32, 99)), "unknown codec 99"),
    "no metadata": (changed((*COLUMN, 3), None), "column a: its metadata is missing"),
    "two columns of one name": (changed((2, 2, 4), Node(BINARY, b"a")), "column 'a' occurs twice"),
    "a name that is no UTF-8": (changed((2, 2, 4), Node(BINARY, b"\xff")), "not UTF-8"),
    "an encrypted column": (
        added(COLUMN, 8, Node(STRUCT, ((1, Node(STRUCT, ())),))), "column a: encrypted columns",
    ),
    "another file": (added(COLUMN, 1, Node(BINARY, b"b.parquet")), "pages are in another file"),
    "rows of a file": (changed((3,), Node(I64, 0)), "claims 0 rows; its row groups have 3"),
    "rows of a row group": (changed((4, 0, 3), Node(I64, 5)), "has 5 rows, its column a 3 values"),
    "no repetition": (changed((2, 1, 3), None), "column 'a' does not say whether it is nullable"),
    "an offset outside": (changed((*COLUMN, 3, 9), Node(I64, 10**7)), "column a: bytes"),
    "a size beyond the object": (changed((*COLUMN, 3, 7), Node(I64, 10**6)), "are outside"),
    "a row group without a column": (changed((4, 0, 1, 1), None), "row group 0 has 1 columns"),
    "an empty struct": (
        with_footer(GOOD, replaced(replaced(footer_of(GOOD), (2, 2, 1), None), (2, 2, 5), None)),
        "column 's' has neither a type nor fields",
    ),
    "another type than the schema": (
        changed((*COLUMN, 3, 1), Node(I32, 1)), "differs from the schema",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_reader_should_read_is_refused_when_planning(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BadObjectsError, match=r"s3://b/t/1\.parquet: at byte \d+: ") as caught:
        read(GOOD, data)
    assert reason in str(caught.value)
    found, result = read(GOOD, data, on_bad_object="skip")
    assert found["a"].to_list() == [1, 2, 3]
    assert result.explain.objects_skipped == 1


# -- read, as it is stored -------------------------------------------------------------------------


def logical(number: int, data: bytes, column: int = 1) -> bytes:
    """With another logical type, and neither an older one nor Arrow's."""
    footer = footer_of(data)
    struct = at(footer, (2, column))
    kept = [(n, node) for n, node in struct.value if n not in (6, 10)]
    union = Node(STRUCT, ((number, Node(STRUCT, ())),))
    footer = replaced(footer, (2, column), Node(STRUCT, (*kept, (10, union))))
    return with_footer(data, replaced(footer, (5,), None))


@pytest.mark.parametrize(("number", "name"), [(17, "GEOMETRY"), (18, "GEOGRAPHY")])
def test_types_that_polars_lacks_come_as_they_are_stored(number: int, name: str) -> None:
    data = logical(number, one(pa.binary(), [b"\x01", None]))
    found, result = read(data)
    assert found.schema == {"a": pl.Binary()}
    assert found["a"].to_list() == [b"\x01", None]
    assert result.explain.warnings == (f"column a: {name}, read as it is stored",)


def test_a_variant_comes_as_its_struct() -> None:
    fields = pa.struct([("metadata", pa.binary()), ("value", pa.binary())])
    values = [{"metadata": b"\x01", "value": b"\x02"}, None]
    found, result = read(logical(16, one(fields, values)))
    assert found["a"].to_list() == values
    assert any("VARIANT" in warning for warning in result.explain.warnings)


def test_an_interval_comes_as_its_bytes_beside_good_chunks() -> None:
    values = [bytes(range(12)), None]
    data = added((2, 1), 6, Node(I32, 21), one(pa.binary(12), values, store_schema=False))
    found, _ = read(data)
    assert found.schema == {"a": pl.Binary()}
    assert found["a"].to_list() == values


@pytest.mark.parametrize("empty", ["first", "last", "both"])
def test_empty_row_groups_of_a_large_object(empty: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**62, 100_000)
    table = pa.table({"a": values, "b": values[::-1]})
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema) as writer:
        if empty != "last":
            writer.write_table(table[:0])
        writer.write_table(table)
        if empty != "first":
            writer.write_table(table[:0])
    data = sink.getvalue()
    assert len(data) > 1 << 20
    found, _ = read(data, query=lambda lf: lf.select("b"))
    assert found["b"].to_list() == values[::-1].tolist()


# -- statistics that are cut, or lie ---------------------------------------------------------------


def test_a_transforms_filter_is_not_tried_on_half_a_value() -> None:
    """Statistics of text are cut after 64 bytes; a filter that parses them would fail on that."""
    long = [f"{'0' * 70}{number:05d}" for number in range(2000)]
    data = one(pa.string(), long, row_group_size=500, write_page_index=True)
    parsed = pl.col("a").str.slice(70).str.to_integer(strict=True)
    found, _ = read(data, query=lambda lf: lf.filter(parsed > 1990))
    assert found["a"].to_list() == long[1991:]


def lying(values: pa.Array, created_by: str, lies: dict[int, Node]) -> bytes:
    """A file whose statistics of its column say something else."""
    data = by_pyarrow(pa.table({"a": values}), store_schema=False)
    footer = footer_of(data)
    for field, lie in lies.items():
        footer = replaced(footer, (*COLUMN, 3, 12, field), lie)
    return written_by(with_footer(data, footer), created_by)


def test_null_counts_of_a_writer_that_gets_them_wrong() -> None:
    data = lying(pa.array([7, None, 9]), "parquet-cpp-arrow version 4.0.1", {3: Node(I64, 0)})
    _, result = read(data, filter=((Term("a", "is null"),),))
    assert result.plan.rows == 3, "the row group is read; taking rows away is another step"
    found, _ = read(data, query=lambda lf: lf.filter(pl.col("a").is_null()))
    assert found["a"].to_list() == [None]


def test_times_of_a_writer_that_gets_them_wrong() -> None:
    times = pa.array([7, None, 9]).cast(pa.timestamp("us"))
    eight = Node(BINARY, (8).to_bytes(8, "little"))
    data = lying(times, "Parquet.Net 3.9", dict.fromkeys((5, 6), eight))
    seven = times[0].as_py()
    _, result = read(data, filter=((Term("a", "==", seven),),))
    assert result.plan.rows == 3
    found, _ = read(data, query=lambda lf: lf.filter(pl.col("a") == seven))
    assert found["a"].to_list() == [seven]


def test_statistics_of_others_are_believed() -> None:
    """Which is what the two above are held against."""
    eight = Node(BINARY, (8).to_bytes(8, "little"))
    data = lying(pa.array([7, None, 9]), "Parquet.Net 3.9", dict.fromkeys((5, 6), eight))
    with pytest.raises(ValueError, match="cannot concat empty list"):
        read(data, filter=((Term("a", "==", 7),),))


# -- pages of version 2 that deny their nulls ------------------------------------------------------


def denying(values: list[Any], kind: pa.DataType, dictionary: bool) -> bytes:
    """A file of one page of version 2, which says that it has no nulls."""
    data = one(
        kind, values, data_page_version="2.0", use_dictionary=dictionary, compression="none",
        write_statistics=False,
    )  # fmt: skip
    footer = footer_of(data)
    meta = at(footer, (*COLUMN, 3))
    start = dict(meta.value)[9].value
    header = read_tree(data[start:])
    size = next(
        n for n in range(8, 200)
        if _is_header(data[start : start + n]) and read_tree(data[start : start + n]) == header
    )  # fmt: skip
    new = write_tree(replaced(header, (8, 2), Node(I32, 0)))
    more = len(new) - size
    for field in (6, 7):
        length = dict(meta.value)[field].value
        footer = replaced(footer, (*COLUMN, 3, field), Node(I64, length + more))
    return with_footer(data[:start] + new + data[start + size :], footer)


def _is_header(data: bytes) -> bool:
    try:
        read_tree(data)
    except (IndexError, KeyError):
        return False
    return True


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), [1, 2, None, 2]),
        (pa.string(), ["x", "y", None, "y", None, "z"]),
        (pa.int64(), [None, None]),
        (pa.list_(pa.int64()), [[1, None], None, [3]]),
    ],
)
def test_pages_that_deny_their_nulls(
    kind: pa.DataType, values: list[Any], dictionary: bool
) -> None:
    found, _ = read(denying(values, kind, dictionary))
    assert found["a"].to_list() == values
