"""Jobs that map, reduce and map again: `then` over the groups of the reduced result."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline.config.job import Job, parse_job
from pipeline.errors import (
    ChecksFailedError,
    ConflictError,
    GroupsFailedError,
    JobError,
    RunCancelledError,
    SchemaChangedError,
    TransformError,
    TransformNotAllowedError,
    UsageError,
)
from pipeline.runs.admin.vacuum import discard_run, vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.debug import DebugChunk, find_chunk, user_traceback
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.driver.then_stage import pieces_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker import groups
from tests.support.small import Small

CODE = """
import polars as pl

def partial(lf):
    return lf.group_by("k", "g").agg(n=pl.col("n").sum())

def combine(frames):
    return pl.concat(frames).group_by("k", "g").agg(pl.col("n").sum())

def ordered(lf):
    return lf.sort("k", "g")

def rows(lf):
    return lf

def joined(frames):
    return pl.concat(frames)

def none(lf):
    return lf.filter(pl.lit(False))

def share(lf, bad=()):
    frame = lf.collect()
    if frame["k"][0] in bad:
        raise ValueError(f"nothing to share in {frame['k'][0]}")
    return frame.lazy().with_columns(share=pl.col("n") / pl.col("n").sum())

def sometimes(lf):
    frame = lf.collect()
    return frame.with_columns(v=pl.lit(None if frame["k"][0] != 3 else 1.5)).lazy()

def single(lf):
    [row] = lf.collect().iter_rows(named=True)
    return pl.LazyFrame([row, row] if row["k"] == 3 else [row])

def odd(lf):
    frame = lf.collect()
    return (frame if frame["k"][0] != 3 else frame.rename({"n": "m"})).lazy()
