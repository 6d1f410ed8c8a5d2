"""Footers of files that keep columns of another one as their bytes are."""

from __future__ import annotations

import io
import string
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitioning import footer_columns
from partitioning.footer_columns import (
    FooterEdit,
    StoredFooter,
    compose_footer,
    why_not_composed,
)
from partitioning.parquet_footer import BadFooter
from tests.support.fastparquet_file import fastparquet_file
from tests.support.parquet_file import check_file, composed, footer_of, stored, written

KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "small": (pa.int16(), st.integers(-5, 5)),
    "unsigned": (pa.uint32(), st.integers(0, 2**32 - 1)),
    "float": (pa.float64(), st.floats(allow_nan=False)),
    "bool": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.text(max_size=8)),
    "bytes": (pa.binary(), st.binary(max_size=8)),
    "time": (pa.timestamp("us", "Europe/Berlin"), st.integers(0, 10**15)),
    "local": (pa.timestamp("ms"), st.integers(0, 10**12)),
    "duration": (pa.duration("us"), st.integers(-(10**9), 10**9)),
    "decimal": (
        pa.decimal128(12, 2),
        st.integers(-(10**9), 10**9).map(lambda n: Decimal(n).scaleb(-2)),
    ),
    "category": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b", "c"])),
    "list": (pa.list_(pa.int32()), st.lists(st.none() | st.integers(0, 9), max_size=3)),
    "struct": (
        pa.struct([("x", pa.int32()), ("y", pa.list_(pa.string()))]),
        st.fixed_dictionaries({"x": st.integers(0, 9), "y": st.none() | st.just(["a", "b"])}),
    ),
}
names = st.text(string.ascii_lowercase + "ü☃ .*^$\"'`\\\n/=%", min_size=1, max_size=4)


@st.composite
def tables(draw: st.DrawFn, rows: int, least: int = 0) -> pa.Table:
    columns = {}
    for name in draw(st.lists(names, unique=True, min_size=least, max_size=4)):
        kind, values = KINDS[draw(st.sampled_from(sorted(KINDS)))]
        some = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[name] = pa.array(some, kind)
    return pa.table(columns)


@st.composite
def edits(draw: st.DrawFn) -> tuple[pa.Table, list[int], pa.Table, FooterEdit]:
    """A table, the rows of its row groups, new columns, and what becomes of the old ones."""
    groups = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    old = draw(tables(sum(groups), least=1))
    new = draw(tables(sum(groups)))
    first, *others = old.column_names
    new = new.select([name for name in new.column_names if name != first])
    if others and draw(st.booleans()):  # Replace one.
        replaced = draw(st.sampled_from(others))
        if replaced not in new.column_names:
            columns = {name: new[name] for name in new.column_names}
            new = pa.table({**columns, replaced: pa.array(range(sum(groups)), pa.int32())})
    keep = [n for n in others if n not in new.column_names and draw(st.booleans())]
    rename: dict[str, str] = {}
    for name in [first, *keep]:
        target = draw(names)
        taken = {*old.column_names, *new.column_names, *rename.values()}
        if target not in taken and draw(st.booleans()):
            rename[name] = target
    return old, groups, new, FooterEdit((first, *keep), rename)


def expected(old: pa.Table, new: pa.Table, edit: FooterEdit) -> pa.Table:
    """The plain way."""
    columns = {}
    for name in old.column_names:
        if name in edit.keep:
            columns[edit.target(name)] = old[name]
        elif name in new.column_names:
            columns[name] = new[name]
    columns |= {name: new[name] for name in new.column_names if name not in columns}
    return pa.table(columns)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(edits(), st.booleans())
