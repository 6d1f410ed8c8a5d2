"""What a ledger believes: only what this run could have written about chunks of its plan."""

from __future__ import annotations

import json
import logging
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StateError
from pipeline.runs.ledger.ledger import segment_name
from pipeline.runs.ledger.records import COMPLETIONS, PARTIAL, REDUCE, Completion
from pipeline.runs.ledger.segments import (
    MAX_LINE,
    MAX_TEXT,
    pack_segment,
    schema_line,
    unpack_segments,
)
from tests.support.examples import fewer
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import OUTPUT, Run, job_of, plan_of, run_of

PLAN = plan_of(5)
OTHER = "s3://out/u/"


@pytest.fixture
def run() -> Run:
    return run_of(MemoryBackend().storage(), PLAN)


Change = Callable[[Completion], Completion]

HOSTILE: dict[str, tuple[str, Change]] = {
    "an input": ("token", lambda c: replace(c, upload="s3://in/t/000.parquet")),
    "another bucket": ("token", lambda c: replace(c, upload="s3://other/secret")),
    "another output's pointer": (
        "token",
        lambda c: replace(c, upload="s3://out/u.chunkmap/HEAD.json"),
    ),
    "a local file": ("token", lambda c: replace(c, upload="file:///etc/passwd")),
    "a path": ("token", lambda c: replace(c, upload="/etc/passwd")),
    "a folder above": ("token", lambda c: replace(c, upload="..")),
    "white space": ("token", lambda c: replace(c, upload="upload-1\n")),
    "no token": ("token", lambda c: replace(c, upload="")),
    "a partial": ("token", lambda c: replace(c, upload=PARTIAL)),
    "another output's key": ("key", lambda c: replace(c, uri=c.uri.replace(OUTPUT, OTHER))),
    "another chunk's key": ("key", lambda c: replace(c, uri=c.uri.replace("0001", "0002"))),
    "a key above": ("key", lambda c: replace(c, uri=OUTPUT + "../" + c.uri.rpartition("/")[2])),
    "an input's key": ("key", lambda c: replace(c, uri="s3://in/t/000.parquet")),
    "another chunk": ("no such chunk", lambda c: replace(c, index=2)),
    "no chunk": ("no such chunk", lambda c: replace(c, index=5)),
    "a chunk below zero": ("no such chunk", lambda c: replace(c, index=-1)),
    "an unknown chunk": ("no such chunk", lambda c: replace(c, chunk="0" * 32)),
    "a reduce": ("key|no such chunk", lambda c: replace(c, batch=REDUCE, chunk="reduced/x")),
    "a path as attempt": ("attempt", lambda c: replace(c, attempt="../../x")),
    "a long attempt": ("attempt", lambda c: replace(c, attempt="0" * 33)),
    "a line as attempt": ("attempt", lambda c: replace(c, attempt="0" * 31 + "\n")),
    "rows below zero": ("number", lambda c: replace(c, rows_out=-1)),
    "more rows than can be added": ("number", lambda c: replace(c, rows_in=2**62)),
    "a time that never comes": ("number", lambda c: replace(c, started=1e300)),
    "a text without end": ("too long", lambda c: replace(c, worker="w" * 5000)),
    "a part without end": ("parts", lambda c: replace(c, parts=("p" * 5000,))),
    "parts without end": ("parts", lambda c: replace(c, parts=("p",) * 10_001)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_this_run_cannot_have_written_is_not_counted(
    run: Run, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    reason, change = HOSTILE[kind]
    sound, one = run.completion(0), run.completion(1)
    run.store(sound, change(one))
    with caplog.at_level(logging.WARNING):
        progress = run.again(run.storage).ledger.read()
    assert progress.left(5) == [1, 2, 3, 4]
    assert progress.duplicates.is_empty() and progress.reduced.is_empty()
    (told,) = progress.problems
    assert "1 entries" in told
    assert any(word in told for word in reason.split("|")), told
    assert told in caplog.text
    # What comes of it when it is read again, folded, or asked for by the batch itself.
    run.ledger.read()
    run.ledger.compact()
    again = run.again(run.storage).ledger
    assert again.read().problems == (told,)
    assert again.of_batch("b").completions["index"].to_list() == [0]
    run.complete(1)
    assert again.read().left(5) == [2, 3, 4]


def raw(run: Run, *lines: object, name: str = "b-hostile-0001") -> None:
    """Store lines as a segment, whatever they are."""
    data = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    run.storage.put(f"{run.ledger.prefix}completions/{name}.jsonl.zst", zstandard.compress(data))


@pytest.mark.parametrize(
    "change",
    [
        {"rows_in": "many"},
        {"rows_in": 2**64 - 1},
        {"seconds": []},
        {"parts": {"a": 1}},
        {"parts": [["x"]]},
        {"chunk": 7},
        {"upload": True},
        {"attempt": {}},
    ],
    ids=str,
)
def test_a_segment_with_values_of_other_types_is_left_out(run: Run, change: dict[str, Any]) -> None:
    raw(run, {"kind": "completion", **asdict(run.completion(1)), **change})
    run.complete(0)
    progress = run.ledger.read()
    assert progress.left(5) == [1, 2, 3, 4]
    assert "a segment cannot be read" in progress.problems[0]


LATER = {
    "left_out": [],
    "filled": [],
    **dict.fromkeys(("encode_seconds", "reads", "writes", "retries", "memory"), 0),
    "encodings": "",
    **dict.fromkeys(("throttled", "request_limit"), 0),
    "checked": "",
    "copied": 0,
    "rewritten": "",
}
"""What entries of earlier releases do not say."""


@pytest.mark.parametrize("name", LATER)
def test_an_entry_of_an_earlier_release_counts(run: Run, name: str) -> None:
    entry = {"kind": "completion", **asdict(run.completion(1))}
    del entry[name]
    raw(run, entry, {"kind": "completion", **asdict(run.completion(0))})
    progress = run.ledger.read()
    assert (progress.left(5), progress.problems) == ([2, 3, 4], ())
    assert progress.completions[name].to_list() == [LATER[name]] * 2


@pytest.mark.parametrize("left_out", [[None], ["x" * 10_000], ["x"] * 10_001])
def test_objects_left_out_that_are_no_list_of_them(run: Run, left_out: list[str | None]) -> None:
    raw(run, {"kind": "completion", **asdict(run.completion(1)), "left_out": left_out})
    progress = run.ledger.read()
    assert progress.left(5) == [0, 1, 2, 3, 4]
    assert len(progress.problems) == 1


@pytest.mark.parametrize("name", [*(n for n in COMPLETIONS if n not in LATER), "parts in the list"])
@pytest.mark.parametrize("is_there", [True, False])
def test_an_entry_that_lacks_a_value_is_not_counted(run: Run, name: str, is_there: bool) -> None:
    entry = {"kind": "completion", **asdict(run.completion(1))}
    if name in entry and not is_there:
        del entry[name]
    else:
        entry |= {name: None} if name in entry else {"parts": [None]}
    raw(run, entry, {"kind": "completion", **asdict(run.completion(0))})
    progress = run.ledger.read()
    assert progress.left(5) == [1, 2, 3, 4]
    assert len(progress.problems) == 1


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"3", b"{}", b'{"kind": []}', b'{"kind": "x"}', b"\xff", b"[" * 9999]
)
def test_lines_that_are_no_entries_end_a_segment(run: Run, line: bytes) -> None:
    raw(run, {"kind": "completion", **asdict(run.completion(0))}, line, line)
    progress = run.ledger.read()
    assert progress.left(5) == [1, 2, 3, 4]
    (told,) = progress.problems
    assert "a segment cannot be read" in told and "b-hostile-0001" in told


@pytest.mark.parametrize("columns", [None, 3, "{", "[]", '{"a": 1}'])
def test_what_is_no_schema_is_told(run: Run, columns: object) -> None:
    raw(run, {"kind": "schema", "columns": columns})
    progress = run.ledger.read()
    assert progress.schemas == {}
    assert progress.problems


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"index": 9}, "no such chunk"),
        ({"chunk": "c"}, "no such chunk"),
        ({"at": math.inf}, "number"),
        ({"at": -1.0}, "number"),
        ({"attempt": "x"}, "attempt"),
        ({"trace": "t" * 70_000}, "too long"),
    ],
)
def test_failures_are_checked_too(run: Run, change: dict[str, Any], reason: str) -> None:
    run.store(run.failure(0, 1.0), replace(run.failure(1, 1.0), **change))
    progress = run.ledger.read()
    assert progress.failures["index"].to_list() == [0]
    told = " ".join(progress.problems)
    # JSON knows no infinity: there it is no value at all.
    assert reason in told, told