"""
FILES, ROWS = 4, 60
WHOLE = pl.DataFrame({"n": range(FILES * ROWS)}).with_columns(
    k=pl.when(pl.col("n") % 11 != 5).then(pl.col("n") % 7), g=(pl.col("n") % 5).cast(pl.String)
)
KEYS = 8
"""Number of groups: seven values of `k`, and null."""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(FILES):
        small.write(f"{number}.parquet", WHOLE[number * ROWS : (number + 1) * ROWS])
    return small


def job_of(small: Small, function: str = "share", **more: Any) -> Job:
    then: Any = {"function": f"{small.module}:{function}", "by": ["k"], "max_groups": 3}
    reduce = {"combine": f"{small.module}:combine", "finalize": f"{small.module}:ordered"}
    reduce |= more.pop("reduce", {})
    changes = more.pop("then", {})
    then = changes if isinstance(changes, str) else then | changes
    return small.job("partial", **{"mode": "error", "reduce": reduce, "then": then, **more})


def oracle(whole: pl.DataFrame = WHOLE) -> pl.DataFrame:
    """What the job comes to, as a plain loop computes it."""
    reduced = whole.group_by("k", "g").agg(pl.col("n").sum()).sort("k", "g")
    parts = [
        part.with_columns(share=pl.col("n") / pl.col("n").sum())
        for part in reduced.partition_by("k", maintain_order=True)
    ]
    return pl.concat(parts)


def files(small: Small) -> list[pl.DataFrame]:
    paths = sorted((small.root / "out").rglob("*.parquet"))
    return [pl.read_parquet(path) for path in paths]


def test_map_aggregate_map(small: Small) -> None:
    summary = small.run(job_of(small))
    assert summary.then is not None
    assert (summary.then.pieces, summary.then.done, summary.then.failed) == (3, 3, 0)
    assert summary.rows_out == summary.then.rows_out == oracle().height
    assert [part["k"].n_unique() for part in files(small)] == [3, 3, 2]
    assert_frame_equal(pl.concat(files(small)), oracle())
    assert [name for name, _ in summary.phases] == [
        "plan",
        "map",
        "reduce",
        "then",
        "publish",
        "report",
    ]
    assert not verify_output(small.storage, small.output).problems
    left = [path.name for path in Path(f"{small.root}/out.chunkmap").rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith(".parquet")], "pieces are deleted at the end"
    again = small.run(job_of(small))
    assert again.mapped == 0 and again.then == summary.then


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.none() | st.integers(0, 5), st.sampled_from("abc")),
        max_size=60,
    ),
    st.none() | st.integers(1, 4),
    st.sampled_from([["k"], ["k", "g"], ["g"]]),
)
def test_any_rows_in_any_groups(
    small: Small, rows: list[Any], limit: int | None, by: list[str]
) -> None:
    """Each row of the result is that of a plain loop, and a group is in one file."""
    for folder in ("in", "out", "out.chunkmap"):
        shutil.rmtree(small.root / folder, ignore_errors=True)
    schema = {"n": pl.Int64, "k": pl.Int64, "g": pl.String}
    whole = pl.DataFrame(rows, schema=schema, orient="row")
    for number in range(3):
        small.write(f"{number}.parquet", whole[number::3])
    small.run(job_of(small, then={"by": by, "max_groups": limit}))
    reduced = whole.group_by("k", "g").agg(pl.col("n").sum()).sort("k", "g")
    total = pl.col("n").sum().over(by)
    expected = reduced.with_columns(share=pl.col("n") / total)
    found = files(small)
    if not rows:
        assert not found
        return
    assert_frame_equal(pl.concat(found).sort("k", "g"), expected)
    keys = pl.concat([part.select(by).unique() for part in found])
    assert keys.height == keys.unique().height
    assert limit is None or all(part.select(by).n_unique() <= limit for part in found)


def test_each_row_is_a_group_without_columns(small: Small) -> None:
    """`then: module:function`; rows are whole, and keep the order of the reduced result."""
    summary = small.run(job_of(small, then=f"{small.module}:single"))
    reduced = oracle().drop("share")
    twice = pl.concat([reduced, reduced.filter(pl.col("k") == 3)]).sort("k", "g")
    assert_frame_equal(pl.concat(files(small)), twice)
    assert summary.then is not None and summary.then.pieces == reduced.height
    with pytest.raises(RunIncompleteError) as raised:
        small.run(job_of(small, mode="overwrite", then={"by": [], "params": {"bad": [3]}}))
    assert "(group k=3, g='0', n=" in raised.value.summary.errors[0]


def test_folders_of_the_output_are_no_columns_of_the_groups(small: Small) -> None:
    uri = f"file://{small.root}/k=eu/out/"
    small.run(job_of(small, output={"uri": uri}))
    paths = sorted((small.root / "k=eu" / "out").rglob("*.parquet"))
    frames = [pl.read_parquet(path, hive_partitioning=False) for path in paths]
    assert_frame_equal(pl.concat(frames), oracle())


def test_a_failed_group_is_named_with_the_users_traceback(small: Small) -> None:
    with pytest.raises(RunIncompleteError, match="1 of 3 pieces of groups failed") as raised:
        small.run(job_of(small, then={"params": {"bad": [3]}}))
    summary = raised.value.summary
    assert summary.manifest is None and not (small.root / "out").exists()
    assert summary.then is not None and summary.then.done == 2
    [error] = summary.errors
    assert "raised ValueError: nothing to share in 3 (group k=3)" in error
    assert "e.g. piece 1: group k=3, 1 of the 3 in its piece" in error
    assert f"{small.module}.py" in error and "in share" in error
    assert raised.value.hint is not None and "--debug-piece N" in raised.value.hint
    ledger = small.ledger(summary)
    pieces = pieces_of(ledger, ledger.read())
    assert pieces is not None
    assert pieces.progress.failures["trace"][0].startswith("Your code (most recent call last):")
    with pytest.raises(UsageError, match="1 of 3 pieces are not mapped"):
        publish_run(small.storage, ledger, without_failed=True)


def test_a_piece_is_debugged_in_this_process(small: Small) -> None:
    """It is mapped as on a worker; a debugger gets the group that fails."""
    with pytest.raises(RunIncompleteError) as raised:
        small.run(job_of(small, then={"params": {"bad": [3]}}))
    ledger = small.ledger(raised.value.summary)
    pieces = pieces_of(ledger, ledger.read())
    assert pieces is not None
    own = pieces.ledger

    def found(index: int) -> DebugChunk:
        return find_chunk(own.job(), small.settings, small.storage, index, own)

    [whole] = found(0).map().values()
    assert_frame_equal(whole, oracle()[: found(0).chunk.rows])
    with pytest.raises(GroupsFailedError) as failed:
        found(1).map()
    trace = user_traceback(failed.value, small.settings.transforms.allowed)
    assert [frame.name for frame in traceback.extract_tb(trace)][-1] == "share"
    stepped = []
    found(1).step(lambda function, frame: stepped.append(frame.collect()["k"].unique().to_list()))
    assert stepped == [[3]]
    with pytest.raises(UsageError, match="there is no piece 3: the plan has 3, from 0 to 2"):
        found(3)


def test_too_many_failed_pieces_stop_the_run(small: Small) -> None:
    then = {"params": {"bad": [None, 1, 3, 6]}, "max_groups": 1}
    with pytest.raises(RunIncompleteError) as raised:
        small.run(job_of(small, then=then, max_failures=1))
    summary = raised.value.summary
    assert any("pieces failed, and max_failures is 1" in note for note in summary.notes)
    assert summary.failed == 0 and summary.then is not None and summary.then.failed > 1


def test_a_run_is_cancelled_while_groups_are_mapped(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runs.driver.run.CANCEL_SECONDS", 0.0)
    cancelling = f"""
