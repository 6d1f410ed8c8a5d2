"""Whole runs through the serial engine, held against plain Polars."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from partitioning import PlanRequest, plan_dataset
from pipeline.config.job import Input, Job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import (
    ConflictError,
    InputError,
    OutputNotEmptyError,
    RunFailedError,
    SchemaChangedError,
)
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.publish import PUBLISH_ATTEMPTS
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError, RunSummary
from pipeline.runs.ledger.find import runs_of
from pipeline.runs.ledger.keys import refuse_long_keys
from pipeline.runs.ledger.ledger import Ledger
from pipeline.storage import Storage, StorageReader, own_storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.table.errors import FilesMissingError, UploadsVanishedError
from pipeline.table.log import TableLog
from tests.support import plain
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import parquet

TRANSFORM = """
import os
from pathlib import Path
import polars as pl

def double(frame):
    return frame.select("id", twice=pl.col("value") * 2)

def odd(frame):
    return frame.filter(pl.col("id") % 2 == 1)

def total(frame):
    return frame.select(pl.col("value").sum(), pl.len().alias("rows"))

def nothing(frame):
    return frame.filter(pl.lit(False))

def fails(frame, index):
    def check(series):
        if not Path(os.environ["FIXED"]).exists() and (series == index).any():
            raise ValueError(f"cannot do {index}")
        return series
    return frame.with_columns(pl.col("id").map_batches(check, return_dtype=pl.Int64))

def mixed(frame):
    big = frame.select(pl.col("id").max()).collect().item() > 50
    return frame.with_columns(pl.col("value").cast(pl.Float32 if big else pl.Float64))
"""


class World:
    """A folder with settings, a transform, an input of ten files, and room for outputs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.module = f"transforms_{uuid.uuid4().hex[:8]}"
        (root / f"{self.module}.py").write_text(TRANSFORM)
        (root / "conf").mkdir()
        (root / "conf" / "base.yaml").write_text(f"transforms: {{allow: [{self.module}]}}\n")
        for number in range(10):
            self.write(number)

    def write(self, number: int, start: int | None = None) -> None:
        start = number * 10 if start is None else start
        path = self.root / "in" / f"day={number % 2 + 1}" / f"{number:02d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = pl.int_range(start, start + 10, eager=True)
        pl.DataFrame({"id": ids, "value": ids / 4}).write_parquet(path, row_group_size=4)

    @property
    def output(self) -> Path:
        return self.root / "out"

    def job(self, function: str = "double", **more: Any) -> Job:
        said: dict[str, Any] = {
            "name": "test",
            "input": {"uri": f"file://{self.root}/in/"},
            "transform": f"{self.module}:{function}",
            "chunks": {"per_file": True},
            "output": {"uri": f"file://{self.output}/"},
            "rounds": 1,
        }
        return Job.model_validate(said | more)

    def settings(self) -> Settings:
        return load_settings(overrides={"state_dir": str(self.root / ".chunkmap")})

    @property
    def storage(self) -> Storage:
        return own_storage()

    def run(self, job: Job, resume: ResumeOptions | None = None) -> RunSummary:
        return run_serially(job, self.settings(), self.storage, resume)

    def chunks(self) -> list[pl.DataFrame]:
        """The input file by file, in the plan's order, with its Hive column."""
        paths = sorted(self.root.glob("in/*/*.parquet"))
        hive = {"day": pl.Int64()}
        return [plain.with_hive(pl.read_parquet(path), str(path), hive) for path in paths]

    def ledger(self, summary: RunSummary) -> Ledger:
        return Ledger(self.storage, f"file://{self.output}/", summary.run)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIXED", str(tmp_path / "fixed"))
    yield World(tmp_path)
    assert not os.path.exists(tmp_path / "out" / ".chunkmap")


FUNCTIONS: dict[str, plain.Rows] = {
    "double": lambda f: f.select("id", twice=pl.col("value") * 2),
    "odd": lambda f: f.filter(pl.col("id") % 2 == 1).select("id", "value"),
    "total": lambda f: f.select(pl.col("value").sum(), pl.len().alias("rows")),
    "nothing": lambda f: f.filter(pl.lit(False)).select("id", "value"),
}


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_run_is_the_transform_of_each_chunk(world: World, name: str) -> None:
    summary = world.run(world.job(name))
    expected = plain.mapped(world.chunks(), FUNCTIONS[name])
    assert_frame_equal(plain.published(world.output), expected)
    assert (summary.state, summary.manifest, summary.chunks, summary.failed) == ("done", 1, 10, 0)
    assert (summary.rows_in, summary.rows_out) == (100, expected.height)
    manifest = TableLog(world.storage, f"file://{world.output}/").manifest()
    assert sum(entry.rows for entry in manifest.commits) == expected.height
    assert not list(world.root.glob("out.chunkmap/staged/**/*.parquet*"))
    assert Path(summary.local_report).stat().st_size > 10_000
    stored = world.storage.get(summary.report.replace(".html", ".json")).data
    assert orjson.loads(stored)


