"""Usual footers are matched by a pattern, with the same outcome as by the parser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partitioning import ObjectInfo, Tail, TailRequest, Term, footer_arrays, footers
from partitioning.footer_arrays import ColumnArrays, read_footer, read_varints
from partitioning.footer_pattern import FooterMatcher
from partitioning.footers import FooterBatch, FooterGroup, FooterSpec, read_footers
from partitioning.parquet_footer import (
    MAX_VALUES,
    BadFooter,
    Footer,
    FooterSelection,
    parse_footer,
)
from partitioning.sizes import LeafSize, row_group_bytes
from partitioning.thrift import write_varint
from tests.fuzz import corpus
from tests.fuzz.changes import change_footer
from tests.fuzz.thrift_tree import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    Node,
    footer_of,
    replaced,
    with_footer,
)

CORPUS = corpus.footers()


class Tails:
    """Hands out the ends of files."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """List nothing."""
        return iter(())

    def head(self, uri: str) -> ObjectInfo:
        """Find nothing."""
        raise FileNotFoundError(uri)

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        """Yield what is asked for."""
        for request in requests:
            yield Tail(request.object, self._files[request.object.uri][-request.length :])


def footer(data: bytes) -> bytes:
    """Return a file's footer alone."""
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


def with_bytes(data: bytes, own: bytes) -> bytes:
    """Return a file with another footer."""
    return data[: -8 - len(footer(data))] + own + len(own).to_bytes(4, "little") + b"PAR1"


def read(files: Mapping[str, bytes], term: Term | None = None) -> FooterBatch:
    """Read the footers of files, with a filter if one is given."""
    spec = FooterSpec(
        columns=None,
        filter=((term,),) if term else (),
        partitions=frozenset(),
        limit=1 << 24,
        first_read=1 << 20,
        concurrency=1,
    )
    infos = tuple(ObjectInfo(name, "etag", len(data)) for name, data in files.items())
    return read_footers(Tails(files), spec, FooterGroup(0, infos, ((0,),) * len(infos)))


def outcome(batch: FooterBatch) -> tuple[dict[int, Any], list[Any]]:
    """Return what a batch says of each object, and the bad ones."""
    found: dict[int, Any] = {}
    start = 0
    for place, position in enumerate(batch.positions):
        stop = start + batch.counts[place]
        found[position] = (
            batch.footer_sizes[place],
            batch.schemas[batch.schema[place]],
            [x[start:stop] for x in (batch.rows, batch.stored, batch.decoded)],
            batch.kept[start:stop],
        )
        start = stop
    return found, sorted(batch.errors)


