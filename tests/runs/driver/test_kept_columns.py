"""Outputs that keep columns of the input's files as their bytes are."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal
from pyarrow.parquet import encryption
from pydantic import ValidationError

from partitioning import PlanningError
from pipeline.errors import ChecksFailedError, JobError, ObjectChangedError
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.dry_run import try_transform
from pipeline.runs.driver.plan import plan_input
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.ledger import Ledger
from tests.support.small import Small

CODE = """
import polars as pl
import polars.selectors as cs

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

def shares(frame):
    n = pl.col("n")
    return frame.select(
        share=n - n.sum(),
        running=n.cum_sum(),
        before=n.shift(1),
        rank=n.rank(descending=True),
        mates=pl.len().over(n % 7),
        python=n.map_batches(lambda values: values * 2, return_dtype=pl.Int64),
        kind=pl.col("text").cast(pl.Categorical),
        pair=pl.struct("n", "text"),
        none=pl.lit(None),
    )

def big(frame):
    return frame.select(big=pl.col("n").cast(pl.Int128))

def dated(frame):
    return frame.select(day=pl.col("when").dt.date())

def dates_within(frame):
    return frame.select(pair=pl.struct("n", days=pl.concat_list(pl.col("when"))))

def odd(frame):
    return frame.select((pl.col("a.b") + 1).alias("x.y"), cs.by_name("^k$").alias("*"),
                        pl.col("it's") * 2)

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


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even small files are read and encoded in batches, as large ones are."""
    for module in ("chunk", "chunk_source"):
        monkeypatch.setattr(f"pipeline.runs.worker.{module}.engine_for", lambda size: "streaming")
    monkeypatch.setattr("pipeline.runs.worker.chunk_source.STEP_BYTES", 1)


def test_values_of_the_whole_file_in_batches(small: Small, in_batches: None) -> None:
    """What aggregates sees all rows of the file, though they come in parts."""
    out = keep(small, "shares")
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    for number in range(FILES):
        part = out[number * ROWS : (number + 1) * ROWS]
        whole = frame(number * ROWS)
        added = scope["shares"](whole.lazy()).collect()
        assert_frame_equal(part, whole.hstack(added), categorical_as_str=True)
    assert (completions(small)["copied"] > 0).all()
    small.run(small.job("nothing", output={"keep": "all"}, mode="overwrite"))
    assert_frame_equal(small.rows(), WHOLE)
    small.run(small.job("first_replaced", output={"keep": "all"}, mode="overwrite"))
    assert_frame_equal(small.rows(), WHOLE.with_columns(pl.col("n") + 1))


@pytest.mark.parametrize("function", ["hidden_rows", "looked_up_twice"])
def test_another_number_of_rows_in_batches(small: Small, in_batches: None, function: str) -> None:
    with pytest.raises(RunIncompleteError):
        small.run(small.job(function, output={"keep": "all"}))
    assert "rows for 40 rows" in ledger(small).read().failures["message"][0]
    assert not published(small)


def test_names_of_every_odd_character(small: Small) -> None:
    names = ["a.b", "it's", '"q"', "*", "^k$", " ", "a\nb", "ü☃", "%41", "new.a"]
    source = pl.DataFrame({name: pl.Series(range(40)) + at for at, name in enumerate(names)})
    for path in (small.root / "in").iterdir():
        path.unlink()
    source.write_parquet(small.root / "in" / "0.parquet", row_group_size=15)
    rename = {"a.b": " ", " ": "a.b", '"q"': "a.b.c", "%41": "FILTER [x]"}
    out = keep(small, "odd", rename=rename, max_garbage="100%")
    replaced = source.with_columns(source["it's"] * 2, source["^k$"].alias("*"))
    expected = replaced.rename(rename).with_columns((source["a.b"] + 1).alias("x.y"))
    assert_frame_equal(out, expected)
    assert completions(small)["rewritten"].to_list() == [""]
    [path] = published(small)
    assert pq.read_table(path).to_pydict() == expected.to_dict(as_series=False)
    assert duckdb.read_parquet(str(path)).pl().equals(expected)


class Keys(encryption.KmsClient):  # type: ignore[misc]
    """Encrypts nothing: pyarrow wants a service that keeps keys."""

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64decode(key)


@pytest.mark.parametrize("plaintext", [False, True], ids=["all", "columns alone"])
def test_encrypted_files_are_refused_before_the_run(small: Small, *, plaintext: bool) -> None:
    config = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plaintext
    )
    factory = encryption.CryptoFactory(lambda connection: Keys())
    made = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    path = small.root / "in" / "1.parquet"
    write(path, frame(ROWS).to_arrow(), [ROWS], encryption_properties=made)
    with pytest.raises(PlanningError, match="encrypted"):
        plan_input(small.job("doubled", output={"keep": "all"}), small.settings, small.storage)


def test_columns_are_renamed_alone(small: Small) -> None:
    """Nothing is decoded: the bytes of all columns stay, and only the footer is written."""
    out = keep(small, "nothing", rename={"n": "text", "text": "n"})
    assert_frame_equal(out, WHOLE.rename({"n": "text", "text": "n"}))
    assert set(completions(small)["rewritten"]) == {""}


def test_files_without_rows_have_no_file(small: Small) -> None:
    write(small.root / "in" / "8.parquet", frame(0)[:0].to_arrow(), [])
    write(small.root / "in" / "9.parquet", frame(0)[:0].to_arrow(), [0, 0])
    out = keep(small, "doubled")
    assert_frame_equal(out, WHOLE.with_columns(twice=pl.col("n") * 2))
    assert len(published(small)) == FILES


def test_a_type_that_cannot_be_written_is_refused(small: Small) -> None:
    with pytest.raises(JobError, match="new column 'big' is Int128") as caught:
        plan_input(small.job("big", output={"keep": "all"}), small.settings, small.storage)
    assert "pl.col('big').cast(pl.Int64)" in str(caught.value.hint)


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


@pytest.mark.parametrize(
    ("function", "reason"),
    [("doubled", ""), ("dated", "old calendar"), ("dates_within", "old calendar")],
)
def test_new_dates_in_files_of_spark_2(small: Small, function: str, reason: str) -> None:
    """Spark would take them for ones of the calendar before 1582, as those of the file are."""
    for number in range(FILES):
        table = frame(number * ROWS).to_arrow()
        marked = table.replace_schema_metadata({"org.apache.spark.version": "2.4.8"})
        write(small.root / "in" / f"{number}.parquet", marked, [ROWS])
    out = keep(small, function)
    assert_frame_equal(out.select(WHOLE.columns), WHOLE)
    for found in completions(small)["rewritten"]:
        assert reason in found and bool(found) == bool(reason)


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
    with pytest.raises(JobError, match="Python objects"):
        plan_input(small.job("objects", output={"keep": "all"}), small.settings, small.storage)


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
