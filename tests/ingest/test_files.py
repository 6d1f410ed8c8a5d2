"""Files as the source: formats and compressions, found once, read as they were then."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.config.ingest import parse_ingest
from pipeline.errors import (
    ChunkmapError,
    InputError,
    JobError,
    SchemaChangedError,
    UnreadableObjectError,
    UsageError,
)
from pipeline.ingest.contents import ContentError, decompress, format_of
from pipeline.ingest.errors import SourceFileError
from pipeline.ingest.vacuum import discard_ingests
from pipeline.runs.admin.verify import verify_output
from pipeline.table.publish import rollback
from tests.ingest.conftest import OUTPUT, World
from tests.servers.api import Api
from tests.support.faulty_storage import Fault
from tests.support.instants import instants

FOLDER = "s3://in/exports/"
FRAME = pl.DataFrame(
    {
        "id": range(40),
        "price": [i / 4 for i in range(40)],
        "name": [None if i % 7 == 0 else f"n{i}" for i in range(40)],
        "paid": [i % 2 == 0 for i in range(40)],
    }
)


def zipped(data: bytes, *more: str, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("data", *more):
            archive.writestr(name, data)
    return buffer.getvalue()


def encoded(frame: pl.DataFrame, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "json":
        return json.dumps(frame.to_dicts()).encode()
    if kind == "arrow-stream":
        frame.write_ipc_stream(buffer)
        return buffer.getvalue()
    write: dict[str, Callable[[io.BytesIO], object]] = {
        "csv": frame.write_csv,
        "ndjson": frame.write_ndjson,
        "parquet": frame.write_parquet,
        "arrow": frame.write_ipc,
    }
    write[kind](buffer)
    return buffer.getvalue()


def written(table: pa.Table, **how: Any) -> bytes:
    """The Parquet file that pyarrow writes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **how)
    return buffer.getvalue()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".zip": zipped,
}


@pytest.fixture
def it() -> World:
    return World(Api([]))


def put(it: World, name: str, frame: pl.DataFrame | bytes, kind: str = "") -> None:
    data = frame if isinstance(frame, bytes) else encoded(frame, kind or name.partition(".")[2])
    it.backend.put(FOLDER + name, data)


def ingest(it: World, uri: Any = FOLDER, **changes: Any) -> Any:
    files = {"uri": uri, **changes.pop("files", {})}
    return it.ingest(files=files, **changes)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["csv", "ndjson", "json", "parquet", "arrow", "arrow-stream"])
def test_each_format_and_compression_gives_the_same_rows(
    it: World, kind: str, compression: str
) -> None:
    name = f"{kind.partition('-')[0]}{compression}"
    for number in range(2):
        part = FRAME[number * 20 : number * 20 + 20]
        put(it, f"{number}.{name}", COMPRESSIONS[compression](encoded(part, kind)))
    summary = ingest(it)
    assert (summary.rows, summary.pages, summary.source) == (40, 2, "files")
    assert it.frame().equals(FRAME)
    assert verify_output(it.backend.storage(), OUTPUT).problems == ()


def test_formats_may_be_mixed_and_are_told_by_names(it: World) -> None:
    for number, kind in enumerate(["csv", "ndjson", "parquet"]):
        put(it, f"{number}.{kind}", FRAME[number * 10 : number * 10 + 10])
    assert ingest(it).rows == 30
    assert it.frame().equals(FRAME[:30])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("a.TSV.GZ", "csv"),
        ("a.jsonl.zst", "ndjson"),
        ("a.json.zip", "json"),
        ("a.pq", "parquet"),
        ("a.txt", None),
        ("a.gz", None),
    ],
)
def test_a_name_says_its_format(name: str, kind: str | None) -> None:
    assert format_of(name) == kind


def test_globs_prefixes_and_names(it: World) -> None:
    for name in ("2024-01.csv", "2024-02.csv", "2023-12.csv", "deep/2024-03.csv", "_hidden.csv"):
        put(it, name, FRAME[:5], "csv")
    put(it, "2024-note.txt", b"hello")
    found = [
        (FOLDER + "2024-*.csv", 10),
        (FOLDER + "**/2024-*.csv", 15),
        ([FOLDER + "2023-12.csv", FOLDER + "2024-0[1-2].csv"], 15),
    ]
    for number, (uri, rows) in enumerate(found):
        assert ingest(it, uri, output={"uri": f"s3://out/{number}/"}).rows == rows
    with pytest.raises(InputError, match=r"2024-note.txt does not say its format"):
        ingest(it)
    with pytest.raises(InputError, match=r"no file at s3://in/exports/2025"):
        ingest(it, FOLDER + "2025-*")


