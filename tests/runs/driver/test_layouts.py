"""Outputs whose files are merged: partitions of the result, sizes of files, order across files."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from partitioning.hive_paths import NULL_VALUE, quote_value
from pipeline.config.job import Job, parse_job
from pipeline.errors import (
    ChecksFailedError,
    JobError,
    PartitionLimitError,
    SchemaChangedError,
    UsageError,
)
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker import merge, slices
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from tests.support.examples import fewer
from tests.support.small import Small

CODE = """
import polars as pl

def same(frame):
    return frame

def none(frame):
    return frame.filter(pl.col("n") < 0)

def by_month(frame):
    return frame.with_columns(month=pl.col("day").dt.strftime("%Y-%m"))

def named(frame, names):
    return frame.rename(names)

def failing(frame, row):
    return frame.with_columns(pl.col("n").map_elements(lambda n: 1 // (n != row) and n, pl.Int64))

def cast(frame, column, kind):
    return frame.with_columns(pl.col(column).cast(getattr(pl, kind)))
"""
ODD = ["a/b", "c=d", "100%", "ä €", "x y+z", "..", "\t\n", "%2F", "'\"\\", "#?&:*[]", "\x85", None]
"""Texts that are no plain name of a folder."""


def frame(start: int, rows: int) -> pl.DataFrame:
    numbers = range(start, start + rows)
    return pl.DataFrame(
        {
            "n": numbers,
            "day": [date(2024, 1 + n % 5, 1 + n % 27) for n in numbers],
            "text": [ODD[n % len(ODD)] for n in numbers],
            "flag": [n % 3 == 0 for n in numbers],
        },
        schema_overrides={"n": pl.Int64},
    )


FILES, ROWS = 5, 24
WHOLE = pl.concat([frame(number * ROWS, ROWS) for number in range(FILES)])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(FILES):
        small.write(f"{number}.parquet", frame(number * ROWS, ROWS))
    return small


def keys(small: Small) -> list[str]:
    """Keys of the files in the output, in order."""
    out = small.root / "out"
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def contents(small: Small) -> dict[str, list[pl.DataFrame]]:
    """Frames of the files, in order, by their folder."""
    found: dict[str, list[pl.DataFrame]] = {}
    for key in keys(small):
        path = small.root / "out" / key
        data = pl.read_parquet(path, glob=False, hive_partitioning=False)
        found.setdefault(key.rpartition("/")[0], []).append(data)
    return found


def values_of(folder: str) -> dict[str, str | None]:
    """Values of a folder, as readers decode them."""
    pairs = (segment.partition("=") for segment in folder.split("/"))
    return {name: None if raw == NULL_VALUE else unquote(raw) for name, _, raw in pairs}


def oracle(whole: pl.DataFrame, names: list[str], sort_by: list[str] = []) -> dict[Any, Any]:  # noqa: B006
    """Rows of each partition as a plain loop finds them: by values as texts."""
    parts: dict[Any, list[int]] = {}
    texts = whole.select(pl.col(name).cast(pl.String) for name in names)
    for at, row in enumerate(texts.iter_rows()):
        parts.setdefault(row, []).append(at)
    rest = whole.drop(names)
    by = [name for name in sort_by if name not in names]
    found = {row: rest[at] for row, at in parts.items()}
    return {r: f.sort(by, maintain_order=True) if by else f for r, f in found.items()}


def check(small: Small, whole: pl.DataFrame, names: list[str], sort_by: list[str]) -> None:
    expected = oracle(whole, names, sort_by)
    found = {tuple(values_of(f)[n] for n in names): v for f, v in contents(small).items()}
    assert found.keys() == expected.keys()
    for row, frames in found.items():
        assert_frame_equal(pl.concat(frames), expected[row])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("names", "file_bytes", "sort_by"),
    [
        (["month"], None, []),
        (["month"], 700, ["day"]),
        (["month"], 1, ["text", "n"]),
        (["text"], 1, []),
        (["text"], None, ["flag"]),
        (["flag", "text"], 700, ["day"]),
        (["flag"], 700, ["flag", "text"]),
        (["n"], None, []),
        (["day", "month"], 1, ["text"]),
    ],
)
def test_every_layout_is_what_a_plain_loop_makes(
    small: Small, names: list[str], file_bytes: int | None, sort_by: list[str]
) -> None:
    layout = {"partition_by": names, "file_bytes": file_bytes, "sort_by": sort_by}
    done = small.run(small.job("by_month", output=layout))
    whole = WHOLE.with_columns(month=pl.col("day").dt.strftime("%Y-%m"))
    check(small, whole, names, sort_by)
    files = TableLog(small.storage, small.output).snapshot(
        TableLog(small.storage, small.output).manifest()
    )
    assert sorted(files["key"]) == keys(small)
    assert files["rows"].sum() == done.rows_out == FILES * ROWS
    verified = verify_output(small.storage, small.output)
    assert not verified.problems and not verified.notes
    if file_bytes is None:
        assert len(contents(small)) == len(keys(small))
    assert not list((small.root / "out.chunkmap").rglob("partials/*"))
    again = small.run(small.job("by_month", mode="overwrite", output=layout))
    assert again.manifest == done.manifest or again.run != done.run


def test_what_was_read_is_what_was_written(small: Small) -> None:
    small.run(small.job(output={"partition_by": ["text", "day"]}))
    rows = small.rows()
    assert rows.schema["day"] == pl.Date and rows.schema["text"] == pl.String
    assert_frame_equal(rows.select(WHOLE.columns).sort("n"), WHOLE)


def test_digits_stay_text_in_a_column_of_text(small: Small) -> None:
    for number in range(FILES):
        codes = frame(number * ROWS, ROWS).with_columns(code=pl.format("0{}", pl.col("n") % 3))
        small.write(f"{number}.parquet", codes)
    small.run(small.job(output={"partition_by": ["code"]}))
    assert sorted(small.rows()["code"].unique()) == ["00", "01", "02"]


def test_small_results_are_merged_without_partitions(small: Small) -> None:
    small.run(small.job(output={"file_bytes": "1MiB"}))
    [[file]] = contents(small).values()
    assert_frame_equal(file, WHOLE)


def test_folders_of_the_input_stay_where_only_sizes_are_set(small: Small, tmp_path: Path) -> None:
    for number in range(FILES):
        (tmp_path / "in" / f"{number}.parquet").unlink()
        small.write(f"k=0{number % 2}/{number}.parquet", frame(number * ROWS, ROWS))
    small.run(small.job(output={"file_bytes": "1MiB"}))
    assert {folder: len(files) for folder, files in contents(small).items()} == {
        "k=00": 1,
        "k=01": 1,
    }
    assert_frame_equal(small.rows().sort("n").drop("k"), WHOLE)


def test_files_have_about_the_target_size(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 1 << 14)
    monkeypatch.setattr(merge, "BLOCK_BYTES", 1 << 12)
    rows = 20_000
    for number in range(FILES):
        small.write(
            f"{number}.parquet",
            frame(number * rows, rows).with_columns(x=pl.col("n") * 7919 % 65537),
        )
    whole = pl.concat([pl.read_parquet(small.root / "in" / f"{n}.parquet") for n in range(FILES)])
    for sort_by in ([], ["x"], ["flag"]):
        job = small.job(mode="overwrite", output={"file_bytes": "60KiB", "sort_by": sort_by})
        small.run(job)
        expected = whole.sort(sort_by, maintain_order=True) if sort_by else whole
        [frames] = contents(small).values()
        assert_frame_equal(pl.concat(frames), expected)
        sizes = [path.stat().st_size for path in (small.root / "out").glob("*.parquet")]
        if sort_by == ["flag"]:
            assert len(sizes) == 2  # Equal keys are never in two files.
        else:
            assert len(sizes) >= 4 and max(sizes) < 2 * 60 * 1024 and max(sizes) < 3 * min(sizes)


def test_the_same_input_gives_the_same_bytes(small: Small) -> None:
    job = small.job(mode="overwrite", output={"partition_by": ["flag"], "sort_by": ["text"]})
    small.run(job)
    first = {key[:20]: (small.root / "out" / key).read_bytes() for key in keys(small)}
    small.run(job, replan=True)
    changed = small.job(mode="overwrite", output={**job.output.model_dump(), "keep_versions": 2})
    small.run(changed, replan=True)
    assert {key[:20]: (small.root / "out" / key).read_bytes() for key in keys(small)} == first


def test_partitions_are_replaced_and_others_stay(small: Small, tmp_path: Path) -> None:
    layout = {"partition_by": ["month"]}
    small.run(small.job("by_month", mode="overwrite-partitions", output=layout))
    before = contents(small)
    for number in range(FILES):
        (tmp_path / "in" / f"{number}.parquet").unlink()
    new = frame(0, ROWS).filter(pl.col("day").dt.month() == 2).with_columns(pl.col("n") + 1000)
    small.write("new.parquet", new)
    small.run(small.job("by_month", mode="overwrite-partitions", output=layout))
    after = contents(small)
    assert after["month=2024-02"][0]["n"].to_list() == new["n"].to_list()
    del after["month=2024-02"], before["month=2024-02"]
    assert str(after) == str(before)
    rollback(TableLog(small.storage, small.output))
    assert_frame_equal(small.rows().drop("month").sort("n"), WHOLE)


def test_a_run_that_appends_adds_files_to_partitions(small: Small) -> None:
    layout = {"partition_by": ["flag"]}
    small.run(small.job(output=layout))
    small.write("more.parquet", frame(500, ROWS))
    small.run(small.job(output=layout))
    whole = pl.concat([WHOLE, frame(500, ROWS)])
    assert {folder: len(files) for folder, files in contents(small).items()} == {
        "flag=false": 2,
        "flag=true": 2,
    }
    assert small.rows()["n"].sort().to_list() == whole["n"].to_list()


def test_another_schema_is_refused_before_anything_is_merged(small: Small) -> None:
    small.write("4.parquet", frame(0, 3).rename({"flag": "flags"}))
    job = small.job(input={"uri": small.input, "schema": "union"}, output={"partition_by": ["day"]})
    small.run(job)
    small.write("5.parquet", frame(500, 3).with_columns(other=pl.lit(1)))
    with pytest.raises(SchemaChangedError, match="other"):
        small.run(job)


def test_a_column_without_values_takes_the_type_of_other_chunks(small: Small) -> None:
    small.write("0.parquet", frame(0, ROWS).with_columns(text=None))
    job = small.job(
        input={"uri": small.input, "types": {}, "schema": "union"},
        output={"partition_by": ["flag"], "sort_by": ["text"]},
    )
    small.run(job)
    assert small.rows()["n"].sort().to_list() == WHOLE["n"].to_list()


@pytest.mark.parametrize("layout", [{"partition_by": ["flag"]}, {"file_bytes": 1}])
def test_a_run_without_rows_publishes_no_file(small: Small, layout: dict[str, Any]) -> None:
    done = small.run(small.job("none", output=layout))
    assert (done.rows_out, done.manifest) == (0, 1)
    assert not keys(small)
    small.run(small.job("same", mode="overwrite", output=layout))
    assert small.run(small.job("none", mode="overwrite", output=layout)).manifest == 3
    assert not keys(small)


@pytest.mark.parametrize("names", [["flag"], ["text"]])
def test_a_result_is_checked_before_it_is_published(small: Small, names: list[str]) -> None:
    checks = {
        "run": [
            {"check": "unique", "columns": ["n", "text"]},
            {"check": "not_null", "columns": ["flag"]},
            {"check": "row_count", "min": 1, "of_last": "50%"},
        ]
    }
    layout = {"partition_by": names}
    small.run(small.job(output=layout, checks=checks))
    assert small.rows()["n"].sort().to_list() == WHOLE["n"].to_list()
    before = keys(small)
    small.write("9.parquet", frame(0, 2))
    with pytest.raises(ChecksFailedError, match="unique"):
        small.run(small.job(mode="overwrite", output=layout, checks=checks))
    assert keys(small) == before


# -- refusals -----------------------------------------------------------------------------------


def failure(small: Small, job: Job) -> str:
    with pytest.raises(RunIncompleteError) as raised:
        small.run(job)
    assert not keys(small)
    message: str = (
        Ledger(small.storage, small.output, raised.value.summary.run).read().failures["message"][0]
    )
    return message


@pytest.mark.parametrize("kind", ["Float64", "Binary", "Datetime", "Time", "Int128"])
def test_types_that_folders_do_not_hold_are_refused(small: Small, kind: str) -> None:
    column = "day" if kind == "Datetime" else "text" if kind == "Binary" else "n"
    params = {"column": column, "kind": kind}
    job = small.job("cast", params=params, output={"partition_by": [column]})
    assert f"column '{column}' is of type {kind}" in failure(small, job)


@pytest.mark.parametrize("text", ["", NULL_VALUE])
def test_texts_that_readers_take_for_nulls_are_refused(small: Small, text: str) -> None:
    small.write("0.parquet", frame(0, 3).with_columns(text=pl.lit(text)))
    message = failure(small, small.job(output={"partition_by": ["text"]}))
    assert "replace it in the transform" in message


def test_a_result_of_partition_columns_only_is_refused(small: Small) -> None:
    for number in range(FILES):
        small.write(f"{number}.parquet", frame(0, 3).select("n"))
    assert "no columns but n" in failure(small, small.job(output={"partition_by": ["n"]}))


def test_a_chunk_with_too_many_partitions_fails(small: Small) -> None:
    job = small.job(output={"partition_by": ["n"], "max_partitions": ROWS - 1})
    assert "24 partitions (output.partition_by), more than the 23 of" in failure(small, job)


def test_a_run_with_too_many_partitions_publishes_nothing(small: Small) -> None:
    job = small.job(output={"partition_by": ["n"], "max_partitions": ROWS})
    with pytest.raises(PartitionLimitError, match=r"has 120 partitions.* more than the 24 of"):
        small.run(job)
    assert not keys(small)


def test_a_column_that_is_missing_is_refused_in_planning(small: Small) -> None:
    with pytest.raises(JobError, match=r"partition_by names the column 'dat'.*did you mean"):
        small.run(small.job(output={"partition_by": ["dat"]}))
    assert not (small.root / "out.chunkmap").exists()


def test_a_reduce_with_a_layout_is_refused() -> None:
    text = "name: a\ninput: {uri: s3://a/b/}\ntransform: a:b\nreduce: {combine: a:b}\n"
    text += "output: {uri: s3://a/c/, partition_by: [x]}\n"
    with pytest.raises(JobError, match=r"`reduce` and `output\.partition_by` exclude"):
        parse_job(text)


@pytest.mark.parametrize("name", ["a/b", "a=b", "", "a%b", "a\n"])
def test_names_that_are_no_names_of_folders_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="partition_by"):
        Job.model_validate(
            {
                "name": "a",
                "input": {"uri": "s3://a/b/"},
                "transform": "a:b",
                "output": {"uri": "s3://a/c/", "partition_by": [name]},
            }
        )


def test_a_run_with_failed_chunks_cannot_be_published_in_part(small: Small) -> None:
    job = small.job("failing", params={"row": 30}, output={"partition_by": ["flag"]})
    failure(small, job)
    [run] = [path.name for path in (small.root / "out.chunkmap" / "runs").iterdir()]
    ledger = Ledger(small.storage, small.output, run)
    with pytest.raises(UsageError, match="cannot be published without some of them"):
        publish_run(small.storage, ledger, without_failed=True)


def test_vacuum_drops_the_partial_results_of_published_runs(small: Small) -> None:
    done = small.run(small.job(output={"partition_by": ["flag"]}))
    left = small.root / "out.chunkmap" / "runs" / done.run / "partials" / "x.arrow"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"x")
    vacuum(small.storage, small.output)
    assert not left.exists()


@settings(max_examples=fewer(200), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_text_survives_as_the_name_of_a_folder(text: str) -> None:
    raw = quote_value(text)
    assert unquote(raw) == text
    assert not any(c in raw for c in "/=#?*\\\"' +\x00\n")
