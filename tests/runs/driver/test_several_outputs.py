"""Jobs with several outputs, from the job to what readers see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.cli.runs import cancel
from pipeline.config.job import Job, parse_job
from pipeline.errors import (
    ChunkmapError,
    ConflictError,
    JobError,
    OutputNotEmptyError,
    SchemaChangedError,
    UsageError,
)
from pipeline.runs.admin.status import list_runs
from pipeline.runs.admin.vacuum import discard_run, vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.listing import KnownRuns
from pipeline.runs.backfill.vacuum_state import vacuum_state
from pipeline.runs.driver import several_outputs
from pipeline.runs.driver.debug import find_chunk
from pipeline.runs.driver.dry_run import try_transform
from pipeline.runs.driver.job_changes import is_same_job
from pipeline.runs.driver.plan import ResumeOptions, plan_run
from pipeline.runs.driver.several_outputs import publish_several
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker.batch import Batch, map_batch
from pipeline.table import publish_outputs
from pipeline.table.log import TableLog
from pipeline.table.publish import rollback
from pipeline.table.scan import scan_output
from tests.support.faulty_storage import KilledError
from tests.support.small import Small

CODE = """
import polars as pl

def split(frame):
    even = pl.col("n") % 2 == 0
    odd = frame.filter(~even).select("n", half=pl.col("n") / 2)
    return {"even": frame.filter(even), "odd": odd}

def failing(frame):
    n = pl.col("n").map_elements(checked, pl.Int64)
    return {"even": frame.with_columns(n), "odd": frame}

def checked(n):
    if n != 5:
        return n
    raise ValueError(n)

def one(frame):
    return frame

def other_names(frame):
    return {"even": frame, "odds": frame}

def not_lazy(frame):
    return {"even": frame, "odd": 3}

def late(frame):
    return {"even": frame} if frame.collect().height else split(frame)

def nulls(frame):
    found = frame.collect()
    kind = pl.Null if found["n"].min() == 0 else pl.String
    return {"even": frame, "odd": frame.with_columns(note=pl.lit(None, kind))}

def texts(frame):
    found = frame.collect()
    kind = pl.Float64 if found["n"].min() == 0 else pl.Int64
    return {"even": frame, "odd": frame.with_columns(pl.col("n").cast(kind))}
