"""Bad footers: each named with offset and reason, all together; and how footers are read."""

from __future__ import annotations

import pickle
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partitioning import (
    BadObjectsError,
    NoParquetError,
    ObjectInfo,
    PlanRequest,
    Tail,
    plan_dataset,
)
from partitioning.footers import FooterGroup, FooterSpec, footer_length, read_footers
from partitioning.parquet_footer import BadFooter, Contradiction, parse_schema
from tests.fuzz.thrift_tree import BINARY, I32, LIST, STRUCT, Node, write_tree
from tests.support.stores import DictReader, dataset, ids, parquet

GOOD = parquet(ids(0, 10), 4)
LENGTH = int.from_bytes(GOOD[-8:-4], "little")


def with_length(length: int) -> bytes:
    return GOOD[:-8] + length.to_bytes(4, "little") + b"PAR1"


def with_footer(footer: bytes) -> bytes:
    return b"PAR1" + b"\0" * 64 + footer + len(footer).to_bytes(4, "little") + b"PAR1"


# A schema list (field 2) that claims 2^27 structs, and row groups (field 4) that do.
BOMB = bytes.fromhex("150219fc80808040")
BAD = {
    "short": (b"PAR1PAR1", 0, "too small"),
    "no_parquet": (b"a,b\n1,2\n" * 20, 156, "instead of b'PAR1'"),
    "truncated": (GOOD[:-20], len(GOOD) - 24, "instead of b'PAR1'"),
    "encrypted": (GOOD[:-4] + b"PARE", len(GOOD) - 4, "encrypted"),
    "zero": (with_length(0), len(GOOD) - 8, "footer of 0 bytes"),
    "negative": (with_length(2**32 - 5), len(GOOD) - 8, "footer of 4294967291 bytes in an object"),
    "absurd": (with_length(len(GOOD)), len(GOOD) - 8, f"in an object of {len(GOOD)}"),
    "shifted": (with_length(LENGTH - 1), len(GOOD) - 8 - (LENGTH - 1), "cannot be parsed"),
    "noise": (with_footer(b"\xff" * 200), 68, "cannot be parsed"),
    "bomb": (with_footer(BOMB + b"\0" * 100), 68, "cannot be parsed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_object_is_named_with_offset_and_reason(name: str) -> None:
    data, offset, reason = BAD[name]
    uri = f"s3://b/t/{name}.parquet"
    with pytest.raises(BadObjectsError) as caught:
        plan_dataset(PlanRequest("s3://b/t/"), DictReader({uri: data}))
    ((named, at, why),) = caught.value.objects
    assert (named, at) == (uri, offset)
    assert reason in why
    assert f"{uri}: at byte {offset}: " in str(caught.value)


def test_an_encrypted_column_file_is_refused_by_its_magic() -> None:
    with pytest.raises(BadFooter, match="encrypted"):
        footer_length(b"\x10\0\0\0PARE", 100, 1000)


def test_a_footer_above_the_limit_is_bad() -> None:
    reader = DictReader({"s3://b/t/a.parquet": GOOD})
    with pytest.raises(BadObjectsError, match=f"footer of {LENGTH} bytes, above the limit of 20"):
        plan_dataset(PlanRequest("s3://b/t/", footer_limit=20), reader)


def test_all_bad_objects_are_reported_together_and_the_error_pickles() -> None:
    objects = {f"s3://b/t/{n}.parquet": data for n, (data, _, _) in BAD.items()}
    with pytest.raises(BadObjectsError) as caught:
        plan_dataset(PlanRequest("s3://b/t/"), DictReader({**objects, **dataset(30)}))
    assert {uri for uri, _, _ in caught.value.objects} == set(objects)
    assert f"{len(BAD)} objects are not readable" in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.objects == caught.value.objects


def test_skipped_objects_are_in_the_plan_and_read_again_next_time() -> None:
    objects = {"s3://b/t/000_.parquet": BAD["noise"][0], **dataset(3)}
    request = PlanRequest("s3://b/t/", on_bad_object="skip")
    result = plan_dataset(request, DictReader(objects))
    assert [(s.uri, s.offset) for s in result.plan.skipped] == [("s3://b/t/000_.parquet", 68)]
    assert result.plan.rows == 30
    assert result.explain.objects_skipped == 1
    assert any("1 object is not readable" in w for w in result.explain.warnings)
    again = plan_dataset(request, DictReader(objects), previous=result.plan)
    assert (again.plan, again.explain.footers_reused) == (result.plan, 3)


def test_with_nothing_readable_left_skipping_fails_too() -> None:
    reader = DictReader({"s3://b/t/a.parquet": b"no Parquet at all"})
    with pytest.raises(BadObjectsError):
        plan_dataset(PlanRequest("s3://b/t/", on_bad_object="skip"), reader)


def test_row_groups_that_contradict_the_file_are_bad() -> None:
    # Swap the row count of the file (zigzag 20 = 10 rows) for another.
    metadata = pq.read_metadata(pa.BufferReader(GOOD))
    assert metadata.num_rows == 10
    footer = GOOD[-8 - LENGTH : -8]
    at = footer.index(b"\x16\x14\x19")  # num_rows, then the list of row groups
    data = GOOD[: -8 - LENGTH] + footer[:at] + b"\x16\x16" + footer[at + 2 :] + GOOD[-8:]
    with pytest.raises(BadObjectsError, match="claims 11 rows; its row groups have 10"):
        plan_dataset(PlanRequest("s3://b/t/"), DictReader({"s3://b/t/a.parquet": data}))


def test_an_object_replaced_while_planning_is_bad() -> None:
    class Replacing(DictReader):
        def list(self, uri_prefix: str):  # type: ignore[no-untyped-def]
            found = list(super().list(uri_prefix))
            self.objects["s3://b/t/001.parquet"] = parquet(ids(5, 9))
            return iter(found)

    with pytest.raises(BadObjectsError, match=r"001\.parquet: at byte 0: replaced"):
        plan_dataset(PlanRequest("s3://b/t/"), Replacing(dataset(3)))


def test_one_read_a_footer_and_a_second_only_for_larger_ones() -> None:
    wide = pa.table({f"column_{i}": [1] for i in range(200)})
    objects = {**dataset(5), "s3://b/t/wide.parquet": parquet(wide)}
    reader = DictReader(objects)
    request = PlanRequest("s3://b/t/", schema="union", first_read=2048)
    result = plan_dataset(request, reader)
    assert len(reader.lengths) == 7
    assert result.explain.requests == 7 + 1 + 2  # the listing, and two looks above the input
    *_, large = [chunk.fragments[-1] for chunk in result.plan.chunks()]
    assert large.footer_size == reader.lengths[-1]
    data = objects[large.uri]
    assert large.footer_size == int.from_bytes(data[-8:-4], "little") + 8


def test_the_first_read_learns_how_long_footers_are() -> None:
    reader = DictReader(dataset(200))
    plan_dataset(PlanRequest("s3://b/t/"), reader)
    infos = list(reader.list("s3://b/t/"))
    spec = FooterSpec(None, (), frozenset(), 1 << 20, 64, 4)

    class Lazy(DictReader):
        def read_tails(self, requests, concurrency):  # type: ignore[no-untyped-def]
            for request in requests:  # as a store does: not all requests before the first answer
                yield self._tail(request)

    lazy = Lazy(reader.objects)
    batch = read_footers(lazy, spec, FooterGroup(0, tuple(infos), ((),) * len(infos)))
    assert len(batch.positions) == 200
    # 64 footers were larger than 64 bytes; then whole (small) objects were asked for.
    assert len(lazy.lengths) == 200 + 64
    assert batch.requests == len(lazy.lengths)


def test_an_answer_shorter_than_its_second_read_ends_in_an_error() -> None:
    class Cut(DictReader):
        def _tail(self, request):  # type: ignore[no-untyped-def]
            return Tail(request.object, self.objects[request.object.uri][-8:])

    with pytest.raises(BadObjectsError, match="changed between two reads"):
        plan_dataset(PlanRequest("s3://b/t/"), Cut(dataset(1)))


def test_progress_reaches_the_number_of_objects() -> None:
    told: list[tuple[int, int]] = []
    plan_dataset(
        PlanRequest("s3://b/t/"), DictReader(dataset(300)), progress=lambda *a: told.append(a)
    )
    assert told[-1] == (299, 299)  # the first is read alone, to refuse a bad request early


def test_a_bad_first_object_does_not_hide_the_others() -> None:
    objects = {"s3://b/t/!.parquet": b"nothing of Parquet in here", **dataset(30)}
    with pytest.raises(BadObjectsError) as caught:
        plan_dataset(PlanRequest("s3://b/t/"), DictReader(objects))
    assert len(caught.value.objects) == 1


def test_no_object_is_no_parquet() -> None:
    with pytest.raises(NoParquetError, match="no object at s3://b/none/"):
        plan_dataset(PlanRequest("s3://b/none/"), DictReader({}))
    assert ObjectInfo("s3://b/a", "e", 1).size == 1


def test_a_column_that_occurs_twice_is_found_in_proportion_to_the_columns() -> None:
    names = [str(number) for number in range(40_000)]
    root = Node(STRUCT, ((4, Node(BINARY, b"root")), (5, Node(I32, len(names) + 1))))
    columns = [
        Node(STRUCT, ((1, Node(I32, 2)), (3, Node(I32, 0)), (4, Node(BINARY, name.encode()))))
        for name in [*names, names[-1]]
    ]
    raw = write_tree(Node(LIST, tuple(enumerate([root, *columns])), STRUCT))
    begun = time.process_time()
    with pytest.raises(Contradiction, match="column '39999' occurs twice"):
        parse_schema(raw)
    assert time.process_time() - begun < 5