# -- reduces -----------------------------------------------------------------------------------

REDUCING: dict[str, Any] = {"reduce": {"combine": "pipeline.examples.stations:combine"}}


@pytest.fixture
def reducing() -> Run:
    storage = MemoryBackend().storage()
    from pipeline.runs.ledger.ledger import Ledger

    return Run(storage, Ledger.create(storage, job_of(**REDUCING), PLAN, "code", 0), PLAN)


def combined(run: Run, *indices: int, name: str = "b-x-0001") -> list[Completion]:
    uri = f"{run.ledger.prefix}partials/{name}.arrow"
    kind = {"upload": PARTIAL, "parts": (), "sha256": "", "uri": uri}
    return [replace(run.completion(index), **kind) for index in indices]  # type: ignore[arg-type]


def test_partials_and_the_reduce_are_counted(reducing: Run) -> None:
    done = reducing.completion(0)
    last = replace(done, chunk="reduced/" + "0" * 32 + ".arrow", batch=REDUCE)
    reducing.store(*combined(reducing, 0, 1), last)
    progress = reducing.again(reducing.storage).ledger.read()
    assert progress.left(5) == [2, 3, 4]
    assert progress.reduced["attempt"].to_list() == [last.attempt]
    assert progress.problems == ()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://in/t/000.parquet",
        "{prefix}plan.arrow",
        "{prefix}partials/../plan.arrow",
        "{prefix}partials/a/b.arrow",
        "{prefix}partials/.arrow",
        "{other}partials/b-x-0001.arrow",
        "",
    ],
)
def test_partials_elsewhere_are_not_counted(reducing: Run, uri: str) -> None:
    prefix = reducing.ledger.prefix
    other = prefix.replace(reducing.ledger.run, "0" * 16)
    (done,) = combined(reducing, 1)
    reducing.store(replace(done, uri=uri.format(prefix=prefix, other=other)))
    progress = reducing.ledger.read()
    assert progress.left(5) == [0, 1, 2, 3, 4]
    assert "a partial outside of its run" in progress.problems[0]


