"""Outputs that keep columns of the input's files as their bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from pipeline.errors import ChecksFailedError, JobError, ObjectChangedError
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.dry_run import try_transform
from pipeline.runs.driver.plan import plan_input
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.ledger import Ledger
from tests.support.small import Small

CODE = """
import polars as pl

def doubled(frame):
    return frame.select(twice=pl.col("n") * 2)

def replaced(frame):
    return frame.select(pl.col("text").str.to_uppercase(), size=pl.col("text").str.len_chars())

def first_replaced(frame):
    return frame.select(pl.col("n") + 1)

def nothing(frame):
    return frame.select([])

def everything(frame):
    return frame.with_columns(twice=pl.col("n") * 2)

def some_rows(frame):
    return frame.filter(pl.col("n") > 3).select(twice=pl.col("n"))

def hidden_rows(frame):
    return frame.select(twice=pl.col("n").filter(pl.col("n") > 3))

def in_order(frame):
    return frame.sort("n").select(twice=pl.col("n"))

def looked_up(frame, order):
    names = pl.LazyFrame({"n": [1, 2, 30], "name": ["one", "two", "thirty"]})
    few = names.filter(pl.col("n") < 10)
    return frame.join(few, on="n", how="left", maintain_order=order).select("name")

def looked_up_twice(frame):
    names = pl.LazyFrame({"n": [1, 1], "name": ["one", "uno"]})
    return frame.join(names, on="n", how="left", maintain_order="left").select("name")

def reversed_rows(frame):
    return frame.reverse().select(twice=pl.col("n"))

def other_frame(frame):
    return pl.LazyFrame({"twice": range(40)})

def collected(frame):
    return frame.collect().sort("n", descending=True).lazy().select(twice="n")

def joined_to(frame):
    other = pl.LazyFrame({"n": range(40)}).select(pl.col("n").reverse())
    return other.join(frame, on="n", how="left", maintain_order="left").select(twice="n")

def objects(frame):
    return frame.select(o=pl.col("n").map_elements(lambda n: object(), return_dtype=pl.Object))

def counted(frame):
    return frame.select(twice=pl.lit(0)).map_batches(lambda rows: rows)