def test_files_deleted_by_hand_are_reported(world: World) -> None:
    world.run(world.job())
    gone = min(world.output.rglob("*.parquet"))
    gone.unlink()
    with pytest.raises(FilesMissingError, match=gone.name) as caught:
        world.run(world.job())
    assert caught.value.exit_code == 1
    assert "chunkmap rollback" in str(caught.value.hint)


def test_what_can_never_be_completed_is_mapped_again_a_bounded_number_of_times(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that refuses every completion for good: each command tries so often, and says it."""
    with monkeypatch.context() as broken:
        broken.setattr(LocalBackend, "complete", lambda self, staged: list(staged))
        with pytest.raises(UploadsVanishedError, match="10 staged outputs vanished"):
            world.run(world.job())
    [record] = runs_of(world.storage, f"file://{world.output}/")
    progress = Ledger(world.storage, record.output, record.run).read()
    assert progress.completions.height + progress.duplicates.height == PUBLISH_ATTEMPTS * 10
    summary = world.run(world.job())
    assert (summary.state, summary.rows_out) == ("done", 100)


def test_keys_that_a_rollback_could_not_lengthen_are_refused() -> None:
    name = 60 * "%E4%BD%A0"  # One Chinese character takes nine bytes.
    backend = MemoryBackend()
    backend.put(f"s3://in/t/k={name}/l={name}/a.parquet", parquet(0, 2))
    plan = plan_dataset(PlanRequest("s3://in/t/"), StorageReader(backend.storage())).plan
    with pytest.raises(
        InputError, match=r"1,\d\d\d bytes, but at most 1,008 are possible"
    ) as caught:
        refuse_long_keys("s3://out/t/", plan)
    assert "shorter output prefix" in str(caught.value.hint)
    refuse_long_keys("file:///out/t/", plan)


def test_the_same_command_again_maps_nothing(world: World) -> None:
    first = world.run(world.job())
    before = {path: path.stat().st_mtime_ns for path in world.output.rglob("*")}
    again = world.run(world.job())
    assert (again.run, again.mapped, again.manifest) == (first.run, 0, 1)
    assert {path: path.stat().st_mtime_ns for path in world.output.rglob("*")} == before


def test_columns_and_filter_of_the_job(world: World) -> None:
    source = {
        "uri": f"file://{world.root}/in/",
        "columns": ["value", "id"],
        "filter": [["id", ">=", 33], ["day", "==", 2]],
    }
    summary = world.run(world.job("odd", input=source))
    frames = [f.filter(pl.col("id") >= 33, pl.col("day") == 2) for f in world.chunks()]
    expected = plain.mapped([f for f in frames if f.height], FUNCTIONS["odd"])
    assert_frame_equal(plain.published(world.output), expected.select("value", "id"))
    assert summary.rows_in == sum(frame.height for frame in frames)


def test_one_bad_chunk_fails_alone_and_is_all_that_is_mapped_later(world: World) -> None:
    job = world.job("fails", params={"index": 42})
    with pytest.raises(RunIncompleteError) as caught:
        world.run(job)
    summary = caught.value.summary
    assert (summary.failed, summary.mapped, summary.manifest) == (1, 9, None)
    assert "cannot do 42" in summary.errors[0]
    assert list(world.output.rglob("*.parquet")) == []
    (world.root / "fixed").touch()
    fixed = world.run(job)
    assert (fixed.run, fixed.mapped, fixed.failed) == (summary.run, 1, 0)
    expected = plain.mapped(world.chunks(), lambda f: f.select("id", "value"))
    assert_frame_equal(plain.published(world.output).select("id", "value"), expected)


def test_an_input_that_changed_after_planning_is_found_out(world: World) -> None:
    job = world.job("fails", params={"index": 42})
    with pytest.raises(RunIncompleteError):
        world.run(job)
    (world.root / "fixed").touch()
    world.write(4, start=40)  # the same rows, another version
    with pytest.raises(RunIncompleteError) as caught:
        world.run(job)
    assert "ObjectChangedError" in caught.value.summary.errors[0]
    assert "04.parquet" in caught.value.summary.errors[0]
    assert list(world.output.rglob("*.parquet")) == []
    summary = world.run(job, ResumeOptions(replan=True))
    assert summary.failed == 0
    expected = plain.mapped(world.chunks(), lambda f: f.select("id", "value"))
    assert_frame_equal(plain.published(world.output).select("id", "value"), expected)


def test_chunks_of_different_schemas_are_not_published(world: World) -> None:
    with pytest.raises((RunFailedError, SchemaChangedError), match="Float32"):
        world.run(world.job("mixed"))
    assert list(world.output.rglob("*.parquet")) == []


def test_changed_code_does_not_go_on_unasked(world: World) -> None:
    job = world.job("fails", params={"index": 42})
    with pytest.raises(RunIncompleteError):
        world.run(job)
    source = world.root / f"{world.module}.py"
    source.write_text(TRANSFORM.replace("cannot do", "still cannot do"))
    with pytest.raises(ConflictError, match="has changed"):
        world.run(job)
    with pytest.raises(RunIncompleteError) as caught:
        world.run(job, ResumeOptions(accept_code=True))
    assert "still cannot do 42" in caught.value.summary.errors[0]
    (world.root / "fixed").touch()
    summary = world.run(job, ResumeOptions(accept_code=True))
    codes = world.ledger(summary).read().completions["code"]
    assert codes.n_unique() == 2


OLD_SCHEME = "pipeline.runs.transforms.fingerprint.SCHEME"


def test_an_unfinished_run_of_another_scheme_resumes_when_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job("fails", params={"index": 42})
    with monkeypatch.context() as patch:
        patch.setattr(OLD_SCHEME, "v0")
        with pytest.raises(RunIncompleteError) as first:
            world.run(job)
    (world.root / "fixed").touch()
    with pytest.raises(ConflictError, match=r"scheme v0 .*cannot tell") as caught:
        world.run(job)
    assert "has changed since (" not in str(caught.value)
    assert "--accept-code" in str(caught.value.hint)
    summary = world.run(job, ResumeOptions(accept_code=True))
    assert (summary.run, summary.state) == (first.value.summary.run, "done")
    assert summary.mapped == 1


@pytest.mark.parametrize("mode", ["error", "overwrite"])
def test_a_published_run_of_another_scheme_is_still_the_same_run(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    job = world.job(output={"uri": f"file://{world.output}/", "mode": mode})
    with monkeypatch.context() as patch:
        patch.setattr(OLD_SCHEME, "v0")
        first = world.run(job)
    again = world.run(job, ResumeOptions(accept_code=True))
    assert (again.run, again.mapped) == (first.run, 0)
    if mode == "error":
        with pytest.raises(ConflictError, match="scheme v0") as caught:
            world.run(job)
        assert "--accept-code" in str(caught.value.hint)
    else:
        other = world.run(job)
        assert other.mapped == other.chunks
        assert any("scheme v0" in note for note in other.notes)


def test_a_second_run_to_an_output_in_mode_error_is_refused(world: World) -> None:
    world.run(world.job())
    with pytest.raises(OutputNotEmptyError):
        world.run(world.job("odd"))


def test_append_and_overwrite_whole_runs(world: World) -> None:
    output = {"uri": f"file://{world.output}/"}
    world.run(world.job("double"))
    appended = world.job("double", output=output | {"mode": "append"})
    assert world.run(appended).mapped == 0
    assert plain.published(world.output).height == 100
    source = {"uri": f"file://{world.root}/in/", "filter": [["id", ">=", 0]]}
    world.run(appended.model_copy(update={"input": Input.model_validate(source)}))
    assert plain.published(world.output).height == 200
    world.run(world.job("odd", output=output | {"mode": "overwrite"}))
    expected = plain.mapped(world.chunks(), FUNCTIONS["odd"])
    assert_frame_equal(plain.published(world.output), expected)
    aside = sorted((world.root / "out.chunkmap" / "replaced").rglob("*.parquet"))
    assert len(aside) == 20


def test_a_vanished_staged_file_is_mapped_again(world: World) -> None:
    job = world.job("fails", params={"index": 42})
    with pytest.raises(RunIncompleteError):
        world.run(job)
    staged = [p for p in world.root.glob("out.chunkmap/staged/**/*") if p.is_file()]
    assert len(staged) == 9
    staged[3].unlink()
    (world.root / "fixed").touch()
    summary = world.run(job)
    assert summary.state == "done"
    expected = plain.mapped(world.chunks(), lambda f: f.select("id", "value"))
    assert_frame_equal(plain.published(world.output).select("id", "value"), expected)


def test_a_transform_that_needs_what_is_not_there(world: World) -> None:
    (world.root / f"{world.module}.py").write_text(
        "def run(frame):\n    return frame.select('absent')\n"
    )
    with pytest.raises(InputError, match="absent"):
        world.run(world.job("run"))
    assert not (world.root / "out.chunkmap").exists()