def test_composed_files_are_read_as_plain_ones(
    case: tuple[pa.Table, list[int], pa.Table, FooterEdit], index: bool
) -> None:
    old_table, groups, new_table, edit = case
    old = written(old_table, groups, write_page_index=index)
    new = written(new_table, groups) if new_table.num_columns else None
    assert why_not_composed(stored(old), edit, new_table.column_names) is None
    assert stored(old).rows == groups
    file = composed(old, new, edit)
    check_file(file)
    whole = expected(old_table, new_table, edit)
    back = pq.read_table(io.BytesIO(file))
    assert back.schema.equals(pq.read_table(io.BytesIO(written(whole, groups))).schema)
    assert back.to_pydict() == whole.to_pydict()
    plain = pl.read_parquet(io.BytesIO(written(whole, groups)))
    assert pl.read_parquet(io.BytesIO(file)).equals(plain)


@pytest.fixture
def table() -> pa.Table:
    count = 60
    return pa.table(
        {
            "n": pa.array(range(count), pa.int64()),
            "text": pa.array([f"row {n % 7}" for n in range(count)]),
            "tags": pa.array([[n] * (n % 3) for n in range(count)]),
            "at": pa.array([datetime(2024, 1, 1, tzinfo=UTC) + timedelta(n) for n in range(count)]),
        }
    )


GROUPS = [20, 0, 15, 25]
NEW = pa.table({"twice": pa.array(range(0, 120, 2), pa.int64())})


def readers(file: Path) -> Iterator[tuple[str, list[int], list[int]]]:
    """What each reader finds in `n` and `twice` where n is at least 50."""
    wanted = pl.col("n") >= 50
    scan = pl.scan_parquet(file).filter(wanted)
    for engine in ("in-memory", "streaming"):
        found = scan.collect(engine=engine)
        yield engine, found["n"].to_list(), found["twice"].to_list()
    arrow = pq.read_table(file, filters=[("n", ">=", 50)])
    yield "pyarrow", arrow["n"].to_pylist(), arrow["twice"].to_pylist()
    rows = duckdb.sql(f"SELECT n, twice FROM '{file}' WHERE n >= 50 ORDER BY n").fetchall()
    yield "duckdb", [n for n, _ in rows], [twice for _, twice in rows]


@pytest.mark.parametrize("writer", ["pyarrow", "polars", "streaming", "duckdb"])
def test_readers_prune_and_agree(table: pa.Table, tmp_path: Path, writer: str) -> None:
    """Statistics, page indexes, dictionaries and Bloom filters of kept columns still hold."""
    source = tmp_path / "old.parquet"
    frame = pl.DataFrame(pl.from_arrow(table))
    if writer == "pyarrow":
        source.write_bytes(written(table, GROUPS, write_page_index=True))
    elif writer == "polars":
        frame.write_parquet(source, row_group_size=20)
    elif writer == "streaming":
        frame.lazy().sink_parquet(source, row_group_size=20)
    else:
        connection = duckdb.connect()
        connection.register("t", table)
        connection.execute(f"COPY t TO '{source}' (FORMAT parquet)")
    old = source.read_bytes()
    file = tmp_path / "new.parquet"
    file.write_bytes(
        composed(old, written(NEW, stored(old).rows), FooterEdit(tuple(table.column_names)))
    )
    check_file(file.read_bytes())
    for name, found, twice in readers(file):
        assert found == list(range(50, 60)), name
        assert twice == list(range(100, 120, 2)), name


def test_a_file_by_fastparquet(tmp_path: Path) -> None:
    """It has pandas' metadata, no Arrow schema, and nulls as fastparquet writes them."""
    old, file = fastparquet_file(), tmp_path / "new.parquet"
    assert stored(old).rows == [25, 35]
    edit = FooterEdit(("n", "text"), {"text": "words"})
    file.write_bytes(composed(old, written(NEW, [25, 35]), edit))
    check_file(file.read_bytes())
    words = [None if n % 7 == 0 else f"row {n % 5}" for n in range(60)]
    frame = pl.read_parquet(file)
    assert frame.to_dict(as_series=False) == {
        "n": list(range(60)), "words": words, "twice": list(range(0, 120, 2)),
    }  # fmt: skip
    assert pq.read_table(file).to_pydict() == frame.to_dict(as_series=False)
    for name, found, twice in readers(file):
        assert (found, twice) == (list(range(50, 60)), list(range(100, 120, 2))), name