"""
FILES, ROWS = 3, 40


def frame(start: int) -> pl.DataFrame:
    numbers = range(start, start + ROWS)
    return pl.DataFrame(
        {
            "n": numbers,
            "text": [None if n % 7 == 0 else f"row {n}" for n in numbers],
            "list": [list(range(n % 4)) for n in numbers],
            "when": pl.Series(list(numbers), dtype=pl.Datetime("us", "Europe/Berlin")),
        },
        schema_overrides={"n": pl.Int64},
    )


WHOLE = pl.concat([frame(number * ROWS) for number in range(FILES)])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(FILES):
        path = small.root / "in" / f"{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        # Several row groups, of different numbers of rows.
        write(path, frame(number * ROWS).to_arrow(), [15, 5, 20])
    return small


def write(path: Path, table: pa.Table, groups: Sequence[int], **options: Any) -> None:
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        start = 0
        for rows in groups:
            writer.write_table(table.slice(start, rows), row_group_size=max(1, rows))
            start += rows


def published(small: Small) -> list[Path]:
    return sorted((small.root / "out").rglob("*.parquet"))


def keep(small: Small, function: str, **output: Any) -> pl.DataFrame:
    """Run a job that keeps columns; return what it has published."""
    job = small.job(function, output={"keep": "all"} | output)
    small.run(job)
    checked = verify_output(small.storage, small.output)
    assert checked.problems == ()
    return small.rows()


def ledger(small: Small) -> Ledger:
    [run] = (small.root / "out.chunkmap" / "runs").iterdir()
    return Ledger(small.storage, small.output, run.name)


def completions(small: Small) -> pl.DataFrame:
    return ledger(small).read().completions


def test_columns_are_added(small: Small) -> None:
    out = keep(small, "doubled")
    assert_frame_equal(out, WHOLE.with_columns(twice=pl.col("n") * 2))
    for path, source in zip(published(small), sorted((small.root / "in").iterdir()), strict=True):
        data, old = path.read_bytes(), source.read_bytes()
        end = len(old) - 8 - int.from_bytes(old[-8:-4], "little")
        assert data[:end] == old[:end]
    done = completions(small)
    assert done["rewritten"].to_list() == [""] * FILES
    assert (done["copied"] > 0).all()
    assert (done["bytes_out"] > done["copied"]).all()


def test_every_reader_reads_them(small: Small) -> None:
    keep(small, "doubled")
    expected = WHOLE.with_columns(twice=pl.col("n") * 2)
    paths = [str(path) for path in published(small)]
    by_arrow = pl.concat([pl.DataFrame(pl.from_arrow(pq.read_table(path))) for path in paths])
    assert_frame_equal(by_arrow, expected)
    by_duckdb = duckdb.read_parquet(paths).order("n").pl()
    assert by_duckdb["twice"].to_list() == expected["twice"].to_list()
    assert by_duckdb["list"].to_list() == expected["list"].to_list()
    scan = pl.scan_parquet(paths).filter(pl.col("n") >= 100)
    assert_frame_equal(scan.collect(engine="streaming"), expected.filter(pl.col("n") >= 100))


def test_a_column_is_replaced_at_its_place(small: Small) -> None:
    out = keep(small, "replaced", max_garbage="100%")
    assert out.columns == ["n", "text", "list", "when", "size"]
    upper = pl.col("text").str.to_uppercase()
    assert_frame_equal(out, WHOLE.with_columns(upper, size=pl.col("text").str.len_chars()))
    assert set(completions(small)["rewritten"]) == {""}


def test_a_file_with_much_garbage_is_rewritten(small: Small) -> None:
    out = keep(small, "replaced", max_garbage="1%")
    upper = pl.col("text").str.to_uppercase()
    assert_frame_equal(out, WHOLE.with_columns(upper, size=pl.col("text").str.len_chars()))
    done = completions(small)
    assert done["copied"].to_list() == [0] * FILES
    assert "max_garbage" in done["rewritten"][0]


def test_a_row_group_that_is_too_large_is_rewritten(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runs.worker.keep.MAX_GROUP_ROWS", 19)
    out = keep(small, "doubled")
    assert_frame_equal(out, WHOLE.with_columns(twice=pl.col("n") * 2))
    assert "row group of 20 rows" in completions(small)["rewritten"][0]


def test_a_file_whose_first_column_is_replaced_is_rewritten(small: Small) -> None:
    out = keep(small, "first_replaced", max_garbage="100%")
    assert_frame_equal(out, WHOLE.with_columns(pl.col("n") + 1))
    assert "first column" in completions(small)["rewritten"][0]


def test_columns_are_dropped_and_renamed(small: Small) -> None:
    out = keep(small, "nothing", keep=["n", "when", "list"], rename={"when": "at"},
               max_garbage="100%")  # fmt: skip
    assert_frame_equal(out, WHOLE.select("n", "list", pl.col("when").alias("at")))
    assert set(completions(small)["rewritten"]) == {""}


def test_files_of_different_types(small: Small) -> None:
    """One whose column has another type is rewritten in the dataset's."""
    odd = frame(1000).with_columns(pl.col("n").cast(pl.Int32))
    odd.write_parquet(small.root / "in" / "9.parquet")
    job = small.job("doubled", output={"keep": "all"})
    small.run(job.model_copy(update={"input": job.input.model_copy(update={"schema_": "union"})}))
    assert_frame_equal(
        small.rows(), pl.concat([WHOLE, frame(1000)]).with_columns(twice=pl.col("n") * 2)
    )
    reasons = completions(small).sort("index")["rewritten"].to_list()
    assert reasons[:FILES] == [""] * FILES
    assert "Int32" in reasons[FILES]


def test_types_that_readers_take_for_different_ones(small: Small) -> None:
    for path in (small.root / "in").iterdir():
        path.unlink()
    path = small.root / "in" / "0.parquet"
    write(path, frame(0).to_arrow(), [ROWS], use_deprecated_int96_timestamps=True)
    keep(small, "doubled")
    assert "'when'" in completions(small)["rewritten"][0]


def test_row_groups_without_rows(small: Small) -> None:
    """They part a file into several fragments."""
    write(small.root / "in" / "1.parquet", frame(ROWS).to_arrow(), [0, 15, 0, 25, 0])
    out = keep(small, "doubled")
    assert_frame_equal(out, WHOLE.with_columns(twice=pl.col("n") * 2))
    assert set(completions(small)["rewritten"]) == {""}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("everything", "nothing would be kept"),
        ("some_rows", "FILTER"),
        ("in_order", "SORT"),
        ("counted", "OPAQUE_PYTHON"),
        ("reversed_rows", "REVERSE"),
        ("other_frame", "another frame"),
        ("collected", "another frame"),
        ("joined_to", "another frame"),
    ],
)
def test_other_rows_are_refused_before_the_run(small: Small, function: str, reason: str) -> None:
    with pytest.raises(JobError, match=reason):
        small.run(small.job(function, output={"keep": "all"}))
    assert not published(small)


