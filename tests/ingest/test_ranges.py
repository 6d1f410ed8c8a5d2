"""Large files in pieces: the same rows and types as read whole, wherever ranges begin."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.ingest import Files
from pipeline.errors import (
    SchemaChangedError,
    StateError,
    UnreadableObjectError,
    UsageError,
)
from pipeline.ingest import remote, run
from pipeline.ingest.contents import csv_frame, typed_csv
from pipeline.ingest.errors import SourceFileError
from pipeline.ingest.files import FileRows
from pipeline.ingest.kept_frames import KeptFrames
from pipeline.ingest.pieces import FindPiece, PieceFound, PieceReader
from pipeline.ingest.ranges import Cutting, whole_file
from pipeline.ingest.rows import Found
from pipeline.ingest.store import IngestStore, SourceFile, StagedFile
from pipeline.ingest.texts import Look, read_texts
from pipeline.ingest.workers import LocalWorkers
from pipeline.runs.admin.verify import verify_output
from pipeline.storage import Storage, staged_area
from tests.ingest.conftest import OUTPUT, World
from tests.servers.api import Api
from tests.support.examples import fewer
from tests.support.faulty_storage import Fault
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE, MemoryBackend

URI = "s3://in/a.csv"
FOLDER = "s3://in/exports/"
SOURCE = SourceFile(uri=URI, etag="e", size=9)


def rows_of(
    data: bytes, size: int, uri: str = URI, *, keeps: bool = False, **more: Any
) -> FileRows:
    """The rows of a file in memory, cut by ranges of a size; kept on disk once they are read."""
    backend = MemoryBackend()
    backend.put(uri, data)
    storage = Storage({"s3": backend}, AT_ONCE)
    files = Files(uri=(uri,), range_bytes=size, **more)
    workers = LocalWorkers(storage, 1)
    store = IngestStore(storage, OUTPUT, "0" * 16)
    info = storage.head(uri)
    source = SourceFile(uri=uri, etag=info.etag, size=info.size)
    reader = PieceReader(storage, files, KeptFrames() if keeps else None)
    cut = Cutting(reader, workers).pieces(store, [source], ())
    again = Cutting(reader, workers).pieces(store, [source], ())
    assert (again.pieces, again.cuts) == (cut.pieces, cut.cuts)
    return FileRows(files, reader, cut, workers)


def read(rows: FileRows) -> tuple[Found, pl.DataFrame]:
    found = rows.find({}, None)
    types = {name: pl.String() if k == pl.Null() else k for name, k in found.types.items()}
    return found, rows.frame(0, len(rows.units), types, frozenset())


# -- CSV ------------------------------------------------------------------------------------------

_VALUE = st.one_of(
    st.text('ab",\n\r é', max_size=6),
    st.sampled_from(
        ["", "1", "-20", "1.5", "01", "true", "12345678901234567", "9" * 20, '""', "\n"]
    ),
)


@st.composite
def csv_files(draw: st.DrawFn) -> tuple[list[list[str | None]], bytes]:
    """Rows, and a CSV file that has them."""
    width = draw(st.integers(1, 3))
    end = draw(st.sampled_from(["\n", "\r\n"]))

    def record(values: Sequence[str]) -> str:
        texts = []
        for value in values:
            must = any(c in value for c in '",\n\r') or not value.strip(" ")
            quoted = must or draw(st.booleans())
            texts.append('"' + value.replace('"', '""') + '"' if quoted else value)
        return ",".join(texts)

    header = [f"c{i}\n" if draw(st.booleans()) else f"c{i}" for i in range(width)]
    rows: list[list[str | None]] = []
    lines = [record(header)]
    for values in draw(st.lists(st.lists(_VALUE, min_size=width, max_size=width), max_size=12)):
        if draw(st.integers(0, 5)) == 0:
            lines.append("")  # A blank line is no row, unless there is one column.
            rows += [[None]] * (width == 1)
        lines.append(record(values))
        rows.append([value or None for value in values])
    last = end if draw(st.booleans()) or lines[-1] == "" else ""
    return rows, (end.join(lines) + last).encode()


@settings(max_examples=fewer(60), deadline=None)
@given(csv_files(), st.integers(1, 60))
def test_a_csv_file_in_pieces_has_the_rows_and_types_of_the_whole(
    file: tuple[list[list[str | None]], bytes], size: int
) -> None:
    rows, data = file
    whole_found, whole = read(rows_of(data, 1 << 20))
    found, frame = read(rows_of(data, size))
    assert found == whole_found
    assert frame.equals(whole)
    assert found.rows == len(rows)
    kinds = {name: pl.String() if k == pl.Null() else k for name, k in found.types.items()}
    assert frame.equals(typed_csv(csv_frame(data, ",", ("",)), kinds, URI))
    # Two oracles: what was written, and Python's reader.
    texts = rows_of(data, size)
    columns = list(found.types)
    as_texts = texts.frame(0, len(texts.units), dict.fromkeys(columns, pl.String()), frozenset())
    assert [list(row) for row in as_texts.rows()] == rows
    parsed = list(csv.reader(io.StringIO(data.decode(), newline="")))
    kept = [row or [""] for row in parsed[1:] if row or len(columns) == 1]
    assert [[value or None for value in row] for row in kept] == rows


def test_ranges_of_any_size_cut_quoted_lines_right() -> None:
    """Where ranges begin in quotes whose content looks like records."""
    fake = "\n".join('9,""fake"",""9""' for _ in range(5))
    data = "id,text,n\n" + "".join(f'{i},"x\n{fake}\r\n{i},y",{i}\r\n' for i in range(12))
    whole_found, whole = read(rows_of(data.encode(), 1 << 20))
    assert whole.height == 12
    for size in (1, 2, 3, 5, 7, 11, 16, 23, 31, 64, 150):
        rows = rows_of(data.encode(), size)
        found, frame = read(rows)
        assert (found, frame.equals(whole)) == (whole_found, True), size
        assert len(rows.units) > 6


def test_a_large_file_is_read_by_ranges_and_not_whole() -> None:
    data = b"id,name\n" + b"".join(b"%d,n%d\n" % (i, i) for i in range(5000))
    rows = rows_of(data, 4096, max_bytes=10_000)
    found, frame = read(rows)
    assert found == Found({"id": pl.Int64(), "name": pl.String()}, 5000)
    assert frame["id"].to_list() == list(range(5000))
    assert max(unit.bytes for unit in rows.units) < 4200


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ("7", pl.Int64()),
        ("x", pl.String()),
        ("007", pl.String()),
        ("1.5", pl.Float64()),
        ("true", pl.String()),
        ("12345678901234567890", pl.String()),
        ("", pl.Int64()),
    ],
)
def test_the_type_of_a_column_follows_from_all_pieces(last: str, kind: pl.DataType) -> None:
    data = "id\n" + "5\n" * 400 + last + "\n"
    found, frame = read(rows_of(data.encode(), 50))
    assert found.types == {"id": kind}
    assert frame.height == 401


NUMBERS = [
    *("", "5", "-1", "+3", "1.5", "1e3", ".5", "5.", "007", "0", "0.5", " 5", "nan", "inf"),
    *("1" * 15, "1" * 16, "1" * 18, "9" * 19, "-9223372036854775808", "true", "FALSE", "x"),
]


@given(
    st.lists(
        st.sampled_from(NUMBERS),
        max_size=8,
    ),
    st.integers(0, 8),
)
def test_parts_of_a_column_look_like_the_whole(texts: list[str], at: int) -> None:
    column = pl.Series("x", [text or None for text in texts], dtype=pl.String)
    whole, before, after = (read_texts(part)[0] for part in (column, column[:at], column[at:]))
    merged = before.merged(after)
    assert merged.dtype == whole.dtype == plain_type(column)
    assert merged.merged(Look()) == merged


def plain_type(column: pl.Series) -> pl.DataType:
    """The rule, as it was before columns were looked at in parts."""
    values = column.drop_nulls()
    if values.is_empty():
        return pl.Null()
    if values.str.contains(r"^[+-]?0\d").any():
        return pl.String()
    if values.str.contains(r"^[+-]?\d{1,18}$").all():
        return pl.Int64()
    if values.str.contains(r"^[+-]?\d{16,}$").any():
        is_whole = values.str.contains(r"^[+-]?\d+$").all()
        fits = not values.cast(pl.Int64, strict=False).null_count()
        return pl.Int64() if is_whole and fits else pl.String()
    if values.str.contains(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$").all():
        return pl.Float64()
    if values.str.to_lowercase().is_in(["true", "false"]).all():
        return pl.Boolean()
    return pl.String()


STRAY = b'id,size\n1,5" pipe\n2,6" pipe\n' + b"3,x\n" * 50


def test_a_file_whose_quotes_do_not_tell_where_records_end_is_read_whole_or_refused() -> None:
    assert len(rows_of(b'id,size\n1, "x"\n' + b"3,x\n" * 50, 20).units) == 1
    for data in (STRAY, b'a,b\n1,"x" y\n' + b"3,x\n" * 50):
        with pytest.raises(UnreadableObjectError, match=r"quote inside a value .* cannot be cut"):
            rows_of(data, 20, max_bytes=100)
        assert len(rows_of(data, 20).units) == 1


def test_a_quote_that_is_never_closed_is_an_error() -> None:
    data = b"id,text\n" + b"3,x\n" * 50 + b'4,"y\n' + b"3,x\n" * 50
    for size in (20, 1000):
        with pytest.raises(UnreadableObjectError, match="a quote is never closed"):
            read(rows_of(data, size))


def test_a_record_larger_than_the_limit_is_refused() -> None:
    data = b'id,text\n1,"' + b"\n" * 100_000 + b'"\n2,x\n'
    with pytest.raises(UnreadableObjectError, match=r"has more than 9,000 bytes"):
        rows_of(data, 1000, max_bytes=9000)


def test_compressed_files_are_not_cut() -> None:
    import gzip

    data = gzip.compress(b"id\n" + b"1\n" * 5000, compresslevel=0)
    rows = rows_of(data, 100)
    assert len(rows.units) == 1
    assert read(rows)[1].height == 5000


def test_a_header_longer_than_a_range_and_empty_lines_before_it() -> None:
    data = b"\n\r\n" + b",".join(b"column%d" % i for i in range(40)) + b"\n" + b"1" + b",2" * 39
    found, frame = read(rows_of(data + b"\n" + data[-79:] + b"\n", 10))
    assert (found.rows, frame.width, frame["column39"].to_list()) == (2, 40, [2, 2])


# -- NDJSON ---------------------------------------------------------------------------------------

_JSON = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.one_of(
        st.integers(-9, 9), st.none(), st.floats(-1, 1), st.lists(st.integers(0, 3), max_size=2)
    ),
)


@settings(max_examples=fewer(40), deadline=None)
@given(st.lists(_JSON, max_size=12), st.integers(1, 60), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_lines_of_json_in_pieces_have_the_rows_and_types_of_the_whole(
    records: list[dict[str, Any]], size: int, end: str
) -> None:
    data = end.join(json.dumps(record) for record in records).encode()
    results: list[Any] = []
    for ranges in (1 << 20, size):
        try:
            results.append(read(rows_of(data, ranges, "s3://in/a.jsonl")))
        except Exception as error:  # The same contradiction of types.
            results.append((type(error).__name__, pl.DataFrame()))
    assert results[0][0] == results[1][0]
    assert results[0][1].equals(results[1][1])


# -- ingests --------------------------------------------------------------------------------------

TEXT = b"id,name,n\n" + b"".join(b'%d,"a\nb%d",%d\r\n' % (i, i, i * 3) for i in range(200))
SMALL: dict[str, Any] = {
    "files": {"uri": FOLDER, "range_bytes": 500},
    "output": {"file_bytes": 4000},
}


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> World:
    """An output in memory; works are done one after the other, so that requests have an order."""
    monkeypatch.setattr(run, "LocalWorkers", partial(LocalWorkers, threads=1))
    world = World(Api([]))
    world.backend.put(FOLDER + "1.csv", TEXT)
    return world


def expected() -> pl.DataFrame:
    return pl.read_csv(TEXT)


def test_a_large_file_becomes_files_of_the_target_size(
    it: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LocalWorkers", LocalWorkers)
    summary = it.ingest(**SMALL)
    assert (summary.rows, summary.records, summary.pages) == (200, 200, 1)
    assert 1 < summary.files < 12
    assert it.frame().equals(expected())
    assert verify_output(it.backend.storage(), OUTPUT).problems == ()


@pytest.mark.parametrize("fault", ["before", "after"])
def test_an_ingest_of_a_large_file_that_dies_anywhere_is_finished_by_the_next(
    it: World, fault: Fault
) -> None:
    counted = it.calls(**SMALL)
    assert counted.count("stage") > 2
    for number in instants(len(counted), fault, "ranges"):
        it.forget()
        it.backend.put(FOLDER + "1.csv", TEXT)
        called = it.dies(number, fault, **SMALL)
        # How files are cut does not change once it is stored.
        noted = len(it.state("/files/"))
        calls = it.calls(**{**SMALL, "files": {"uri": FOLDER, "range_bytes": 900}})
        it.ingest(**SMALL)
        assert it.frame().equals(expected()), called
        assert calls.count("stage") <= counted.count("stage") - noted, "nothing is staged twice"
        assert verify_output(it.backend.storage(), OUTPUT).problems == ()


def test_partitions_of_a_large_file(it: World) -> None:
    it.ingest(
        files={"uri": FOLDER, "range_bytes": 500},
        types={"name": "string"},
        output={"partition_by": ["n"], "mode": "append"},
    )
    manifest = it.table_log.manifest()
    assert it.table_log.snapshot(manifest)["rows"].sum() == 200


def test_a_large_file_that_changes_meanwhile_is_refused(it: World) -> None:
    calls = it.calls(**SMALL)
    it.dies(calls.index("stage"), **SMALL)
    it.backend.put(FOLDER + "1.csv", TEXT + b"1,2,3\n")
    with pytest.raises(SourceFileError, match=r"1.csv changed"):
        it.ingest(**SMALL)


def test_stored_cuts_are_checked(it: World) -> None:
    calls = it.calls(**SMALL)
    it.dies(calls.index("stage"), **SMALL)
    with pytest.raises(UsageError, match="was cut as csv, and now it is ndjson"):
        it.ingest(**{**SMALL, "files": {**SMALL["files"], "format": "ndjson"}})
    [name] = it.state("ranges.json")
    uri = f"{OUTPUT.rstrip('/')}.chunkmap/ingests/{name}"
    it.backend.put(uri, it.backend.get(uri).data.replace(b'"starts":[0,', b'"starts":[1,'))
    with pytest.raises(StateError, match=r"ranges\.json"):
        it.ingest(**SMALL)


def test_how_files_are_cut_is_decided_once(it: World) -> None:
    whole = {**SMALL, "files": {"uri": FOLDER}}
    it.dies(it.calls(**whole).index("stage"), **whole)
    assert it.ingest(**SMALL).rows == 200


def test_a_piece_may_be_larger_than_a_record(it: World) -> None:
    """The limit is one of what is read as a whole: a record, or a file that is not cut."""
    row = b'1,"%s",1\n' % (b"x" * 560)
    it.backend.put(FOLDER + "1.csv", b"id,name,n\n" + row * 9)
    assert it.ingest(**{**SMALL, "files": {**SMALL["files"], "max_bytes": 600}}).rows == 9


def test_ranges_of_all_files_are_read_at_the_same_time(it: World) -> None:
    it.backend.put(FOLDER + "2.csv", TEXT)
    counts: list[int] = []

    class Counted:
        def map(self, works: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            counts.append(len(works))
            yield from ((i, work.do(it.backend.storage())) for i, work in enumerate(works))

    it.ingest(options={"workers": Counted()}, **SMALL)
    assert counts[0] == 2 * -(-len(TEXT) // 500)


class Elsewhere:
    """Does works as another process does: all that it knows is text."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def map(self, works: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for number, work in reversed(list(enumerate(works))):
            self.done.append(work.name)
            answer = json.loads(json.dumps(remote.do_packed(remote.packed(work))))
            yield number, remote.result_of(work, answer)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_works_can_be_done_by_other_processes(
    it: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    frame = expected()
    if kind == "jsonl":
        del it.backend.stored[FOLDER + "1.csv"]
        it.backend.put(FOLDER + "1.jsonl", frame.write_ndjson().encode())
    monkeypatch.setattr(remote, "own_storage", it.backend.storage)
    workers = Elsewhere()
    it.ingest(options={"workers": workers}, **SMALL)
    assert it.frame().equals(frame)
    assert f"range 3 of {FOLDER}1.{kind}" in workers.done
    assert "write file 2" in workers.done


def test_a_number_that_floats_do_not_hold_is_refused_by_other_processes(
    it: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    it.backend.put(FOLDER + "1.csv", b"id,n\n1,1e400\n" + b"2,1.5\n" * 200)
    monkeypatch.setattr(remote, "own_storage", it.backend.storage)
    for options in ({"workers": Elsewhere()}, {}):
        with pytest.raises(SchemaChangedError, match=r"row 1 of .*1.csv has the text '1e400'"):
            it.ingest(options=options, **SMALL)


class Changing(Elsewhere):
    """Changes what the worker that stages the second file returns."""

    def __init__(self, change: Callable[[StagedFile], StagedFile]) -> None:
        super().__init__()
        self._change = change

    def map(self, works: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for number, answer in super().map(works):
            is_second = isinstance(answer, StagedFile) and answer.number == 1
            yield number, self._change(answer) if is_second else answer


def with_key(folder: str, key: Callable[[str], str]) -> Callable[[StagedFile], StagedFile]:
    """Change the first part of a staged file to another key, with the token that belongs to it."""

    def change(staged: StagedFile) -> StagedFile:
        [part] = staged.parts
        uri = key(part.uri)
        rule = MemoryBackend().token_rule(OUTPUT, staged_area(OUTPUT))
        upload = rule.token_of(uri, part.attempt)
        changed = part.model_copy(update={"folder": folder, "uri": uri, "upload": upload})
        return staged.model_copy(update={"parts": (changed,)})

    return change


CHANGES: dict[str, tuple[Callable[[StagedFile], StagedFile], str]] = {
    "no rows": (
        lambda staged: staged.model_copy(update={"parts": ()}),
        "the staged files have .* rows instead of 200",
    ),
    "outside": (with_key("", lambda uri: OUTPUT + "../x.parquet"), "is no key of file 1"),
    "outside by its folder": (
        with_key("../", lambda uri: uri.replace(OUTPUT, OUTPUT + "../")),
        "is no key of file 1",
    ),
    "an empty folder": (
        with_key("/", lambda uri: uri.replace(OUTPUT, OUTPUT + "/")),
        "is no key of file 1",
    ),
    "of another file": (
        with_key("", lambda uri: uri.replace("part-0000001", "part-0000000")),
        "is no key of file 1",
    ),
    "of another run": (
        with_key("", lambda uri: f"{OUTPUT}part-0000000-{'0' * 16}-{'a' * 8}.parquet"),
        "is no key of file 1",
    ),
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_staged_files_that_are_not_those_of_the_plan_are_not_published(
    it: World, monkeypatch: pytest.MonkeyPatch, name: str, stored: bool
) -> None:
    """What workers return, and what is noted about staged files."""
    change, message = CHANGES[name]
    monkeypatch.setattr(remote, "own_storage", it.backend.storage)
    options: dict[str, Any] = {"workers": Changing(change)}
    if stored:
        calls = it.calls(**SMALL)
        noted = IngestStore.note_staged
        monkeypatch.setattr(
            IngestStore,
            "note_staged",
            lambda store, file: noted(store, change(file) if file.number == 1 else file),
        )
        it.dies(len(calls) - calls[::-1].index("stage") + 1, **SMALL)
        assert [n for n in it.state("/files/") if "/0000001-" in n]
        options = {}
    for _ in range(2):
        with pytest.raises(StateError, match=message) as caught:
            it.ingest(options=options, **SMALL)
    assert caught.value.hint is not None
    assert "--discard" in caught.value.hint
    assert it.table_log.manifest().commits == ()
    assert not [uri for uri in it.backend.stored if uri.startswith(OUTPUT)]


def test_what_workers_return_is_checked() -> None:
    work = FindPiece(piece=whole_file(SOURCE, Files(uri=(URI,))), files=Files(uri=(URI,)))
    for answer in (None, {}, {"rows": -1}, {"rows": 1, "looks": {"a": {"seen": "perhaps"}}}):
        with pytest.raises(StateError, match="a worker returned no PieceFound"):
            remote.result_of(work, answer)
    with pytest.raises(StateError, match="has found the type os"):
        PieceFound(rows=1, types={"a": "os"}).dtypes(URI)