def test_page_indexes_and_bloom_filters_stay(table: pa.Table, tmp_path: Path) -> None:
    edit = FooterEdit(("n", "text"), {"text": "words"})
    old = written(table, GROUPS, write_page_index=True)
    group = pq.read_metadata(io.BytesIO(composed(old, written(NEW, GROUPS), edit))).row_group(0)
    has = [
        (column.has_offset_index, column.has_column_index) for column in map(group.column, range(3))
    ]
    assert has == [(True, True), (True, True), (False, False)]
    source, file = tmp_path / "old.parquet", tmp_path / "new.parquet"
    connection = duckdb.connect()
    connection.register("t", table)
    connection.execute(f"COPY t TO '{source}' (FORMAT parquet)")
    file.write_bytes(composed(source.read_bytes(), written(NEW, [60]), edit))
    offsets = connection.sql(
        f"SELECT path_in_schema, bloom_filter_offset FROM parquet_metadata('{file}')"
    ).fetchall()
    assert {name for name, offset in offsets if offset} >= {"words"}

    def excluded(text: str) -> Any:
        probe = (
            f"SELECT bloom_filter_excludes FROM parquet_bloom_probe('{file}', 'words', '{text}')"
        )
        return connection.sql(probe).fetchall()

    assert excluded("row 3") == [(False,)]
    assert excluded("no such row") == [(True,)]


def test_pairs_that_are_there_twice(table: pa.Table) -> None:
    """Those of users stay; there is one Arrow schema, of all columns."""
    plain = written(table.replace_schema_metadata({"owner": "sales"}), GROUPS)
    fields = footer_columns._fields(footer_of(plain))
    twice = footer_columns._items(footer_columns._find(fields, 5)) * 2
    body = footer_columns._struct(
        footer_columns._replace(fields, footer_columns._list(5, twice), 5)
    )
    end = len(plain) - 8 - len(footer_of(plain))
    old = plain[:end] + body + len(body).to_bytes(4, "little") + b"PAR1"
    assert len(stored(old).pairs) == 4
    made = composed(old, written(NEW, GROUPS), FooterEdit(tuple(table.column_names)))
    assert [key for key, _ in stored(made).pairs] == [b"owner", b"owner", b"ARROW:schema"]
    back = pq.read_table(io.BytesIO(made))
    assert back.column_names == [*table.column_names, "twice"]
    assert back.schema.field("at").type == table.schema.field("at").type


def test_a_file_without_row_groups(table: pa.Table) -> None:
    old, edit = written(table[:0], []), FooterEdit(("n", "at"), {"at": "when"})
    for new in (None, written(NEW[:0], [])):
        made = composed(old, new, edit)
        check_file(made)
        names = ["n", "when", *([] if new is None else ["twice"])]
        assert pq.read_table(io.BytesIO(made)).column_names == names
        assert pl.read_parquet(io.BytesIO(made)).columns == names


def test_the_writer_and_other_metadata_stay(table: pa.Table) -> None:
    named = table.replace_schema_metadata({"owner": "sales", "pandas": "{}"})
    old = written(named, GROUPS)
    edit = FooterEdit(("n", "text"), {"text": "words"})
    metadata = pq.read_metadata(io.BytesIO(composed(old, written(NEW, GROUPS), edit)))
    assert metadata.created_by == pq.read_metadata(io.BytesIO(old)).created_by
    assert metadata.metadata is not None
    assert metadata.metadata[b"owner"] == b"sales"
    # It would name columns that are gone.
    assert b"pandas" not in metadata.metadata


