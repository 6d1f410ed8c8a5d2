"""A Delta table as input: the rows of one version, as its log says, or a reason why not."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from partitioning import MissingFilesError, NoParquetError
from pipeline.config.job import Job, parse_job
from pipeline.errors import InputError
from pipeline.runs.driver.job_changes import input_changes
from pipeline.runs.driver.plan import plan_input
from pipeline.table.delta.input import pinned_files
from pipeline.table.errors import DamagedTableError
from tests.support.small import Small

CODE = """
import polars as pl

def same(frame):
    return frame

def twice(frame):
    return frame.select(twice=pl.col("id") * 2)
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    return Small(tmp_path, CODE)


def write(small: Small, frame: pl.DataFrame, mode: Any = "append", **more: Any) -> None:
    write_deltalake(small.root / "in", pa.table(frame.to_arrow()), mode=mode, **more)


def job(small: Small, **source: Any) -> Job:
    return small.job(mode="overwrite", input={"table": small.input, **source})


def mapped(small: Small, **source: Any) -> pl.DataFrame:
    small.run(job(small, **source))
    rows = small.rows()
    return rows.select(sorted(rows.columns)).sort(pl.all())


def expected(small: Small, version: int | None = None) -> pl.DataFrame:
    frame = pl.scan_delta(str(small.root / "in"), version=version).collect()
    return frame.select(sorted(frame.columns)).sort(pl.all())


def test_every_version_has_its_rows(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1, 2, 3], "k": ["a", "b", "a"]}), partition_by=["k"])
    write(small, pl.DataFrame({"id": [4], "k": ["b"]}))
    DeltaTable(small.root / "in").delete("id = 1")
    write(small, pl.DataFrame({"id": [9], "k": ["c"]}), mode="overwrite")
    for version in (0, 2):
        assert_frame_equal(mapped(small, version=version), expected(small, version))
    assert_frame_equal(mapped(small), expected(small))
    assert small.rows()["id"].to_list() == [9]


def test_columns_that_came_later_are_null_before(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    write(small, pl.DataFrame({"id": [2], "more": ["x"]}), schema_mode="merge")
    assert_frame_equal(mapped(small), expected(small))


def test_odd_partition_values(small: Small) -> None:
    values = ["a/b", "a=b", "%20", "x y", "é", None, "1", "?#&"]
    frame = pl.DataFrame({"id": range(8), "k": values, "day": [date(2024, 2, 29), *[None] * 7]})
    write(small, frame, partition_by=["k", "day"])
    assert_frame_equal(mapped(small), expected(small))
    some = mapped(small, filter=[["k", "==", "a/b"]])
    assert some["id"].to_list() == [0]


def test_partition_values_are_those_of_the_log(small: Small) -> None:
    """Some writers name folders otherwise, or not at all."""
    write(small, pl.DataFrame({"id": [1, 2], "k": [7, 8]}), partition_by=["k"])
    root = small.root / "in"
    log = root / "_delta_log" / f"{0:020}.json"
    text = log.read_text()
    for at, folder in enumerate(("k=7", "k=8")):
        [file] = (root / folder).iterdir()
        (root / f"x{at}").mkdir()
        file.rename(root / f"x{at}" / file.name)
        text = text.replace(f"{folder}/", f"x{at}/")
    log.write_text(text)
    found = mapped(small)
    assert_frame_equal(found, pl.DataFrame({"id": [1, 2], "k": [7, 8]}))
    assert (small.root / "out" / "k=7").is_dir()


def test_our_own_tables_are_inputs(small: Small) -> None:
    small.write("0.parquet", pl.DataFrame({"id": [1, 2], "k": ["a", "b"]}), folder="source")
    output = {"uri": small.input, "table": {"format": "delta"}, "partition_by": ["k"]}
    small.run(small.job(input={"uri": f"file://{small.root}/source/"}, output=output))
    assert_frame_equal(mapped(small), pl.DataFrame({"id": [1, 2], "k": ["a", "b"]}))


def test_a_resumed_run_is_told_of_newer_versions(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    plan = small.ledger(small.run(job(small))).plan()
    assert input_changes(small.storage, job(small), plan) is None
    write(small, pl.DataFrame({"id": [2]}))
    assert "1 object added" in str(input_changes(small.storage, job(small), plan))
    assert input_changes(small.storage, job(small, version=0), plan) is None


def test_a_run_keeps_its_version(small: Small) -> None:
    """It is planned once; the same job then reads the newer version."""
    write(small, pl.DataFrame({"id": [1]}))
    first = small.run(job(small))
    write(small, pl.DataFrame({"id": [2]}))
    again = small.run(job(small, version=0))
    assert again.rows_out == first.rows_out == 1
    assert small.run(job(small)).rows_out == 2


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ({"uri": "s3://b/other/"}, {}, "`uri` or `table`"),
        ({"include": ["a*"]}, {}, "`table` and `include`"),
        ({"hive_types": {"k": "string"}}, {}, "`table` and `hive_types`"),
        ({"schema": "first"}, {}, "`table` and `schema`"),
        ({}, {"mode": "append"}, "mode append"),
    ],
)
def test_keys_that_contradict_a_table(
    source: dict[str, Any], output: dict[str, Any], message: str
) -> None:
    data = {
        "name": "t",
        "input": {"table": "s3://b/t/", **source},
        "transform": "a:b",
        "output": {"uri": "s3://b/o/", **output},
    }
    with pytest.raises(ValidationError, match=message):
        Job.model_validate(data)