@pytest.mark.parametrize("function", ["hidden_rows", "looked_up_twice"])
def test_another_number_of_rows_is_refused(small: Small, function: str) -> None:
    with pytest.raises(RunIncompleteError):
        small.run(small.job(function, output={"keep": "all"}))
    assert "rows for 40 rows" in ledger(small).read().failures["message"][0]
    assert not published(small)


def test_python_objects_are_refused(small: Small) -> None:
    with pytest.raises(RunIncompleteError):
        small.run(small.job("objects", output={"keep": "all"}))
    assert "Python objects" in ledger(small).read().failures["message"][0]


def test_joins_must_keep_the_order(small: Small) -> None:
    job = small.job("looked_up", output={"keep": "all"}, params={"order": "none"})
    with pytest.raises(JobError, match="maintain_order"):
        small.run(job)
    small.run(job.model_copy(update={"params": {"order": "left"}}))
    assert small.rows()["name"].drop_nulls().to_list() == ["one", "two"]


def test_a_source_that_is_replaced_fails_the_chunk(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small.job("doubled", output={"keep": "all"})
    from pipeline.runs.worker import keep as kept

    staged = kept.stage_file

    def replacing(storage: Any, file: Any, *rest: Any, **more: Any) -> Any:
        if file is not None and file.info.uri.endswith("1.parquet"):
            frame(500).write_parquet(small.root / "in" / "1.parquet")
        return staged(storage, file, *rest, **more)

    monkeypatch.setattr("pipeline.runs.worker.chunk.stage_file", replacing)
    with pytest.raises(RunIncompleteError):
        small.run(job)
    assert ledger(small).read().failures["error"].to_list() == [ObjectChangedError.__name__]
    assert not published(small)


def test_checks_look_into_kept_columns(small: Small) -> None:
    unique = {"run": [{"check": "unique", "columns": ["n"]}]}
    small.run(small.job("doubled", output={"keep": "all"}, checks=unique))
    null = {"run": [{"check": "not_null", "columns": ["text"]}]}
    with pytest.raises(ChecksFailedError):
        small.run(small.job("doubled", mode="overwrite", output={"keep": "all"}, checks=null))


def test_hive_columns_stay_in_the_keys(small: Small) -> None:
    for path in (small.root / "in").iterdir():
        path.unlink()
    small.write("day=1/a.parquet", frame(0))
    small.write("day=2/a.parquet", frame(ROWS))
    out = keep(small, "doubled", mode="overwrite-partitions")
    assert out["day"].unique().sort().to_list() == [1, 2]
    assert [path.parent.name for path in published(small)] == ["day=1", "day=2"]
    with pytest.raises(JobError, match="is in the keys of the files"):
        plan_input(small.job("doubled", output={"keep": ["day"]}), small.settings, small.storage)


@pytest.mark.parametrize(
    ("output", "more", "reason"),
    [
        ({"keep": "all", "sort_by": ["n"]}, {}, "sort_by"),
        ({"keep": "all", "file_bytes": "1MiB"}, {}, "file_bytes"),
        ({"rename": {"n": "m"}}, {}, "needs `keep`"),
        ({"keep": ["n"], "rename": {"m": "k"}}, {}, "not among"),
        ({"keep": ["n", "m"], "rename": {"m": "k", "n": "k"}}, {}, "two columns"),
        ({"keep": "all"}, {"input": {"uri": "s3://b/in/", "filter": [["n", ">", 1]]}}, "filter"),
        ({"keep": "all"}, {"reduce": {"combine": "a.b:c"}}, "reduce"),
        ({"keep": "all", "max_garbage": "much"}, {}, "share"),
    ],
)
def test_contradictions_are_refused(
    small: Small, output: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        small.job("doubled", output=output, **more)


def test_an_unknown_column_is_refused(small: Small) -> None:
    with pytest.raises(JobError, match="'m' is not in the input; files have n, text, list, when"):
        small.run(small.job("doubled", output={"keep": ["m"]}))


def test_both_ways_are_compared(small: Small) -> None:
    job = small.job("doubled", output={"keep": "all"})
    ways = try_transform(job, small.settings, small.storage, 3).ways
    assert ways is not None
    assert (ways.kept, ways.reason, ways.differs) == (4, "", None)
    assert ways.copied + ways.added > 0
    plain = small.job("doubled")
    assert try_transform(plain, small.settings, small.storage, 3).ways is None
    first = small.job("first_replaced", output={"keep": "all"})
    ways = try_transform(first, small.settings, small.storage, 3).ways
    assert ways is not None
    assert "first column" in ways.reason
    assert not published(small)