"""
NAMES = ("even", "odd")
ROWS = 4


def numbers(start: int) -> pl.DataFrame:
    return pl.DataFrame({"n": range(start, start + ROWS)}, schema={"n": pl.Int64})


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(3):
        small.write(f"{number}.parquet", numbers(number * ROWS))
    return small


def uri(small: Small, name: str) -> str:
    return f"file://{small.root}/{name}/"


def job(small: Small, function: str = "split", mode: str = "error", **more: Any) -> Job:
    # As users write them: without a slash at the end.
    outputs = {name: {"uri": uri(small, name).rstrip("/"), "mode": mode} for name in NAMES}
    return Job.model_validate(
        {
            "name": "test",
            "input": {"uri": small.input},
            "chunks": {"per_file": True},
            "transform": f"{small.module}:{function}",
            "rounds": 1,
            "outputs": outputs,
        }
        | more
    )


def read(small: Small, name: str) -> pl.DataFrame:
    return scan_output(uri(small, name)).collect()


def published(small: Small) -> dict[str, list[int]]:
    return {name: sorted(read(small, name)["n"].to_list()) for name in NAMES}


def head(small: Small, name: str) -> int:
    return TableLog(small.storage, uri(small, name)).head()[0].current


def test_each_result_goes_to_its_output(small: Small) -> None:
    summary = small.run(job(small))
    whole = pl.concat(numbers(number * ROWS) for number in range(3))
    even = pl.col("n") % 2 == 0
    assert_frame_equal(read(small, "even"), whole.filter(even))
    assert_frame_equal(read(small, "odd"), whole.filter(~even).select("n", half=pl.col("n") / 2))
    assert summary.state == "done"
    assert (summary.rows_in, summary.rows_out) == (12, 12)
    assert [(o.name, o.output, o.manifest, o.rows) for o in summary.outputs] == [
        ("even", uri(small, "even"), 1, 6),
        ("odd", uri(small, "odd"), 1, 6),
    ]
    assert summary.bytes_out == sum(o.bytes for o in summary.outputs)
    for name in NAMES:
        found = verify_output(small.storage, uri(small, name))
        assert (found.problems, found.notes, found.files, found.rows) == ((), (), 3, 6)
        [run] = list_runs(small.storage, uri(small, name))
        assert (run.run, run.state, run.rows_out) == (summary.run, "done", 6)
        assert run.report == f"{uri(small, 'even').rstrip('/')}.chunkmap/runs/{run.run}/report.html"
        assert not vacuum(small.storage, uri(small, name), older_than=0.0).strays
    assert published(small) == {"even": [0, 2, 4, 6, 8, 10], "odd": [1, 3, 5, 7, 9, 11]}


@pytest.mark.usefixtures("drawn")
def test_its_report_has_the_files_of_all_outputs(small: Small) -> None:
    summary = small.run(job(small))
    prefix = Ledger(small.storage, uri(small, "even"), summary.run).prefix
    report = json.loads(small.storage.get(prefix + "report.json").data)
    assert report["run"]["output"] == ", ".join(uri(small, name) for name in NAMES)
    assert report["totals"]["rows_out"] == 12
    page = small.storage.get(prefix + "report.html").data.decode()
    assert uri(small, "odd") in page


def test_the_same_job_again_does_nothing(small: Small) -> None:
    first = small.run(job(small))
    again = small.run(job(small))
    assert (again.run, again.mapped, again.notes) == (first.run, 0, ())
    assert [head(small, name) for name in NAMES] == [1, 1]


def test_a_rolled_back_output_is_named(small: Small) -> None:
    small.run(job(small))
    rollback(TableLog(small.storage, uri(small, "odd")))
    [note] = small.run(job(small)).notes
    assert f"chunkmap rollback {uri(small, 'odd')} --to 1" in note


def test_a_failed_chunk_publishes_nothing_anywhere(small: Small) -> None:
    with pytest.raises(RunIncompleteError) as failed:
        small.run(job(small, "failing"))
    assert [head(small, name) for name in NAMES] == [0, 0]
    for name in NAMES:
        [run] = list_runs(small.storage, uri(small, name))
        assert (run.state, run.done, run.failed) == ("failed", 2, 1)
        assert vacuum(small.storage, uri(small, name), older_than=0.0).spared == (run.run,)
    small.code(CODE.replace("n != 5", "n != 500"))
    done = small.run(job(small, "failing"), accept_code=True)
    assert (done.run, done.mapped) == (failed.value.summary.run, 1)
    assert published(small) == {name: list(range(12)) for name in NAMES}


def test_appending_reads_what_is_new_for_all_outputs(small: Small) -> None:
    small.run(job(small, mode="append"))
    small.write("3.parquet", numbers(3 * ROWS))
    summary = small.run(job(small, mode="append"))
    assert summary.rows_in == ROWS
    assert published(small) == {"even": list(range(0, 16, 2)), "odd": list(range(1, 16, 2))}
    assert "already has all" in small.run(job(small, mode="append")).notes[0]


def test_a_run_is_not_published_over_a_newer_plan(small: Small) -> None:
    planned = plan_run(job(small, mode="append"), small.settings, small.storage, ResumeOptions())
    map_batch(planned.ledger.prefix, planned.fingerprint, Batch("by-hand", "0-3"))
    small.write("3.parquet", numbers(3 * ROWS))
    small.run(job(small, mode="append"), replan=True)
    with pytest.raises(ConflictError, match="3 objects"):
        publish_several(small.storage, planned.ledger)
    assert published(small) == {"even": list(range(0, 16, 2)), "odd": list(range(1, 16, 2))}


def test_a_newer_plan_that_is_published_before_the_claim(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_run(job(small, mode="append"), small.settings, small.storage, ResumeOptions())
    map_batch(planned.ledger.prefix, planned.fingerprint, Batch("by-hand", "0-3"))

    def publish_meanwhile(*args: Any) -> None:
        monkeypatch.setattr(several_outputs, "publish_outputs", publish_outputs.publish_outputs)
        small.write("3.parquet", numbers(3 * ROWS))
        small.run(job(small, mode="append"), replan=True)
        publish_outputs.publish_outputs(*args)

    monkeypatch.setattr(several_outputs, "publish_outputs", publish_meanwhile)
    with pytest.raises(ConflictError, match="3 objects"):
        publish_several(small.storage, planned.ledger)
    assert published(small) == {"even": list(range(0, 16, 2)), "odd": list(range(1, 16, 2))}


@pytest.mark.parametrize("name", NAMES)
def test_appending_to_outputs_with_other_runs_is_refused(small: Small, name: str) -> None:
    small.run(job(small, mode="append"))
    small.write("3.parquet", numbers(3 * ROWS))
    rollback(TableLog(small.storage, uri(small, name)))
    [other] = set(NAMES) - {name}
    with pytest.raises(UsageError, match=rf"/{other} has the rows of run .*/{name} lacks them"):
        small.run(job(small, mode="append"))
    rollback(TableLog(small.storage, uri(small, other)))


@pytest.mark.parametrize("name", NAMES)
def test_an_output_with_files_is_refused_before_anything_is_stored(small: Small, name: str) -> None:
    small.run(small.job("one", "error", output={"uri": uri(small, name)}))
    with pytest.raises(OutputNotEmptyError, match=uri(small, name)):
        small.run(job(small))
    [other] = set(NAMES) - {name}
    assert list_runs(small.storage, uri(small, other)) == []
    with pytest.raises(UsageError, match="this job has several"):
        small.run(job(small), rebuild=True)


def test_overwriting_replaces_both(small: Small) -> None:
    small.run(job(small, mode="overwrite"))
    small.write("0.parquet", numbers(100))
    small.run(job(small, mode="overwrite"))
    assert published(small)["odd"] == [5, 7, 9, 11, 101, 103]
    rollback(TableLog(small.storage, uri(small, "odd")))
    assert published(small)["odd"] == [1, 3, 5, 7, 9, 11]
    assert published(small)["even"] == [4, 6, 8, 10, 100, 102]


def test_columns_of_nulls_have_one_type_in_every_output(small: Small) -> None:
    small.run(job(small, "nulls"))
    assert read(small, "odd").schema["note"] == pl.String
    files = Path(small.root / "odd").rglob("*.parquet")
    assert {str(pl.read_parquet_schema(file)["note"]) for file in files} == {"String"}


def test_other_types_in_one_output_publish_nothing(small: Small) -> None:
    with pytest.raises(SchemaChangedError, match=rf"{uri(small, 'odd')}: .*n: Float64 / Int64"):
        small.run(job(small, "texts"))
    assert [head(small, name) for name in NAMES] == [0, 0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one", r"returned LazyFrame, not a dict with a LazyFrame for each .*\(even, odd\)"),
        ("other_names", "returned a dict with the keys even, odds, not a dict with a LazyFrame"),
        ("not_lazy", "returned int for odd, not a LazyFrame"),
    ],
)
def test_a_transform_that_returns_something_else(small: Small, function: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        small.run(job(small, function))
    assert not (small.root / "even.chunkmap").exists()


def test_a_transform_that_returns_something_else_for_some_data(small: Small) -> None:
    with pytest.raises(RunIncompleteError) as failed:
        small.run(job(small, "late"))
    assert "a dict with the keys even, not a dict" in failed.value.summary.errors[0]


def test_a_dict_for_one_output_names_the_key_of_the_job(small: Small) -> None:
    with pytest.raises(JobError, match=r"returned dict, not a LazyFrame; .*\(outputs\)"):
        small.run(small.job("split"))


def test_trying_and_debugging_show_all_outputs(small: Small) -> None:
    trial = try_transform(job(small), small.settings, small.storage, 2)
    assert (trial.rows_in, trial.rows_out, trial.rows_out_halves) == (4, 4, 4)
    assert trial.head["n"].to_list() == [0, 2]
    assert trial.further["odd"].to_dict(as_series=False) == {"n": [1, 3], "half": [0.5, 1.5]}
    assert trial.differs is None
    frames = find_chunk(job(small), small.settings, small.storage, 1).map()
    assert {name: frame["n"].to_list() for name, frame in frames.items()} == {
        "even": [4, 6],
        "odd": [5, 7],
    }


def test_a_run_is_found_from_each_output(small: Small) -> None:
    summary = small.run(job(small))
    for outputs in (["even"], ["odd"], ["even", "odd"]):
        runs = KnownRuns(small.storage, [uri(small, name) for name in outputs])
        for wanted in (summary.run[:6], "last"):
            assert runs.ledger(wanted).output == uri(small, "even")
            assert runs.find(wanted).state == "done"


def test_its_state_expires_at_each_output(small: Small) -> None:
    small.run(job(small, mode="overwrite"))
    for number in (1, 2):
        small.write("0.parquet", numbers(number * 100))
        small.run(job(small, mode="overwrite"))
    for name in NAMES:
        expired = vacuum_state(small.storage, uri(small, name), older_than=0.0, now=9e9)
        assert len(expired.runs) == 1
        assert verify_output(small.storage, uri(small, name)).problems == ()
    assert {run.state for run in list_runs(small.storage, uri(small, "odd"))} == {"expired", "done"}


def test_a_job_comes_back_from_its_file(small: Small) -> None:
    written = job(small)
    loaded = parse_job(written.to_yaml())
    assert loaded == written
    assert "\noutput:" not in written.to_yaml()
    assert is_same_job(loaded, written)
    alone = small.job("split", "error", output={"uri": uri(small, "even")})
    assert not is_same_job(alone, written)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"output": {"uri": "s3://b/c/"}}, "set `output` or `outputs`, not both"),
        ({"reduce": {"combine": "a:b"}}, "`outputs` and `reduce` exclude each other"),
        ({"window": {"column": "ds"}}, "`outputs` and `window` exclude each other"),
        ({"checks": {"run": [{"check": "row_count", "min": 1}]}}, "`outputs` and `checks` exclude"),
        (
            {
                "outputs": {
                    "a": {"uri": "s3://b/a/"},
                    "b": {"uri": "s3://b/b/", "file_bytes": "1MB"},
                }
            },
            r"outputs\.b\.file_bytes: the files of several outputs are not merged",
        ),
        (
            {"outputs": {"a": {"uri": "s3://b/a/"}, "b": {"uri": "s3://b/a/b/"}}},
            "outputs s3://b/a/ and s3://b/a/b/ lie within each other",
        ),
        (
            {"outputs": {"a": {"uri": "s3://b/a/", "mode": "append"}, "b": {"uri": "s3://b/b/"}}},
            "`append` must be the mode of all outputs or of none",
        ),
        ({"outputs": {"a b": {"uri": "s3://b/a/"}}}, "outputs"),
        ({"outputs": {"a": {"uri": "s3://b/a/", "mod": "error"}}}, r"outputs\.a\.mod"),
        ({"outputs": {}}, "output"),
    ],
)
def test_jobs_that_are_refused(more: dict[str, Any], message: str) -> None:
    values = {
        "name": "test",
        "input": {"uri": "s3://in/t/"},
        "transform": "a:b",
        "outputs": {"a": {"uri": "s3://b/a/"}, "b": {"uri": "s3://b/b/"}},
    }
    with pytest.raises(JobError, match=message):
        parse_job(json.dumps(values | more))


def test_outputs_that_lie_within_each_other_by_links_are_refused(small: Small) -> None:
    (small.root / "link").symlink_to(small.root / "even")
    inside = {"even": {"uri": uri(small, "even")}, "odd": {"uri": f"file://{small.root}/link/odd/"}}
    alias = {"even": inside["even"], "odd": {"uri": f"file://{small.root}/link"}}
    for outputs in (inside, alias):
        with pytest.raises(ChunkmapError, match="lie within each other"):
            small.run(job(small, outputs=outputs))
    assert list_runs(small.storage, uri(small, "even")) == []


def test_an_output_that_became_a_link_to_another_is_refused(small: Small) -> None:
    with pytest.raises(RunIncompleteError) as failed:
        small.run(job(small, "failing"))
    (small.root / "odd").symlink_to(small.root / "even")
    with pytest.raises(UsageError, match="lie within each other"):
        small.run(job(small, "failing"), run=failed.value.summary.run)
    assert not (small.root / "even").exists()


def test_a_link_is_no_new_output(small: Small) -> None:
    """Its state would lie beside the link, where nobody looks who names the folder."""
    (small.root / "even").mkdir()
    (small.root / "link").symlink_to("even")
    linked = {"even": {"uri": f"file://{small.root}/link/"}, "odd": {"uri": uri(small, "odd")}}
    alone = small.job("one", "error", output={"uri": f"{small.root}/link"})
    for refused in (job(small, outputs=linked), alone):
        with pytest.raises(
            UsageError, match=r"/link/ is a symbolic link to .*/even/, which"
        ) as said:
            small.run(refused)
        assert said.value.hint == f"name the folder itself: {uri(small, 'even')}"
    assert not (small.root / "link.chunkmap").exists()
    # A folder that was replaced by a link stays the output that it was.
    small.run(small.job("one", "append", output={"uri": uri(small, "moved")}))
    (small.root / "moved").rename(small.root / "elsewhere")
    (small.root / "moved").symlink_to("elsewhere")
    small.write("3.parquet", numbers(3 * ROWS))
    small.run(small.job("one", "append", output={"uri": uri(small, "moved")}))
    assert sorted(read(small, "moved")["n"].to_list()) == list(range(16))


def test_a_decided_run_is_published_rather_than_discarded(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = publish_outputs._finish

    def dies(parts: Any, decision: str) -> None:
        finish(parts[:1], decision)
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(publish_outputs, "_finish", dies)
        small.run(job(small))
    ledger = KnownRuns(small.storage, [uri(small, "even")]).ledger("last")
    with pytest.raises(
        UsageError, match=r"is published to .*/even/, .*/odd/: its driver had begun"
    ):
        cancel(ledger.run, uri(small, "odd"), None, discard=True, as_json=True)
    assert not ledger.is_cancelled()
    with pytest.raises(UsageError, match="is published to"):
        discard_run(small.storage, ledger)
    assert [len(rows) for rows in published(small).values()] == [6, 6]
    assert {verify_output(small.storage, uri(small, name)).problems for name in NAMES} == {()}