def partials(run: Run) -> set[str]:
    """Names of the partials that count."""
    return {uri.rpartition("/")[2] for uri in run.ledger.read().completions["uri"]}


def test_a_reduce_plan_says_which_partials_count(reducing: Run) -> None:
    """Whatever workers store later: a larger partial, or entries that were never written."""
    first, *more = combined(reducing, 0, 1, name="b-1")
    reducing.store(first, *more, *combined(reducing, 2, 3, 4, name="b-2"))
    assert reducing.ledger.store_reduce_plan(reducing.ledger.read().completions)
    moved = [replace(each, uri=first.uri) for each in combined(reducing, 2, 3, 4)]
    again = replace(first, attempt="0" * 32)
    reducing.store(*combined(reducing, 0, 1, 2, 3, name="a"), *moved, again)
    for run in (reducing, reducing.again(reducing.storage)):
        assert partials(run) == {"b-1.arrow", "b-2.arrow"}
        progress = run.ledger.read()
        assert progress.completions["index"].to_list() == [0, 1, 2, 3, 4]
        assert progress.duplicates.height == 8
    assert reducing.ledger.store_reduce_plan(progress.completions), "it is stored once"
    assert len(reducing.storage.objects(reducing.ledger.prefix + "reduce/")) == 1


def test_a_reduce_plan_with_a_lost_partial_does_not_count(reducing: Run) -> None:
    first = combined(reducing, 0, 1, name="b-1")
    reducing.store(*first, *combined(reducing, 2, 3, 4, name="b-2"))
    reducing.ledger.store_reduce_plan(reducing.ledger.read().completions)
    reducing.store(*combined(reducing, 0, 1, 2, 3, name="a"))
    reducing.ledger.void([first[0].attempt])
    assert partials(reducing) == {"a.arrow"} and reducing.ledger.read().left(5) == [4]
    reducing.store(*combined(reducing, 4, name="b-3"))
    assert reducing.ledger.store_reduce_plan(reducing.ledger.read().completions)
    # Another process does not know that it is lost, and takes the newest plan.
    assert partials(reducing.again(reducing.storage)) == {"a.arrow", "b-3.arrow"}