def test_a_version_needs_a_table() -> None:
    data = {"name": "t", "transform": "a:b", "output": {"uri": "s3://b/o/"}}
    with pytest.raises(ValidationError, match="`version` needs `table`"):
        Job.model_validate({**data, "input": {"uri": "s3://b/t/", "version": 1}})
    with pytest.raises(ValidationError, match="uri"):
        Job.model_validate({**data, "input": {}})


def test_a_job_with_a_table_is_written_and_read_back() -> None:
    text = (
        "name: t\ninput: {table: s3://b/t/, version: 3}\ntransform: a:b\noutput: {uri: s3://b/o/}\n"
    )
    said = parse_job(text)
    assert said.input.uri == ("s3://b/t/",)
    assert parse_job(said.to_yaml()) == said
    assert "uri: s3://b/t/" not in said.to_yaml()


def test_what_is_no_table_or_no_version(small: Small) -> None:
    small.write("a.parquet", pl.DataFrame({"id": [1]}))
    with pytest.raises(InputError, match="is no Delta table"):
        small.run(job(small))
    (small.root / "in" / "a.parquet").unlink()
    write(small, pl.DataFrame({"id": [1]}))
    with pytest.raises(InputError, match=r"no version 5 .*the newest is 0"):
        small.run(job(small, version=5))