import glob, pathlib

def cancelling(lf):
    [run] = glob.glob("{small.root}/out.chunkmap/runs/*/")
    if not pathlib.Path("{small.root}/cancelled").exists():
        pathlib.Path("{small.root}/cancelled").touch()
        pathlib.Path(run, "cancel.json").write_text("{{}}")
    return share(lf)
"""
    small.code(CODE + cancelling)
    job = job_of(small, "cancelling", then={"max_groups": 1})
    with pytest.raises(RunCancelledError):
        small.run(job)
    assert not (small.root / "out").exists()
    summary = small.run(job)
    assert summary.mapped == 0
    assert_frame_equal(pl.concat(files(small)), oracle())


def test_changed_code_is_told_and_only_failed_pieces_are_mapped_again(small: Small) -> None:
    broken = CODE.replace(
        "frame = lf.collect()", "frame = lf.collect(); 1 // (frame['k'][0] != 3)", 1
    )
    small.code(broken)
    with pytest.raises(RunIncompleteError) as raised:
        small.run(job_of(small))
    small.code(CODE)
    with pytest.raises(ConflictError, match="`share`"):
        small.run(job_of(small))
    summary = small.run(job_of(small), accept_code=True)
    assert summary.run == raised.value.summary.run and summary.mapped == 0
    assert_frame_equal(pl.concat(files(small)), oracle())
    ledger = small.ledger(summary)
    pieces = pieces_of(ledger, ledger.read())
    assert pieces is not None and pieces.ledger.number == 1
    assert pieces.progress.completions["code"].n_unique() == 2
    assert pieces.progress.duplicates.is_empty()


def test_retrying_what_failed_maps_pieces_that_never_began(small: Small) -> None:
    with pytest.raises(RunIncompleteError):
        small.run(job_of(small, then={"params": {"bad": [3]}}))
    job = job_of(small, then={"params": {"bad": [3]}})
    with pytest.raises(RunIncompleteError) as raised:
        small.run(job, only_failed=True)
    pieces = pieces_of(
        small.ledger(raised.value.summary), small.ledger(raised.value.summary).read()
    )
    assert pieces is not None
    assert pieces.progress.failures["index"].to_list() == [1, 1]


def test_other_groups_are_another_run(small: Small) -> None:
    first = small.run(job_of(small, mode="overwrite"))
    for then in ({"by": ["g"]}, {"max_groups": 1}, {"params": {"bad": [99]}}):
        assert small.run(job_of(small, mode="overwrite", then=then)).run != first.run
    assert small.run(job_of(small, mode="overwrite")).run == first.run


def test_types_survive(small: Small) -> None:
    """What `then` gets is what the reduce returned, whatever its types are."""
    typed = """
import polars as pl

SCHEMA = {
    "k": pl.Int64,
    "enum": pl.Enum(["b", "a"]),
    "category": pl.Categorical,
    "struct": pl.Struct({"x": pl.Int8, "y": pl.List(pl.String)}),
    "array": pl.Array(pl.Float32, 2),
    "decimal": pl.Decimal(20, 3),
    "time": pl.Time,
    "duration": pl.Duration("ms"),
    "at": pl.Datetime("ns", "Europe/Berlin"),
    "binary": pl.Binary,
    "u8": pl.UInt8,
    "wide": pl.Int128,
    "null": pl.Null,
}