@pytest.mark.parametrize(
    ("key", "stays"),
    [
        ("org.apache.spark.sql.parquet.row.metadata", False),
        ("parquet.avro.schema", False),
        ("org.apache.spark.version", True),
        ("pandas", True),
        ("geo", True),
    ],
)
def test_metadata_by_which_readers_find_columns(table: pa.Table, key: str, stays: bool) -> None:
    """Spark and Avro's reader would not see a column that theirs does not name."""
    old = written(table.replace_schema_metadata({key: "{}"}), GROUPS)
    names = tuple(table.column_names)
    metadata = pq.read_metadata(io.BytesIO(composed(old, written(NEW, GROUPS), FooterEdit(names))))
    assert (key.encode() in (metadata.metadata or {})) == stays
    same = pq.read_metadata(io.BytesIO(composed(old, None, FooterEdit(names))))
    assert key.encode() in (same.metadata or {})


@pytest.mark.parametrize("key", ["pandas", "geo", "org.apache.spark.sql.parquet.row.metadata"])
def test_metadata_of_columns_that_swap_their_names(table: pa.Table, key: str) -> None:
    old = written(table.replace_schema_metadata({key: "{}"}), GROUPS)
    edit = FooterEdit(tuple(table.column_names), {"n": "text", "text": "n"})
    metadata = pq.read_metadata(io.BytesIO(composed(old, None, edit)))
    assert key.encode() not in (metadata.metadata or {})


def test_the_order_of_rows_stays_where_its_columns_do(table: pa.Table) -> None:
    order = [pq.SortingColumn(0), pq.SortingColumn(1)]
    old = written(table, GROUPS, sorting_columns=order)

    def sorted_by(edit: FooterEdit) -> list[int]:
        file = composed(old, written(NEW, GROUPS), edit)
        columns = pq.read_metadata(io.BytesIO(file)).row_group(0).sorting_columns
        return [column.column_index for column in columns]

    assert sorted_by(FooterEdit(("n", "text", "at"))) == [0, 1]
    assert sorted_by(FooterEdit(("n", "at"))) == [0]


def test_bytes_that_nothing_refers_to(table: pa.Table) -> None:
    old = written(table, GROUPS)
    footer = stored(old)
    assert footer.unreferenced_bytes(FooterEdit(("n", "text", "tags", "at"))) == 0
    metadata = pq.read_metadata(io.BytesIO(old))
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    dropped = sum(group.column(1).total_compressed_size for group in groups)
    edit = FooterEdit(("n", "tags", "at"))
    assert footer.unreferenced_bytes(edit) == dropped


@pytest.mark.parametrize(
    ("edit", "new", "reason"),
    [
        (FooterEdit(("text",)), [], "first column, 'n', is not kept"),
        (FooterEdit(()), ["x"], "none of its columns"),
        (FooterEdit(("n", "other")), [], "no column 'other'"),
        (FooterEdit(("n", "text"), {"text": "n"}), [], "one name"),
    ],
)
def test_why_a_file_is_rewritten(
    table: pa.Table, edit: FooterEdit, new: list[str], reason: str
) -> None:
    old = written(table, GROUPS)
    found = why_not_composed(stored(old), edit, new)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    ("pairs", "is_old"),
    [
        ({"org.apache.spark.legacyDateTime": ""}, True),
        ({"org.apache.spark.version": "3.5.0", "org.apache.spark.legacyINT96": ""}, True),
        ({"org.apache.spark.version": "2.4.8"}, True),
        ({"org.apache.spark.version": "3.0.0"}, False),
        ({"writer.date.proleptic": "false"}, True),
        ({"writer.date.proleptic": "true"}, False),
        ({"owner": "sales"}, False),
    ],
    ids=str,
)
def test_new_dates_are_not_put_beside_those_of_an_old_calendar(
    table: pa.Table, pairs: dict[str, str], is_old: bool
) -> None:
    """Spark and Hive take all dates of a file for ones of the same calendar."""
    old = stored(written(table.replace_schema_metadata(pairs), GROUPS))
    edit = FooterEdit(tuple(table.column_names))
    assert why_not_composed(old, edit, ["x"], has_dates=False) is None
    reason = why_not_composed(old, edit, ["x"], has_dates=True)
    assert (reason is not None and f"of an old calendar ({[*pairs][-1]})" in reason) == is_old