# -- CSV ----------------------------------------------------------------------------------------


def test_types_of_csv_are_found_in_its_texts(it: World) -> None:
    text = (
        "id;zip;big;price;paid;day;total;at;none\n"
        "1;01067;9007199254740993;1.5;true;2024-03-01;1.10;2024-03-01T00:00:00+01:00;NA\n"
        "2;80331;2;NA;FALSE;2024-03-02;2;2024-03-01T00:00:00Z;NA\n"
    )
    put(it, "a.csv", text.encode())
    summary = ingest(
        it,
        files={"separator": ";", "nulls": ["NA"]},
        types={"day": "date", "total": "decimal[9, 2]", "at": "datetime[us, UTC]"},
    )
    assert it.frame().to_dict(as_series=False) == {
        "id": [1, 2],
        "zip": ["01067", "80331"],
        "big": [2**53 + 1, 2],
        "price": [1.5, None],
        "paid": [True, False],
        "day": [date(2024, 3, 1), date(2024, 3, 2)],
        "total": [Decimal("1.10"), Decimal("2.00")],
        "at": [datetime(2024, 2, 29, 23, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)],
    }
    assert summary.drift.empty == ("none",)


def test_tsv_has_tabs(it: World) -> None:
    put(it, "a.tsv", b"id\tname\n1\ta,b\n")
    ingest(it)
    assert it.frame().to_dicts() == [{"id": 1, "name": "a,b"}]


def test_a_value_of_csv_that_does_not_fit_is_named(it: World) -> None:
    put(it, "a.csv", b"id,n\n1,5\n2,6\n")
    ingest(it, output={"mode": "append"})
    put(it, "b.csv", b"id,n\n3,7\n4,x7\n")
    with pytest.raises(SchemaChangedError, match=r"but row 2 of .*b.csv has the text 'x7'"):
        ingest(it, output={"mode": "append"})


NOT_HELD = [
    (b"id,n\n1,1.5\n2,1e400\n", {}, "row 2 of .*a.csv has the text '1e400'"),
    (
        b"id,n\n1,0001-01-01T00:00:00+01:00\n",
        {"n": "datetime[us, UTC]"},
        "row 1 of .*a.csv has a value out of range",
    ),
]


@pytest.mark.parametrize(("data", "types", "message"), NOT_HELD, ids=range(2))
def test_a_value_of_csv_that_its_type_does_not_hold_is_named(
    it: World, data: bytes, types: dict[str, str], message: str
) -> None:
    put(it, "a.csv", data)
    with pytest.raises(SchemaChangedError, match=message):
        ingest(it, types=types)


def test_numbers_of_csv_may_be_infinite(it: World) -> None:
    put(it, "a.csv", b"id,n\n1,inf\n2,-inf\n3,1.5\n")
    ingest(it, types={"n": "float64"})
    assert it.frame()["n"].to_list() == [float("inf"), float("-inf"), 1.5]


def test_kinds_that_contradict_each_other_between_files_are_named(it: World) -> None:
    put(it, "a.json", b'[{"id": 1, "n": 5}]')
    put(it, "b.csv", b"id,n\n2,x\n")
    put(it, "c.parquet", pl.DataFrame({"id": [3], "n": [2.5]}))
    with pytest.raises(SchemaChangedError, match=r"'n' is Float64 and String in the files"):
        ingest(it)
    ingest(it, types={"n": "string"})
    assert it.frame()["n"].to_list() == ["5", "x", "2.5"]


def test_what_looks_like_a_number_in_csv_is_text_where_the_column_is(it: World) -> None:
    """In another CSV file, in a file with types, and in the output."""
    put(it, "a.csv", b"id,zip,code\n1,01067,1\n")
    put(it, "b.csv", b"id,zip,code\n2,80331,2\n")
    put(it, "c.jsonl", b'{"id": 3, "zip": "50667", "code": "x"}\n')
    ingest(it, output={"mode": "append"})
    put(it, "d.csv", b"id,zip,code\n4,20095,4\n")
    assert ingest(it, output={"mode": "append"}).notes == ()
    assert it.frame()["zip"].to_list() == ["01067", "80331", "50667", "20095"]
    assert it.frame()["code"].to_list() == ["1", "2", "x", "4"]


# -- once ---------------------------------------------------------------------------------------


APPEND: dict[str, Any] = {"output": {"mode": "append"}}