def test_files_that_a_vacuum_deleted_are_named(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    write(small, pl.DataFrame({"id": [2]}), mode="overwrite")
    table = DeltaTable(small.root / "in")
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(MissingFilesError, match="1 of 1 files of version 0"):
        small.run(job(small, version=0))
    assert mapped(small)["id"].to_list() == [2]
    [file] = (small.root / "in").glob("*.parquet")
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(MissingFilesError, match="overwritten"):
        small.run(job(small), replan=True)


def test_an_empty_version(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    DeltaTable(small.root / "in").delete()
    with pytest.raises(NoParquetError, match=r"version 1 .* has no files"):
        small.run(job(small))


@pytest.mark.parametrize("damage", ["cut", "gap"])
def test_a_damaged_log(small: Small, damage: str) -> None:
    for number in range(3):
        write(small, pl.DataFrame({"id": [number]}))
    log = small.root / "in" / "_delta_log"
    if damage == "cut":
        file = log / f"{2:020}.json"
        file.write_bytes(file.read_bytes()[:-20])
    else:
        (log / f"{1:020}.json").unlink()
    with pytest.raises(DamagedTableError, match="_delta_log/"):
        small.run(job(small))


def edited(small: Small, **protocol: Any) -> None:
    """Say in the log that the table has other properties and features than it has."""
    log = small.root / "in" / "_delta_log" / f"{0:020}.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "protocol" in line and "readerFeatures" in protocol:
            line["protocol"] = {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": protocol["readerFeatures"],
                "writerFeatures": protocol["readerFeatures"],
            }
        if "metaData" in line and "configuration" in protocol:
            line["metaData"]["configuration"] = protocol["configuration"]
            schema = json.loads(line["metaData"]["schemaString"])
            for number, field in enumerate(schema["fields"], 1):
                field["metadata"] = {
                    "delta.columnMapping.id": number,
                    "delta.columnMapping.physicalName": f"col-{number}",
                }
            line["metaData"]["schemaString"] = json.dumps(schema)
        if "add" in line and "vector" in protocol:
            line["add"]["deletionVector"] = protocol["vector"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_column_mapping_is_refused_with_the_reason(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    edited(
        small,
        readerFeatures=["columnMapping"],
        configuration={"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "1"},
    )
    with pytest.raises(InputError, match="column mapping") as caught:
        pinned_files(small.storage, small.input, None)
    assert caught.value.hint


def test_deletion_vectors_are_refused_with_the_reason(small: Small) -> None:
    write(small, pl.DataFrame({"id": range(40)}))
    # From the protocol's example: rows 3, 4, 7, 11, 18 and 29.
    vector = {
        "storageType": "i",
        "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 44,
        "cardinality": 6,
    }
    edited(small, readerFeatures=["deletionVectors"], vector=vector)
    with pytest.raises(InputError, match=r"deletion vectors, .* 1 of its files") as caught:
        pinned_files(small.storage, small.input, None)
    assert "PURGE" in str(caught.value.hint)
    kept = small.job(
        "twice", mode="overwrite", input={"table": small.input}, output={"keep": "all"}
    )
    with pytest.raises(InputError, match="deletion vectors"):  # Its files have other rows.
        plan_input(kept, small.settings, small.storage)


def test_kept_columns_of_a_version(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1, 2, 3], "k": ["a", "b", "a"]}), partition_by=["k"])
    write(small, pl.DataFrame({"id": [4], "more": ["x"], "k": ["b"]}), schema_mode="merge")
    DeltaTable(small.root / "in").delete("id = 1")
    kept = small.job(
        "twice", mode="overwrite", input={"table": small.input}, output={"keep": "all"}
    )
    small.run(kept)
    rows = small.rows()
    out = rows.select(sorted(rows.columns)).sort("id")
    assert_frame_equal(out, expected(small).with_columns(twice=pl.col("id") * 2).sort("id"))


def test_a_feature_without_deleted_rows_is_no_reason(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    edited(small, readerFeatures=["deletionVectors"])
    assert len(pinned_files(small.storage, small.input, None).sizes) == 1


def test_unknown_features_are_refused(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    edited(small, readerFeatures=["typeWidening"])
    with pytest.raises((InputError, DamagedTableError), match="typeWidening"):
        pinned_files(small.storage, small.input, None)


def test_partitions_of_other_types_are_refused(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1], "k": [1.5]}), partition_by=["k"])
    with pytest.raises(InputError, match="'k' of type double"):
        small.run(job(small))


def test_files_in_other_places_are_refused(small: Small) -> None:
    write(small, pl.DataFrame({"id": [1]}))
    log = small.root / "in" / "_delta_log" / f"{0:020}.json"
    log.write_text(log.read_text().replace('"path":"', '"path":"s3://elsewhere/'))
    with pytest.raises(InputError, match="another place"):
        pinned_files(small.storage, small.input, None)
