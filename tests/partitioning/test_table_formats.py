"""Folders of table formats are refused, from above, from inside and by any pattern."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from partitioning import NoParquetError, PlanRequest, TableFormatError, plan_dataset
from partitioning.listing import list_objects
from partitioning.model import ObjectInfo
from partitioning.table_formats import MAX_PROBES
from tests.support.stores import DictReader, ids, parquet

FILE = parquet(ids(0, 3))
LOG = "_delta_log/00000000000000000000.json"
CHECKPOINT = "_delta_log/00000000000000000010.checkpoint.parquet"
UUID = "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"

TABLES = {
    "Delta Lake": (LOG, "part-0.parquet", "day=1/part-1.parquet"),
    "Delta Lake, cleaned up": (CHECKPOINT, "part-0.parquet"),
    "Apache Iceberg": (f"metadata/00000-{UUID}.metadata.json", "data/day=1/a.parquet"),
    "Apache Iceberg, of Hadoop": ("metadata/v1.metadata.json", "data/a.parquet"),
    "Apache Iceberg, compressed": ("metadata/v12.gz.metadata.json", "data/a.parquet"),
    "Apache Iceberg, hint alone": ("metadata/version-hint.text", "data/a.parquet"),
    "Apache Hudi": (".hoodie/hoodie.properties", "day=1/a.parquet"),
    "Apache Hudi, its partition": ("day=1/.hoodie_partition_metadata", "day=1/a.parquet"),
}


def store(*keys: str) -> DictReader:
    return DictReader({f"s3://b/{key}": FILE for key in keys})


def refused(reader: DictReader, uri: str | tuple[str, ...], **options: object) -> str:
    with pytest.raises(TableFormatError) as caught:
        plan_dataset(PlanRequest(uri, **options), reader)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("uri", ["s3://b/t/", "s3://b/t", "s3://b/", "s3://b/*/", "s3://b/t/**"])
def test_a_table_is_refused_with_what_shows_it(kind: str, uri: str) -> None:
    reader = store(*(f"t/{key}" for key in TABLES[kind]), "plain/a.parquet")
    message = refused(reader, uri)
    assert kind.partition(",")[0] in message
    assert TABLES[kind][0] in message


def test_patterns_do_not_make_it_safe() -> None:
    reader = store(f"t/{LOG}", f"t/{CHECKPOINT}", "t/part-0.parquet")
    assert "part-0" in refused(reader, "s3://b/t/", include=("part-*.parquet",))
    refused(reader, "s3://b/t/*.parquet")
    refused(reader, "s3://b/t/part-*")
    refused(reader, ("s3://b/t/part-0.parquet",))


def test_a_checkpoint_is_never_data() -> None:
    reader = store(f"t/{CHECKPOINT}", "t/part-0.parquet")
    refused(reader, "s3://b/t/_delta_log/")
    refused(reader, f"s3://b/t/{CHECKPOINT}")
    refused(reader, "s3://b/t/**/*.checkpoint.parquet")
    with pytest.raises(NoParquetError):  # It is hidden, and nothing else matches.
        list_objects(PlanRequest("s3://b/t/", include=("*.checkpoint.parquet",)), reader)


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        ("Delta Lake", "s3://b/wh/t/day=1/"),
        ("Delta Lake", "s3://b/wh/t/day=1/hour=2/"),
        ("Delta Lake", "s3://b/wh/t/day=*/"),
        ("Delta Lake", "s3://b/wh/t/day=1/hour=2/part-1.parquet"),
        ("Apache Iceberg", "s3://b/wh/t/data/"),
        ("Apache Iceberg", "s3://b/wh/t/data/day=1/"),
        ("Apache Hudi", "s3://b/wh/t/day=1/"),
    ],
)
def test_a_folder_inside_a_table_is_refused(kind: str, uri: str) -> None:
    keys = [key for key in TABLES[kind] if not key.endswith(".parquet")]
    data = ["day=1/hour=2/part-1.parquet", "data/day=1/part-1.parquet"]
    assert uri in refused(store(*(f"wh/t/{key}" for key in (*keys, *data))), uri)


def test_objects_next_to_a_table_are_read() -> None:
    reader = store(f"wh/t/{LOG}", "wh/t/a.parquet", "wh/plain/a.parquet", "wh/tt/a.parquet")
    for uri in ("s3://b/wh/plain/", "s3://b/wh/tt", "s3://b/wh/[pq]*/"):
        assert plan_dataset(PlanRequest(uri), reader).plan.rows == 3
    # Left out by the job's own word.
    assert plan_dataset(PlanRequest("s3://b/wh/", exclude=("t/**",)), reader).plan.rows == 6


@pytest.mark.parametrize(
    "key", ["metadata/notes.json", "metadata/a.parquet", "_delta_logs/a.json", "x_delta_log/a.json"]
)
def test_names_that_only_look_alike_are_no_table(key: str) -> None:
    reader = store(f"t/{key}", "t/a.parquet")
    assert plan_dataset(PlanRequest("s3://b/t/", include=("a.parquet",)), reader).plan.rows


class Forbidding(DictReader):
    """Refuses access outside of a prefix, and counts the attempts."""

    outside = 0

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        if not uri_prefix.startswith("s3://b/in/"):
            self.outside += 1
            raise PermissionError(uri_prefix)
        return super().list(uri_prefix)

    def head(self, uri: str) -> ObjectInfo:
        if not uri.startswith("s3://b/in/"):
            self.outside += 1
            raise PermissionError(uri)
        return super().head(uri)


def test_who_may_not_look_above_his_input_still_plans() -> None:
    reader = Forbidding({"s3://b/in/a.parquet": FILE})
    assert plan_dataset(PlanRequest("s3://b/in/"), reader).plan.rows == 3
    assert reader.outside == 2  # The bucket's own log, and its Hudi folder.


def test_the_requests_do_not_grow_with_the_input() -> None:
    files = {f"s3://b/in/{n}/{m}.parquet": FILE for n in range(100) for m in range(3)}
    reader = Forbidding({**files})
    folders = tuple(f"s3://b/in/{n}/" for n in range(100))
    assert plan_dataset(PlanRequest(folders), reader).plan.rows == 900
    assert reader.outside == 2
    deep = Forbidding({f"s3://b/{n}/x/a.parquet": FILE for n in range(2)})
    with pytest.raises(PermissionError):
        plan_dataset(PlanRequest(tuple(f"s3://b/{n}/x/" for n in range(2))), deep)
    assert deep.outside <= MAX_PROBES