def test_new_files_are_appended_and_each_is_read_once(it: World) -> None:
    put(it, "1.csv", FRAME[:10])
    first = ingest(it, **APPEND)
    assert ingest(it, **APPEND).already
    put(it, "2.csv", FRAME[10:20])
    put(it, "3.ndjson", FRAME[20:30])
    second = ingest(it, **APPEND)
    assert (second.rows, second.pages) == (20, 2)
    assert second.ingest != first.ingest
    assert it.frame().equals(FRAME[:30])
    put(it, "1.csv", FRAME[:5])
    again = ingest(it, **APPEND)
    assert again.already
    assert "1 file changed after being ingested" in again.notes[0]
    with pytest.raises(UsageError, match="would have them twice"):
        ingest(it, options={"refresh": True}, **APPEND)
    assert it.frame().equals(FRAME[:30])


def test_a_refresh_reads_the_files_that_there_are_then(it: World) -> None:
    put(it, "1.csv", FRAME[:10])
    ingest(it, output={"mode": "overwrite"})
    put(it, "2.csv", FRAME[10:20])
    assert ingest(it, output={"mode": "overwrite"}).already
    ingest(it, options={"refresh": True}, output={"mode": "overwrite"})
    assert it.frame().equals(FRAME[:20])


@pytest.mark.parametrize("fault", ["before", "after"])
def test_an_ingest_of_files_that_dies_anywhere_is_finished_by_the_next(
    it: World, fault: Fault
) -> None:
    put(it, "1.csv", FRAME[:10])
    put(it, "2.csv", FRAME[10:20])
    inputs = dict(it.backend.stored)
    counted = it.calls(files={"uri": FOLDER})
    for number in instants(len(counted), fault):
        it.forget()
        it.backend.stored.update(inputs)
        called = it.dies(number, fault, files={"uri": FOLDER})
        # What has begun does not take in what comes later.
        begun = bool(it.state("sources.json"))
        put(it, "3.csv", FRAME[20:30])
        ingest(it)
        assert it.frame().equals(FRAME[: 20 if begun else 30]), called
        assert it.table_log.head()[0].current == 1
        assert verify_output(it.backend.storage(), OUTPUT).problems == ()


def test_a_file_that_changes_meanwhile_is_refused(it: World) -> None:
    put(it, "1.csv", FRAME[:10])
    calls = it.calls(files={"uri": FOLDER})
    it.dies(calls.index("stage"), files={"uri": FOLDER})
    put(it, "1.csv", FRAME[:5])
    with pytest.raises(SourceFileError, match=r"1.csv changed") as caught:
        ingest(it)
    discard(it, caught.value)
    assert ingest(it).rows == 5


def discard(it: World, error: ChunkmapError) -> None:
    """Do what the hint of an error says."""
    assert error.hint is not None
    assert "then give the command again" in error.hint
    words = error.hint.partition("chunkmap ")[2].partition(";")[0].split()
    assert words[:3] == ["vacuum", OUTPUT, "--discard"]
    discard_ingests(it.backend.storage(), OUTPUT, words[3:])


@pytest.mark.parametrize("change", ["changed", "vanished"])
def test_an_ingest_whose_file_is_not_what_it_was_has_a_way_on(it: World, change: str) -> None:
    """Rows of other files, which are in the output already, do not come again."""
    put(it, "1.csv", FRAME[:10])
    ingest(it, **APPEND)
    put(it, "2.csv", FRAME[10:20])
    put(it, "3.csv", FRAME[20:30])
    calls = it.calls(files={"uri": FOLDER}, **APPEND)
    it.dies(calls.index("stage"), files={"uri": FOLDER}, **APPEND)
    if change == "changed":
        put(it, "3.csv", FRAME[20:25])
    else:
        del it.backend.stored[FOLDER + "3.csv"]
    for _ in range(2):
        with pytest.raises(SourceFileError, match=r"3\.csv") as caught:
            ingest(it, **APPEND)
    discard(it, caught.value)
    ingest(it, **APPEND)
    assert it.frame().equals(FRAME[: 25 if change == "changed" else 20])
    assert ingest(it, **APPEND).already


def test_a_wider_pattern_reads_only_the_files_that_another_has_not_read(it: World) -> None:
    put(it, "a1.csv", FRAME[:10])
    put(it, "b1.csv", FRAME[10:20])
    assert ingest(it, FOLDER + "a*", **APPEND).rows == 10
    wider = ingest(it, FOLDER + "*", **APPEND)
    assert (wider.rows, wider.pages) == (10, 1)
    assert ingest(it, FOLDER + "*", **APPEND).already
    put(it, "a2.csv", FRAME[20:30])
    assert ingest(it, FOLDER + "*", **APPEND).rows == 10
    assert ingest(it, FOLDER + "a*", **APPEND).already
    assert ingest(it, [FOLDER + "a2.csv", FOLDER + "b1.csv"], **APPEND).rows == 0
    assert it.frame().equals(FRAME[:30])