def typed(lf):
    n = pl.col("n")
    return lf.select(
        k=pl.col("k"),
        enum=pl.when(n % 2 == 0).then(pl.lit("a")).otherwise(pl.lit("b")).cast(SCHEMA["enum"]),
        category=pl.col("g").cast(pl.Categorical),
        struct=pl.struct(x=(n % 3).cast(pl.Int8), y=pl.concat_list(pl.col("g"))),
        array=pl.concat_arr(n.cast(pl.Float32), n.cast(pl.Float32)),
        decimal=n.cast(SCHEMA["decimal"]),
        time=pl.time(1, 2, 3),
        duration=pl.duration(milliseconds=n).cast(SCHEMA["duration"]),
        at=pl.datetime(2024, 1, 1, time_unit="ns", time_zone="Europe/Berlin"),
        binary=pl.col("g").cast(pl.Binary),
        u8=(n % 200).cast(pl.UInt8),
        wide=n.cast(pl.Int128),
        null=pl.lit(None),
    )

def joined(frames):
    return pl.concat(frames)

def seen(lf):
    frame = lf.collect()
    assert dict(frame.schema) == SCHEMA, f"{dict(frame.schema)}"
    return frame.select("k", "u8", "decimal").lazy()
"""
    small.code(typed)
    said = {
        "reduce": {"combine": f"{small.module}:joined"},
        "then": {"function": f"{small.module}:seen", "by": ["k"]},
    }
    small.run(small.job("typed", mode="error", **said))
    expected = WHOLE.sort("k", maintain_order=True)["n"] % 200
    assert sorted(pl.concat(files(small))["u8"]) == sorted(expected)


def test_columns_that_are_null_in_one_piece_take_the_type_of_others(small: Small) -> None:
    small.run(job_of(small, "sometimes", then={"max_groups": 1}))
    assert {part.schema["v"] for part in files(small)} == {pl.Float64()}


def test_pieces_with_other_columns_are_refused(small: Small) -> None:
    with pytest.raises(SchemaChangedError, match=r"another schema on 1 pieces \(e.g. piece 4\)"):
        small.run(job_of(small, "odd", then={"max_groups": 1}))
    assert not (small.root / "out").exists()


def test_a_result_without_rows_publishes_no_file(small: Small) -> None:
    summary = small.run(job_of(small, reduce={"finalize": f"{small.module}:none"}))
    assert summary.manifest == 1 and summary.then is not None
    assert summary.then.pieces == 0
    assert not files(small)


def test_an_input_without_chunks_publishes_no_file(small: Small) -> None:
    source = {"uri": small.input, "filter": [["n", "<", 0]]}
    summary = small.run(job_of(small, input=source))
    assert summary.manifest == 1 and summary.then is None and not files(small)


def test_checks_are_of_the_result_of_the_groups(small: Small) -> None:
    checks = {
        "run": [
            {"check": "unique", "columns": ["k", "g"]},
            {"check": "row_count", "min": oracle().height, "max": oracle().height},
            {"check": "total", "column": "share", "expected": KEYS, "tolerance": 0.001},
        ]
    }
    small.run(job_of(small, checks=checks))
    ledger = small.ledger(small.run(job_of(small, checks=checks)))
    assert [result.outcome for result in ledger.check_results()] == ["passed"] * 3
    assert_frame_equal(pl.concat(files(small)), oracle())


def test_a_check_that_refuses_keeps_the_pieces(small: Small) -> None:
    checks = {"run": [{"check": "row_count", "max": 3}]}
    with pytest.raises(ChecksFailedError):
        small.run(job_of(small, checks=checks))
    assert not (small.root / "out").exists()
    checks["run"][0]["max"] = 1000
    summary = small.run(job_of(small, checks=checks))
    assert summary.mapped == 0
    assert_frame_equal(pl.concat(files(small)), oracle())


def test_files_are_sorted_as_the_output_says(small: Small) -> None:
    output = {"sort_by": ["n"], "row_group_rows": 2}
    small.run(job_of(small, output=output))
    assert all(part["n"].is_sorted() for part in files(small))


def test_objects_in_quarantine_are_published_with_the_groups(small: Small) -> None:
    (small.root / "in" / "bad.parquet").write_bytes(b"PAR1 is no Parquet PAR1")
    source = {"uri": small.input, "on_bad_object": "quarantine"}
    summary = small.run(job_of(small, input=source))
    assert summary.left_out == 1 and len(summary.quarantine) == 1
    assert_frame_equal(pl.concat(files(small)), oracle())
    assert verify_output(small.storage, small.output).left_out == 1


def test_a_function_reads_the_tables_that_the_job_names(small: Small) -> None:
    names = pl.DataFrame({"k": [0, 1, 2], "name": ["a", "b", "c"]})
    small.write("names.parquet", names, "tables")
    uri = f"file://{small.root}/tables/names.parquet"
    reading = f"""