def by_parser(files: Mapping[str, bytes], term: Term | None = None) -> FooterBatch:
    """Read footers with the parser alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FooterMatcher, "match", lambda self, data: None)
        return read(files, term)


def is_usual(data: bytes) -> bool:
    return FooterMatcher(statistics=False).match(footer(data)) is not None


def columns_of(data: bytes) -> tuple[str, ...]:
    return parse_footer(footer(data), len(data), FooterSelection()).schema.columns


@pytest.mark.parametrize("name", CORPUS)
def test_footers_of_each_kind_are_usual(name: str) -> None:
    assert is_usual(CORPUS[name]), name


def test_footers_of_each_kind_say_the_same_either_way() -> None:
    assert outcome(read(CORPUS)) == outcome(by_parser(CORPUS))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("column", [None, "int32", "string", "id"])
def test_changed_footers_say_the_same_either_way(column: str | None) -> None:
    random = Random(f"fields {column}")
    term = Term(column, "is not null", None) if column else None
    trees = {name: footer_of(data) for name, data in CORPUS.items()}
    for name, data in CORPUS.items():
        if column and column not in columns_of(data):
            continue
        changed = {str(i): change_footer(trees[name], random).footer for i in range(10)}
        files = {i: with_footer(data, tree) for i, tree in changed.items()}
        assert outcome(read(files, term)) == outcome(by_parser(files, term)), name


def changed_bytes(own: bytes, random: Random) -> bytes:
    """Change, take out or put in a byte or a few."""
    at, count = random.randrange(len(own)), random.choice((1, 1, 1, 2, 8))
    # Bytes of the footer itself are the headers and lengths that mean something.
    new = bytes(random.choice((own[random.randrange(len(own))], random.randrange(256)))
                for _ in range(count))  # fmt: skip
    how = random.randrange(4)
    if how == 0:
        return own[:at] + new + own[at:]
    if how == 1:
        return own[:at] + own[at + count :]
    if how == 2:  # A piece of the footer, taken from elsewhere.
        start = random.randrange(len(own))
        return own[:at] + own[start : start + random.randrange(60)] + own[at:]
    return own[:at] + new + own[at + count :]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("column", [None, "int32"])
def test_damaged_footers_say_the_same_either_way(column: str | None) -> None:
    random = Random(f"bytes {column}")
    term = Term(column, "is not null", None) if column else None
    for name, data in CORPUS.items():
        if column and column not in columns_of(data):
            continue
        own = footer(data)
        files = {str(i): with_bytes(data, changed_bytes(own, random)) for i in range(80)}
        assert outcome(read(files, term)) == outcome(by_parser(files, term)), name


def test_varints_of_all_lengths_are_decoded() -> None:
    values = [0, 1, -1, 63, 64, -64, -65, 2**20, -(2**20), 2**47, -(2**47), 5]
    data = b"".join(write_varint(v << 1 if v >= 0 else (-v << 1) - 1) for v in values)
    assert read_varints(data).tolist() == values
    assert read_varints(b"").tolist() == []


def test_long_and_odd_names_and_texts_are_usual() -> None:
    names = ["x" * n for n in (1, 20, 21, 22, 37, 127)] + ["a.b", "\x15\x02\x16", "naïve", " "]
    texts = ["", "a", "b" * 100, "c" * 127, "d" * 128, "e" * 255]
    table = pa.table({name: texts for name in names})
    data = corpus.by_pyarrow(table, row_group_size=2)
    term = Term("a.b", ">", "d")
    assert outcome(read({"a": data}, term)) == outcome(by_parser({"a": data}, term))
    named = table.select(["x" * 21, "x" * 37, "a.b", "naïve"])
    assert is_usual(corpus.by_pyarrow(named, row_group_size=2))


def test_footers_of_many_schemas_are_filtered() -> None:
    """More than are remembered: leaves of one schema are not always the same objects."""
    own = [
        parquet_of({"id": [number, number + 1], f"c{number % 100}": [1, 2]})
        for number in range(300)
    ]
    files = {str(at): data for at, data in enumerate(own)}
    for how in (read, by_parser):
        batch = how(files, Term("id", ">", 1_000))
        assert not batch.errors
        assert not any(batch.kept)


def parquet_of(columns: Mapping[str, Any]) -> bytes:
    return corpus.by_pyarrow(pa.table(dict(columns)))


def test_bytes_that_no_object_has_are_refused_though_no_values_are_there() -> None:
    """Their sum is more than an integer of 64 bits."""
    data = CORPUS["no rows"]
    tree = footer_of(data)
    claims = replaced(tree, (4, 0, 1, 0, 3, 7), Node(I64, 2**63 - 1))
    claims = replaced(claims, (4, 0, 1, 1, 3, 7), Node(I64, 2**63 - 1))
    batch = read({"a": with_footer(data, claims)})
    ((_, _, reason),) = batch.errors
    assert "claims 0 values in" in reason


SELECTIONS = {
    "workers": FooterSelection(statistics=None, encodings=True, groups=range(1, 3)),
    "all": FooterSelection(statistics=None, encodings=True),
    "some": FooterSelection(frozenset(("int32", "list")), frozenset(("int32",))),
}


def whole(
    parse: Callable[[bytes, int, FooterSelection], Footer],
    own: bytes,
    size: int,
    selection: FooterSelection,
) -> Footer | tuple[Any, ...]:
    """Return a footer, or what is wrong with it."""
    try:
        return parse(own, size, selection)
    except BadFooter as bad:
        return bad.args


@pytest.mark.parametrize("large", [0, 1 << 30], ids=["as arrays", "one by one"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_whole_footers_say_the_same_either_way(
    selection: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footer_arrays, "_LARGE", large)
    random = Random(f"whole {selection}")
    for name, data in CORPUS.items():
        plain = footer(data)
        for own in (plain, *(changed_bytes(plain, random) for _ in range(40))):
            asked = own, len(data), SELECTIONS[selection]
            assert whole(read_footer, *asked) == whole(parse_footer, *asked), name


def test_matching_takes_time_in_proportion_to_the_footer() -> None:
    """What begins like column chunks within column chunks is not tried again and again."""
    plain = footer(CORPUS["many row groups"])
    begin = plain.index(b"\x19\x1c\x26") + 2
    chunk = b"\x15\x00\x16\x00\x16\x00\x16\x00\x26\x00\x3c"
    own = plain[:begin] + b"\x26\x00\x1c\x15\x00\x19\x05\x19" + (b"\x18\x0b" + chunk) * 50_000
    matcher = FooterMatcher(statistics=False)
    begun = time.process_time()
    assert matcher.match(own) is None
    assert time.process_time() - begun < 1.0


def test_the_smallest_column_chunks_are_left_to_the_parser() -> None:
    """Matching would take more than ten times their memory."""
    table = pa.table({"a": pa.array(range(300), pa.int64())})
    plain = corpus.by_pyarrow(
        table, row_group_size=1, write_statistics=False, use_dictionary=False, store_schema=False
    )
    tree = footer_of(plain)
    for group in range(300):  # Fields that no reader needs: page encodings and histograms.
        for number in (13, 16):
            tree = replaced(tree, (4, group, 1, 0, 3, number), None)
    data = with_footer(plain, tree)
    assert is_usual(plain)
    assert not is_usual(data)
    assert outcome(read({"a": data})) == outcome(by_parser({"a": data}))


def test_rows_that_no_row_group_has_are_refused_though_no_column_is_there() -> None:
    rows = 2**63 - 1
    root = Node(STRUCT, ((4, Node(BINARY, b"root")), (5, Node(I32, 0))))
    group = Node(STRUCT, ((1, Node(LIST, (), STRUCT)), (2, Node(I64, 0)), (3, Node(I64, rows))))
    tree = Node(
        STRUCT,
        (
            (1, Node(I32, 2)),
            (2, Node(LIST, ((0, root),), STRUCT)),
            (3, Node(I64, 2 * rows)),
            (4, Node(LIST, ((0, group), (1, group)), STRUCT)),
        ),
    )
    batch = read({"a": with_footer(CORPUS["no rows"], tree)})
    ((_, _, reason),) = batch.errors
    assert f"row group 0 has {rows:,} rows" in reason


def test_sizes_that_no_integer_holds_are_refused() -> None:
    """Values of 2 GiB each, as many as a row group may have."""
    table = pa.table({"a": pa.array([b"x" * 16] * 3, pa.binary(16))})
    data = corpus.by_pyarrow(table, use_dictionary=False, store_schema=False)
    tree = replaced(footer_of(data), (2, 1, 2), Node(I32, 2**31 - 1))
    for path in ((3,), (4, 0, 3), (4, 0, 1, 0, 3, 5), (4, 0, 1, 0, 3, 6)):
        tree = replaced(tree, path, Node(I64, MAX_VALUES))
    batch = read({"a": with_footer(data, tree)})
    ((_, _, reason),) = batch.errors
    assert re.search(r"claims to decode to [\d,]{25,} bytes", reason)


def test_large_sizes_are_refused_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object is refused, and its neighbour of the same schema is not."""
    files = {name: parquet_of({"a": list(range(n))}) for name, n in (("s", 10), ("m", 99))}
    assert all(map(is_usual, files.values()))
    monkeypatch.setattr(footers, "MAX_VALUES", 400)
    assert outcome(read(files)) == outcome(by_parser(files))
    ((position, _, reason),) = read(files).errors
    assert position == 1
    assert "claims to decode to 804 bytes" in reason


def test_sums_beyond_an_integer_stay_above_the_maximum() -> None:
    one, most = np.ones((1, 1), np.int64), np.full((1, 1), MAX_VALUES)
    columns = ColumnArrays(one[0], most, most, one, one, one, np.zeros((1, 1), bool))
    size = LeafSize(float(2**31), buffers=False, offsets=0)
    assert row_group_bytes([size], columns, [0]).tolist() == [MAX_VALUES + 1]