def test_of_two_drivers_the_first_reduce_plan_counts(
    reducing: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reducing.store(*combined(reducing, 0, 1, 2, 3, 4, name="b-1"))
    other = reducing.again(reducing.storage)
    assert other.ledger.store_reduce_plan(other.ledger.read().completions)
    reducing.store(*combined(reducing, 0, 1, 2, 3, 4, name="a"))
    with monkeypatch.context() as slow:  # It listed the plans before the other had stored one.
        slow.setattr(reducing.ledger, "_numbers", lambda folder: [])
        seen = reducing.ledger.read().completions
        assert not reducing.ledger.store_reduce_plan(seen)
    assert partials(reducing) == {"b-1.arrow"} != {seen["uri"][0].rpartition("/")[2]}


def test_a_damaged_reduce_plan_is_named(reducing: Run) -> None:
    reducing.store(*combined(reducing, 0, 1, 2, 3, 4, name="b-1"))
    reducing.ledger.store_reduce_plan(reducing.ledger.read().completions)
    uri = reducing.ledger.prefix + "reduce/plan-0001.arrow"
    sound = reducing.storage.get(uri).data
    reducing.store(*combined(reducing, 0, name="a"))
    changed = sound[:200] + bytes([sound[200] ^ 1]) + sound[201:]
    for damaged in (b"", sound[:-30], changed):
        reducing.storage.put(uri, damaged)
        with pytest.raises(StateError, match="reduce/plan-0001"):
            reducing.again(reducing.storage).ledger.read()


def test_a_chunk_that_a_partial_has_twice_counts_once(reducing: Run) -> None:
    """Otherwise another chunk would seem to be done."""
    reducing.store(*combined(reducing, 0, 1), *combined(reducing, 1, 1))
    progress = reducing.ledger.read()
    assert progress.completions["index"].to_list() == [0, 1]
    assert progress.duplicates["index"].to_list() == [1, 1]


def test_a_reduce_elsewhere_is_not_counted(reducing: Run) -> None:
    last = replace(reducing.completion(0), chunk="reduced/" + "0" * 32 + ".arrow", batch=REDUCE)
    reducing.store(
        replace(last, chunk="../x"),
        replace(last, uri=last.uri.replace("0000000", "0000001")),
        replace(last, upload="s3://in/t/000.parquet"),
        reducing.completion(1),
    )
    progress = reducing.ledger.read()
    assert progress.reduced.is_empty()
    assert len(progress.left(5)) == 5
    assert len(progress.problems) == 4


# -- sizes -------------------------------------------------------------------------------------


def test_a_small_segment_cannot_grow_without_bounds(run: Run) -> None:
    """16 KB of zeros were half a gigabyte in the driver."""
    bombs = {
        "zeros": zstandard.compress(bytes(1 << 29)),
        "lines": zstandard.compress(b"\n" * (60 << 20)),
        "nested": zstandard.compress(
            (b'{"kind":"failure","x":[' + b"[]," * 30_000 + b"[]]}\n") * 99
        ),
    }
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    bombs["no size"] = compressor.compress(bytes(MAX_TEXT)) + compressor.flush()
    assert max(map(len, bombs.values())) < 300_000
    for name, data in bombs.items():
        key = segment_name("b", name.replace(" ", ""), 1)
        run.storage.put(f"{run.ledger.prefix}completions/{key}.jsonl.zst", data)
    run.complete(0)
    tracemalloc.start()
    try:
        progress = run.ledger.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert progress.left(5) == [1, 2, 3, 4]
    assert "3 entries of the ledger are not counted (a segment cannot be read)" in str(
        progress.problems
    )
    assert peak < 400 << 20


def test_objects_that_are_no_segments_are_told_and_not_fetched(run: Run) -> None:
    folder = run.ledger.prefix + "completions/"
    run.complete(0)
    for name in ("x.txt", "..", "base-1.arrow", "base-000007.arrow"):
        run.storage.put(folder + name, b"x")
    progress = run.ledger.read()
    assert progress.left(5) == [1, 2, 3, 4]
    (told,) = progress.problems
    assert "2 entries" in told and "no segment" in told


def test_a_base_among_the_segments_hides_nothing(run: Run) -> None:
    """Whoever may write segments could have hidden all completions with one base."""
    from pipeline.runs.ledger.segments import EMPTY, pack_base

    run.complete(0, 1)
    run.ledger.read()
    names = [i.uri.rpartition("/")[2] for i in run.storage.objects(run.ledger.prefix + "compl")]
    hostile = pack_base(EMPTY, names)
    run.storage.put(run.ledger.prefix + "completions/base-000009.arrow", hostile)
    assert run.again(run.storage).ledger.read().left(5) == [2, 3, 4]


SOUND = pack_segment(
    [
        Completion(
            *("c" * 32, 0, "b", "a" * 32, "w", 1.0, 0.0, 0.0, 0.0, 0.0, 1, 1, 1, 1, "code"),
            *("s" * 16, "s3://out/t/x", "upload-1", ("p",), "0" * 64),
        )
    ],
    [json.dumps({"id": "Int64"})],
)


@settings(max_examples=fewer(300), deadline=None)
@given(at=st.integers(0, len(SOUND) - 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_changed_or_cut_segment_is_told_or_means_the_same(at: int, bit: int, cut: bool) -> None:
    """Ours carry a checksum, so that no other values come out of them."""
    changed = bytearray(SOUND)
    changed[at] ^= 1 << bit
    data = SOUND[:at] if cut else bytes(changed)
    before, after = unpack_segments([("s", SOUND)]), unpack_segments([("s", data)])
    if not after.problems:
        assert after.completions.equals(before.completions)
        assert after.schemas == before.schemas
    else:
        assert after.completions.is_empty()


def test_segments_of_earlier_releases_are_read(run: Run) -> None:
    """They have no checksum."""
    raw(run, {"kind": "completion", **asdict(run.completion(2))})
    assert run.ledger.read().left(5) == [0, 1, 3, 4]


def test_no_line_is_written_that_readers_refuse() -> None:
    rest = len(schema_line(json.dumps({"": "Int64"})))
    longest, longer = (json.dumps({"n" * (MAX_LINE - rest - n): "Int64"}) for n in (1, 0))
    failure = run_of(MemoryBackend().storage(), PLAN).failure(0, 1.0)
    found = unpack_segments([("s", pack_segment([failure], [longest]))])
    assert list(found.schemas.values()) == [longest]
    assert (found.failures.height, found.problems) == (1, {})
    many = [longest.replace("n", chr(number)) for number in range(ord("A"), ord("A") + 65)]
    for refused in ([longer], many):
        with pytest.raises(ValueError, match="readers refuse"):
            pack_segment([failure], refused)