from pipeline import read_table

def named(lf):
    return lf.join(read_table("{uri}").lazy(), on="k", how="left")
"""
    small.code(CODE + reading)
    small.run(job_of(small, "named", tables=[uri]))
    found = pl.concat(files(small))
    assert found.filter(pl.col("k") == 2)["name"].unique().to_list() == ["c"]


def test_a_run_that_was_discarded_is_done_again(small: Small) -> None:
    """Staged files, pieces and partial results are gone at once."""
    checks = {"run": [{"check": "row_count", "max": 3}]}
    with pytest.raises(ChecksFailedError):
        small.run(job_of(small, checks=checks))
    [run] = [path.name for path in (small.root / "out.chunkmap" / "runs").iterdir()]
    assert discard_run(small.storage, Ledger(small.storage, small.output, run)) == 3
    checks["run"][0]["max"] = 1000
    summary = small.run(job_of(small, checks=checks))
    assert summary.run == run
    assert_frame_equal(pl.concat(files(small)), oracle())
    ledger = small.ledger(summary)
    pieces = pieces_of(ledger, ledger.read())
    assert pieces is not None and pieces.ledger.number == 2
    vacuum(small.storage, small.output, older_than=0.0)
    assert_frame_equal(pl.concat(files(small)), oracle())


@pytest.mark.parametrize(
    ("then", "error", "message"),
    [
        ({"by": ["kk"]}, TransformError, r"no column 'kk' \(then.by\); did you mean 'k'\?"),
        ({"params": {"bat": [1]}}, JobError, "cannot be called with the frame and params"),
        ({"function": "json:loads"}, TransformNotAllowedError, "is not allowed"),
    ],
)
def test_what_cannot_be_mapped_is_refused(
    small: Small, then: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small.run(job_of(small, then=then))
    assert not (small.root / "out").exists()


def test_too_many_pieces_are_refused(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MAX_PIECES", 7)
    with pytest.raises(TransformError, match=r"8 groups .*would be 8 pieces, more than 7"):
        small.run(job_of(small, then={"max_groups": 1}))


BASE = """
name: x
input: {uri: s3://in/t/}
transform: own.module:map
output: {uri: s3://out/t/}
"""
REDUCE = "reduce: {combine: own.module:add}\n"
THEN = "then: {function: own.module:then, by: [k]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + THEN, "`then` needs `reduce`"),
        (BASE + REDUCE + "then: own\n", "not module:function"),
        (BASE + REDUCE + "then: {function: own.module:then, by: [k, k]}\n", "named twice"),
        (BASE + REDUCE + "then: {function: own, by: [k]}\n", "not module:function"),
        (BASE + REDUCE + THEN + "window: {column: ds}\n", "`window` and `reduce` exclude"),
        (
            BASE.replace("t/}\n", "t/}\n").replace("out/t/}", "out/t/, file_bytes: 1MiB}")
            + REDUCE
            + THEN,
            "with `then` each file has whole groups",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_job(text)


def test_a_job_survives_its_file() -> None:
    job = parse_job(BASE + REDUCE + THEN)
    assert parse_job(job.to_yaml()) == job
    assert job.then is not None and job.then.by == ("k",)
    short = parse_job(BASE + REDUCE + "then: own.module:then\n")
    assert parse_job(short.to_yaml()) == short
    assert short.then is not None and short.then.function == "own.module:then"
    assert short.then.by == ()