def test_files_of_an_ingest_that_is_not_finished_are_left_to_it(it: World) -> None:
    put(it, "a1.csv", FRAME[:10])
    put(it, "b1.csv", FRAME[10:20])
    narrow: dict[str, Any] = {"files": {"uri": FOLDER + "a*"}, **APPEND}
    it.dies(it.calls(**narrow).index("stage"), **narrow)
    assert ingest(it, **APPEND).rows == 10
    it.ingest(**narrow)
    assert it.frame().equals(FRAME[:20])


def test_files_of_an_ingest_that_was_rolled_back_are_read_again(it: World) -> None:
    put(it, "a1.csv", FRAME[:10])
    put(it, "b1.csv", FRAME[10:20])
    ingest(it, FOLDER + "b*", **APPEND)
    ingest(it, FOLDER + "a*", **APPEND)
    rollback(it.table_log, 1)
    assert ingest(it, **APPEND).rows == 10
    assert it.frame().equals(FRAME[:20])


def test_large_files_are_cut_and_small_ones_put_together(it: World) -> None:
    many = pl.DataFrame({"id": range(20_000), "text": [f"some text {i}" for i in range(20_000)]})
    put(it, "big.csv", many[:19_000])
    for number in range(10):
        put(it, f"small{number}.csv", many[19_000 + number * 100 : 19_100 + number * 100])
    summary = ingest(it, output={"file_bytes": "8KiB"})
    assert it.frame().equals(many)
    sizes = it.table_log.snapshot(it.table_log.manifest())["bytes"].to_list()
    assert 3 < summary.files < 14
    assert max(sizes) < 16_000


# -- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv.gz", gzip.compress(b"id\n1\n" * 99)[:-20], "cannot be decompressed"),
        (
            "a.csv.zst",
            zstandard.ZstdCompressor().compress(b"id\n1\n" * 99)[:-9] + b"x" * 9,
            "decom",
        ),
        ("a.csv.zip", zipped(b"id\n1\n", "more"), "the archive holds 2 files, not one"),
        ("a.csv.zip", zipped(b"id\n1\n" * 50)[:-30], "cannot be decompressed"),
        ("a.csv", b"id,n\n1,2,3,4\n", "it is no CSV file"),
        ("a.csv", b"id,n\n1,2\n3", "row 2 has 1 field, and there are 2 columns"),
        ("a.csv", b'id,n\n"1,2","x\n"\n"3,4"\n', "row 2 has 1 field, and there are 2 columns"),
        ("a.csv", b"id,n\r1,2\r", "its lines end in"),
        ("a.csv", "année,b\n1,2\n".encode("latin-1"), "names of columns are not UTF-8; convert"),
        ("a.csv", "id,b\n1,2\n".encode("utf-16"), "names of columns are not UTF-8"),
        ("a.csv", "id,b\n1,2\n".encode("utf-16-be"), "names of columns are not UTF-8"),
        ("a.csv", "id,b\nannée,2\n\n".encode("latin-1"), "invalid utf-8"),
        ("a.json", b'{"data": [1', "it is not JSON"),
        ("a.json", b"[1, 2]", "record 1 is no object with fields: 1"),
        ("a.ndjson", b'{"id": 1}\n{"id"\n', "line 2: it is not JSON"),
        ("a.ndjson", b"[" * 8000, "line 1: it is not JSON"),
        ("a.parquet", b"PAR1" + b"x" * 50 + b"PAR1", "it is no parquet file"),
        ("a.arrow", b"ARROW1" + b"x" * 50, "it is no arrow file"),
        ("a.csv", b"id\n" + b"1\n" * 5000, "has 10,003 bytes, more than 9,000"),
        (
            "a.csv.gz",
            gzip.compress(b"id\n" + b"1\n" * 5000),
            r"more than 9,000 bytes \(files.max_b",
        ),
        ("a.csv.zip", zipped(b"id\n" + b"1\n" * 5000), "more than 9,000 bytes"),
        (
            "a.parquet",
            written(pa.table({"id": pa.nulls(9000, pa.int64())})),
            r"in memory \(files.max_bytes",
        ),
        (
            "a.parquet",
            written(pa.table({"at": [datetime(3000, 1, 1)]}), use_deprecated_int96_timestamps=True),
            "does not fit Datetime",
        ),
    ],
    ids=range(23),
)
def test_what_cannot_be_read_is_named(it: World, name: str, data: bytes, message: str) -> None:
    put(it, name, data)
    with pytest.raises(UnreadableObjectError, match=message) as caught:
        ingest(it, files={"max_bytes": 9000})
    assert FOLDER + name in str(caught.value)
    assert caught.value.hint is not None
    assert "files.uri" in caught.value.hint