def with_field(footer: bytes, number: int) -> bytes:
    """Add an unknown field, a text, at the end of a struct."""
    fields = footer_columns._fields(footer)
    return footer_columns._struct([*fields, footer_columns._Field(number, 8, b"\x03new")])


def test_unknown_fields_of_a_file_are_refused_and_of_a_column_survive(table: pa.Table) -> None:
    old = written(table, GROUPS)
    footer = with_field(footer_of(old), 30)
    edit = FooterEdit(tuple(table.column_names))
    size = len(old) - len(footer_of(old)) + len(footer)
    reason = why_not_composed(StoredFooter.read(footer, size), edit, ["x"])
    assert reason == "its footer has the unknown field 30"
    # In the first column chunk of the first row group.
    fields = footer_columns._fields(footer_of(old))
    groups = footer_columns._items(footer_columns._find(fields, 4))
    group = footer_columns._fields(groups[0])
    chunks = footer_columns._items(footer_columns._find(group, 1))
    chunks[0] = with_field(chunks[0], 40)
    group = footer_columns._replace(group, footer_columns._list(1, chunks), 1)
    groups[0] = footer_columns._struct(group)
    fields = footer_columns._replace(fields, footer_columns._list(4, groups), 4)
    body = footer_columns._struct(fields)
    end = len(old) - 8 - len(footer_of(old))
    file = old[:end] + body + len(body).to_bytes(4, "little") + b"PAR1"
    made = composed(file, written(NEW, GROUPS), edit)
    assert chunks[0] in footer_of(made)
    assert pq.read_table(io.BytesIO(made))["n"].to_pylist() == list(range(60))


def test_row_groups_must_fit(table: pa.Table) -> None:
    old = written(table, GROUPS)
    edit = FooterEdit(tuple(table.column_names))
    with pytest.raises(BadFooter, match="row groups"):
        composed(old, written(NEW, [60]), edit)
    with pytest.raises(BadFooter, match="rows, the new columns"):
        composed(old, written(NEW, [15, 5, 15, 25]), edit)
    with pytest.raises(BadFooter, match="an index"):
        composed(old, written(NEW, GROUPS, write_page_index=True), edit)


@settings(deadline=None)
@given(st.data())
def test_damaged_footers_are_refused(data: st.DataObject) -> None:
    columns = {"a": [1, 2, 3], "b": ["x", "y", None], "c": [[1], [], None]}
    old = written(pa.table(columns), [2, 1])
    footer = bytearray(footer_of(old))
    for _ in range(data.draw(st.integers(1, 3))):
        footer[data.draw(st.integers(0, len(footer) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(footer[: data.draw(st.integers(len(footer) - 3, len(footer)))])
    edit, new = FooterEdit(("a", "b"), {"b": "z"}), written(pa.table({"d": [1, 2, 3]}), [2, 1])
    try:
        damaged = StoredFooter.read(cut, len(old))
        if why_not_composed(damaged, edit, ["d"]) is None:
            compose_footer(damaged, stored(new), damaged.start - 4, edit)
    except BadFooter:
        pass


@pytest.mark.long
def test_wide_footers_take_seconds() -> None:
    """A footer above 16 MB: 5,000 columns in 24 row groups."""
    names = [f"a_column_with_a_long_name_{n}" for n in range(5000)]
    wide = pa.table({name: [1, 2] * 12 for name in names})
    old = written(wide, [1] * 24)
    assert len(footer_of(old)) > 16 << 20
    new = written(pa.table({"new": range(24)}), [1] * 24)
    file = composed(old, new, FooterEdit(tuple(names), {names[7]: "seventh"}))
    back = pq.read_table(io.BytesIO(file), columns=["new", "seventh", names[4999]])
    assert back.to_pydict() == {
        "new": list(range(24)),
        "seventh": [1, 2] * 12,
        names[4999]: [1, 2] * 12,
    }
