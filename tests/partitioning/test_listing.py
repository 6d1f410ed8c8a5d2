"""What an input names, and how keys and partition values are read."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from partitioning import (
    BadObjectsError,
    FsspecReader,
    NoParquetError,
    Plan,
    PlanningError,
    PlanRequest,
    SchemaMismatchError,
    Term,
    plan_dataset,
)
from partitioning.globs import compile_glob
from partitioning.listing import list_objects
from partitioning.model import ObjectInfo
from partitioning.reader import Reader, TailRequest
from tests.support.stores import DictReader, ids, parquet

FILE = parquet(ids(0, 3))
ODD_KEYS = [
    "a[1].parquet", "a1.parquet", "star*.parquet", "what?.parquet", "hash#1.parquet",
    "percent%2F.parquet", "percent/x.parquet", "two//slashes.parquet", "a b.parquet",
    "ünïcode-日本.parquet", "plus+.parquet", "quote'\".parquet", "back\\slash.parquet",
    "comma,.parquet", "{brace}.parquet", "~tilde.parquet", "new\nline.parquet",
]  # fmt: skip


def uris(reader: Reader, uri: str | tuple[str, ...], **options: Any) -> list[str]:
    request = PlanRequest(uri, **options)
    return sorted(info.uri for info in list_objects(request, reader).objects)


def store(*keys: str, data: bytes = FILE) -> DictReader:
    return DictReader({f"s3://b/{key}": data for key in keys})


def test_a_prefix_is_a_directory_even_without_its_slash() -> None:
    reader = store("t/a.parquet", "t/x/b.parquet", "t2/c.parquet")
    wanted = ["s3://b/t/a.parquet", "s3://b/t/x/b.parquet"]
    assert uris(reader, "s3://b/t/") == uris(reader, "s3://b/t") == wanted


def test_one_object_by_name() -> None:
    assert uris(store("t/a.parquet", "t/b.parquet"), "s3://b/t/a.parquet") == ["s3://b/t/a.parquet"]


def test_an_object_named_explicitly_needs_no_parquet_name() -> None:
    reader = store("t/_part-0")
    assert uris(reader, "s3://b/t/_part-0") == ["s3://b/t/_part-0"]


def test_an_empty_object_may_mark_a_directory() -> None:
    reader = store("t/a.parquet")
    reader.objects["s3://b/t"] = b""
    assert uris(reader, "s3://b/t") == ["s3://b/t/a.parquet"]
    reader.objects["s3://b/e"] = b""
    with pytest.raises(NoParquetError, match="of 1 objects, 1 empty"):
        uris(reader, "s3://b/e")


def test_an_empty_object_with_a_parquet_name_is_a_bad_one() -> None:
    reader = store("t/a.parquet")
    reader.objects["s3://b/t/b.parquet"] = b""
    with pytest.raises(BadObjectsError, match=r"b\.parquet: at byte 0: 0 bytes: too small"):
        plan_dataset(PlanRequest("s3://b/t/"), reader)


def test_an_explicit_list_counts_an_object_once() -> None:
    reader = store("t/a.parquet", "t/b.parquet", "u/c.parquet")
    found = uris(reader, ("s3://b/t/a.parquet", "s3://b/u/", "s3://b/t/*.parquet"))
    assert found == ["s3://b/t/a.parquet", "s3://b/t/b.parquet", "s3://b/u/c.parquet"]


def test_an_item_of_a_list_that_is_not_there_is_named() -> None:
    with pytest.raises(NoParquetError, match=r"no object at s3://b/t/z\.parquet"):
        uris(store("t/a.parquet"), ("s3://b/t/a.parquet", "s3://b/t/z.parquet"))


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("t/*.parquet", ["t/a.parquet"]),
        ("t/**/*.parquet", ["t/a.parquet", "t/x/b.parquet", "t/x/y/c.parquet"]),
        ("t/x*", ["t/x/b.parquet", "t/x/y/c.parquet"]),
        ("t/*/[a-b].parquet", ["t/x/b.parquet"]),
        ("t/?.parquet", ["t/a.parquet"]),
        ("t/x/**", ["t/x/b.parquet", "t/x/y/c.parquet"]),
    ],
)
def test_globs(pattern: str, wanted: list[str]) -> None:
    reader = store("t/a.parquet", "t/x/b.parquet", "t/x/y/c.parquet")
    assert uris(reader, f"s3://b/{pattern}") == [f"s3://b/{key}" for key in wanted]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("[!a].pq", "b.pq", "a.pq"),
        ("[]].pq", "].pq", "a.pq"),
        ("a[.pq", "a[.pq", "a.pq"),
        ("[a-c&&b].pq", "&.pq", "d.pq"),
        ("**/x", "a/b/x", "a/b/y"),
        ("x.q", "x.q", "xyq"),
        ("[[]1].pq", "[1].pq", "1.pq"),
    ],
)
def test_glob_corners(pattern: str, yes: str, no: str) -> None:
    assert compile_glob(pattern).fullmatch(yes)
    assert not compile_glob(pattern).fullmatch(no)


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("s3://b/t/", {"include": ("*.pq", "part-[z-a].parquet")}),
        ("s3://b/t/", {"exclude": ("part-[z-a].parquet",)}),
        ("s3://b/t/part-[z-a].parquet", {}),
    ],
)
def test_a_glob_that_nothing_can_match_is_named(uri: str, options: dict[str, Any]) -> None:
    with pytest.raises(NoParquetError, match=r"part-\[z-a\]\.parquet': bad character range z-a"):
        uris(store("t/a.parquet"), uri, **options)
    assert uris(store("t[z-a]/a.parquet"), "s3://b/t[z-a]/") == ["s3://b/t[z-a]/a.parquet"]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_any_key_survives_and_is_found_under_exactly_its_name(key: str) -> None:
    reader = store(*(f"t/{k}" for k in ODD_KEYS))
    uri = f"s3://b/t/{key}"
    assert uri in uris(reader, "s3://b/t/")
    assert uris(reader, uri) == [uri]
    plan = plan_dataset(PlanRequest("s3://b/t/", per_file=True), reader).plan
    stored = Plan.from_bytes(plan.to_bytes())
    assert uri in [chunk.fragments[0].uri for chunk in stored.chunks()]


def test_a_name_that_is_not_utf8_is_named_unless_it_is_left_out() -> None:
    reader = store("t/a.parquet", "t/caf\udce9.parquet", "t/_caf\udce9.parquet")
    with pytest.raises(PlanningError, match=r"caf\\udce9.parquet.*not UTF-8: rename or exclude it"):
        plan_dataset(PlanRequest("s3://b/t/"), reader)
    plan = plan_dataset(PlanRequest("s3://b/t/", exclude=("caf*",)), reader).plan
    assert [chunk.fragments[0].uri for chunk in plan.chunks()] == ["s3://b/t/a.parquet"]


def test_a_prefix_with_brackets_is_taken_literally_if_it_is_there() -> None:
    reader = store("t[1]/a.parquet", "t1/b.parquet")
    assert uris(reader, "s3://b/t[1]/") == ["s3://b/t[1]/a.parquet"]


def test_hidden_empty_and_other_names_are_left_out_and_counted() -> None:
    reader = store(
        "t/a.parquet", "t/_SUCCESS", "t/.part.crc", "t/_tmp/x.parquet", "t/.snap/y.parquet",
        "t/read.me", "t/_k=1/b.parquet",
    )  # fmt: skip
    reader.objects |= {"s3://b/t/mark": b"", "s3://b/t/dir/": b""}
    listing = list_objects(PlanRequest("s3://b/t/"), reader)
    found = [i.uri for i in listing.objects]
    assert found == ["s3://b/t/a.parquet", "s3://b/t/_k=1/b.parquet"]
    assert (listing.hidden, listing.empty, listing.unnamed, listing.listed) == (4, 2, 1, 9)


def test_include_and_exclude() -> None:
    reader = store("t/a.parquet", "t/b.data", "t/x/c.parquet", "t/x/d.data")
    assert uris(reader, "s3://b/t/", include=("*.data",)) == [
        "s3://b/t/b.data",
        "s3://b/t/x/d.data",
    ]
    assert uris(reader, "s3://b/t/", include=("x/*",), exclude=("*.data",)) == [
        "s3://b/t/x/c.parquet"
    ]
    assert uris(reader, "s3://b/t/", exclude=("x/**",)) == ["s3://b/t/a.parquet"]


def test_nothing_left_says_why() -> None:
    with pytest.raises(NoParquetError, match=r"of 2 objects, 1 not named .*, 1 hidden"):
        uris(store("t/b.csv", "t/_c.parquet"), "s3://b/t/")


def partitions(*directories: str, **options: Any) -> list[tuple[tuple[str, Any], ...]]:
    reader = store(*(f"t/{d}/a.parquet" for d in directories))
    plan = plan_dataset(PlanRequest("s3://b/t/", **options), reader).plan
    return [chunk.partition for chunk in plan.chunks()]


def test_partition_values_are_typed_over_the_dataset() -> None:
    assert partitions("d=2024-01-02", "d=2023-12-31") == [
        (("d", date(2023, 12, 31)),),
        (("d", date(2024, 1, 2)),),
    ]
    assert partitions("n=10", "n=9", "n=-1", "n=007") == [
        (("n", -1),), (("n", 7),), (("n", 9),), (("n", 10),),
    ]  # fmt: skip
    assert partitions("s=1", "s=a") == [(("s", "1"),), (("s", "a"),)]
    assert partitions("d=2024-02-30") == [(("d", "2024-02-30"),)]
    assert partitions(f"n={2**63}") == [(("n", str(2**63)),)]


def test_the_default_partition_is_null_and_last() -> None:
    found = partitions("n=__HIVE_DEFAULT_PARTITION__", "n=2")
    assert found == [(("n", 2),), (("n", None),)]


def test_values_are_percent_decoded_and_keys_are_not() -> None:
    reader = store("t/s=a%2Fb%20c/x%2Fy.parquet", "t/s=a+b/z.parquet")
    chunks = list(plan_dataset(PlanRequest("s3://b/t/"), reader).plan.chunks())
    assert [c.partition for c in chunks] == [(("s", "a+b"),), (("s", "a/b c"),)]
    assert chunks[1].fragments[0].uri == "s3://b/t/s=a%2Fb%20c/x%2Fy.parquet"


def test_one_object_has_the_values_of_all_its_directories() -> None:
    reader = store("t/d=2024-01-01/a.parquet")
    plan = plan_dataset(PlanRequest("s3://b/t/d=2024-01-01/a.parquet"), reader).plan
    assert plan.chunk(0).partition == (("d", date(2024, 1, 1)),)
    below = plan_dataset(PlanRequest("s3://b/t/d=2024-01-01/"), reader).plan
    assert below.chunk(0).partition == ()


def test_equal_values_in_different_directories_are_two_partitions() -> None:
    found = partitions("n=1", "n=01", per_partition=True)
    assert found == [(("n", 1),), (("n", 1),)]


def test_a_chunk_may_cross_partitions_only_when_asked() -> None:
    assert partitions("k=1/n=1", "k=1/n=2", cross_partitions=True) == [(("k", 1),)]
    assert len(partitions("k=1/n=1", "k=1/n=2")) == 2


def test_each_fragment_knows_its_own_partition() -> None:
    reader = store("t/k=1/n=1/a.parquet", "t/k=1/n=2/a.parquet")
    plan = plan_dataset(PlanRequest("s3://b/t/", cross_partitions=True), reader).plan
    assert [f.partition for f in plan.chunk(0).fragments] == [
        (("k", 1), ("n", 1)),
        (("k", 1), ("n", 2)),
    ]


def test_a_lacking_partition_column_is_refused_with_both_examples() -> None:
    reader = store("t/n=1/a.parquet", "t/b.parquet")
    with pytest.raises(SchemaMismatchError, match=r"'n' is in the key of s3://b/t/n=1/a\.parquet"):
        plan_dataset(PlanRequest("s3://b/t/"), reader)
    plan = plan_dataset(PlanRequest("s3://b/t/", schema="union"), reader).plan
    assert [c.partition for c in plan.chunks()] == [(("n", 1),), (("n", None),)]


def test_hive_columns_end_the_schema_and_hide_columns_of_the_files() -> None:
    data = parquet(ids(0, 2, n=pa.array(["x", "y"])))
    result = plan_dataset(PlanRequest("s3://b/t/"), store("t/n=1/a.parquet", data=data))
    assert result.plan.schema == pa.schema([("id", pa.int64()), ("n", pa.int64())])
    assert any("'n' of the files is hidden" in w for w in result.explain.warnings)


def test_objects_pruned_by_their_partition_are_not_read() -> None:
    reader = store("t/d=2024-01-01/a.parquet", "t/d=2024-01-02/a.parquet")
    request = PlanRequest("s3://b/t/", filter=((Term("d", ">", "2024-01-01"),),))
    result = plan_dataset(request, reader)
    assert len(reader.lengths) == 1
    assert result.explain.objects_pruned == 1
    nothing = PlanRequest("s3://b/t/", filter=((Term("d", ">", "2030-01-01"),),))
    empty = plan_dataset(nothing, reader).plan
    assert (len(empty), empty.rows, empty.schema.names) == (0, 0, ["id", "d"])
    assert list(empty.chunks()) == []
    assert Plan.from_bytes(empty.to_bytes()) == empty


def test_local_files_through_fsspec(tmp_path: Path) -> None:
    for name in ("a[1].parquet", "a1.parquet", "sub dir/b#?.parquet", "_hidden.parquet"):
        path = tmp_path / "t" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILE)
    reader = FsspecReader(fsspec.filesystem("file"))
    base = f"file://{tmp_path}/t"
    plan = plan_dataset(PlanRequest(base, per_file=True), reader).plan
    assert [c.fragments[0].uri for c in plan.chunks()] == [
        f"{base}/{n}" for n in ("a1.parquet", "a[1].parquet", "sub dir/b#?.parquet")
    ]
    assert uris(reader, f"{base}/a[1].parquet") == [f"{base}/a[1].parquet"]
    assert uris(reader, f"{base}/a?.parquet") == [f"{base}/a1.parquet"]
    with pytest.raises(NoParquetError):
        uris(reader, f"file://{tmp_path}/none")


def test_fsspec_refuses_a_replaced_and_names_a_lost_object(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(FILE)
    reader = FsspecReader(fsspec.filesystem("file"))
    info = reader.head(f"file://{tmp_path}/a.parquet")
    other = ObjectInfo(info.uri, "another", info.size)
    lost = ObjectInfo(f"file://{tmp_path}/b.parquet", "e", 10)
    tails = {
        t.object.uri + t.object.etag: t
        for t in reader.read_tails([TailRequest(i, 8) for i in (info, other, lost)], 2)
    }
    assert tails[info.uri + info.etag].data == FILE[-8:]
    assert "replaced since it was listed" in str(tails[other.uri + "another"].error)
    assert "FileNotFoundError" in str(tails[lost.uri + "e"].error)


def test_fsspec_retries_with_longer_and_longer_pauses() -> None:
    pauses: list[float] = []

    class Flaky:
        protocol = "flaky"
        failures = 2

        def info(self, path: str) -> dict[str, Any]:
            if self.failures:
                self.failures -= 1
                raise OSError("slow down")
            return {"name": path, "size": 5, "ETag": "e", "type": "file"}

    reader = FsspecReader(Flaky(), pause=pauses.append)
    assert reader.head("flaky://b/a") == ObjectInfo("flaky://b/a", "e", 5)
    assert len(pauses) == 2
    assert all(low <= p <= 2 * low for p, low in zip(pauses, (0.1, 0.2), strict=True))