def test_nulls_of_parquet_that_its_page_denies_are_read(it: World) -> None:
    """As parquet-cpp-arrow 10 writes them."""
    ids = [1, None, 3, None, 5, 6]
    data = bytearray(written(pa.table({"id": ids}), data_page_version="2.0", compression="none"))
    page = data.find(b"\x15\x0c\x15\x04\x15\x0c")
    assert page > 0, "6 values, 2 nulls, 6 rows"
    data[page + 3] = 0
    put(it, "a.parquet", bytes(data))
    ingest(it)
    assert it.frame()["id"].to_list() == [None, None, 1, 3, 5, 6]


def test_columns_of_parquet_may_be_read_by_pyarrow(it: World) -> None:
    """INT96 times, next to a column with a name that is a pattern."""
    at = [datetime(2024, 3, 1, 12), None]
    table = pa.table({"*": [1, 2], "at": at, "id": pa.array(["a", "b"]).dictionary_encode()})
    for name, part in (("a.parquet", table), ("b.parquet", table.slice(0, 0))):
        put(it, name, written(part, use_deprecated_int96_timestamps=True))
    ingest(it)
    assert it.frame().to_dict(as_series=False) == {"*": [1, 2], "at": at, "id": ["a", "b"]}


@pytest.mark.parametrize(
    "text",
    [
        "id,name\n1,a\n2,b\n\n",
        "id,name\r\n1,a\r\n\r\n2,b\r\n",
        'id,name\n\n1,"a"\n\n\n2,b',
        "\ufeffid,name\n1,a\n2,b\n\n",
    ],
)
def test_blank_lines_of_csv_are_no_rows(it: World, text: str) -> None:
    put(it, "a.csv", text.encode())
    ingest(it)
    assert it.frame().to_dicts() == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


def test_quotes_in_the_middle_of_a_text_hide_no_separator(it: World) -> None:
    put(it, "a.csv", b'id,size,unit\n1,5" x 6",in\n2,7,8\n')
    ingest(it)
    assert it.frame()["size"].to_list() == ['5" x 6"', "7"]


def test_decompression_stops_at_its_limit() -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 50_000_000))
    with pytest.raises(ContentError, match="more than 1,000 bytes"):
        decompress(gzip.decompress(bomb), 1000)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_of_other_compressions_are_refused(method: int) -> None:
    """They are decompressed without a limit."""
    with pytest.raises(ContentError, match="compression that is not read; use deflate"):
        decompress(zipped(b"\0" * 1_000_000, method=method), 1000)


def test_files_without_rows_are_no_files(it: World) -> None:
    for name in ("a.csv", "b.ndjson", "c.json"):
        put(it, name, b"")
    put(it, "d.csv", b"id,n\n")
    assert ingest(it, **APPEND).files == 0
    put(it, "e.csv", b"id,n\n1,2\n")
    assert ingest(it, **APPEND).files == 1
    assert it.frame().to_dicts() == [{"id": 1, "n": 2}]


def test_columns_follow_the_rule_for_files_too(it: World) -> None:
    put(it, "1.parquet", FRAME[:10])
    ingest(it, **APPEND)
    put(it, "2.csv", FRAME[10:20].drop("name").with_columns(new=pl.lit("x")))
    summary = ingest(it, **APPEND)
    assert (summary.drift.new, summary.drift.missing) == ({"new": "String"}, ("name",))
    assert it.frame().equals(FRAME[:20].with_columns(name=pl.when(pl.col("id") < 10).then("name")))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a\noutput: {uri: s3://b/o/}\n", "set one of `http`, `files`"),
        ("name: a\nfiles: {uri: s3://b/o/in/}\noutput: {uri: s3://b/o/}\n", "overlap"),
        (
            "name: a\nfiles: {uri: s3://b/in/}\nwindow: {from: 2024-01-01, to: 2024-01-02, "
            "parameters: [a, b]}\noutput: {uri: s3://b/o/}\n",
            "`window` needs `http`",
        ),
        ("name: a\nfiles: {url: s3://b/in/}\noutput: {uri: s3://b/o/}\n", "ingest.yaml:2"),
    ],
)
def test_wrong_definitions_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(JobError, match=complaint):
        parse_ingest(text)
