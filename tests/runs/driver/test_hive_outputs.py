"""Whole runs over Hive folders: each comes out as it went in, and nothing of a result is lost."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pyarrow.dataset
import pytest

from partitioning import Plan
from partitioning.hive import HIVE_TYPES
from partitioning.hive_paths import NULL_VALUE, default_raw
from partitioning.model import Chunk
from pipeline.config.job import HiveType, Job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import PartitionColumnError, UsageError
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.backfill.driver import BackfillDriver
from pipeline.runs.backfill.orchestrator import NoBackfillOrchestrator
from pipeline.runs.backfill.plan import WindowSelection, _request_digest, create, draft
from pipeline.runs.backfill.records import Options
from pipeline.runs.driver.dry_run import try_transform
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError, RunSummary
from pipeline.storage import Storage, own_storage
from pipeline.table.log import TableLog
from pipeline.table.scan import scan_output
from tests.servers.launching import BUCKET
from tests.support.runs_by_hand import parquet

TRANSFORM = """
import os
import polars as pl

def same(frame):
    return frame

def upper(frame):
    return frame.with_columns(pl.col("k").str.to_uppercase())

def null(frame):
    return frame.with_columns(k=pl.lit(None, pl.String))

def as_text(frame):
    return frame.with_columns(pl.col("k").cast(pl.String))

def from_id(frame):
    return frame.select(k="id")

def key_alone(frame):
    return frame.select("k")

def key_alone_of_nothing(frame):
    return frame.select("k").clear()

def without_key(frame):
    return frame.drop("k")

def seen(frame):
    return frame.with_columns(seen=pl.col("k"))

def fails(frame):
    def check(series):
        if not os.path.exists(os.environ["FIXED"]) and (series == 1).any():
            raise ValueError("cannot do 1")
        return series
    return frame.with_columns(pl.col("id").map_batches(check, return_dtype=pl.Int64))
"""


class World:
    """A folder with settings, transforms, and inputs `k=<raw>/` of two rows each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.module = f"transforms_{uuid.uuid4().hex[:8]}"
        (root / f"{self.module}.py").write_text(TRANSFORM)
        (root / "conf").mkdir()
        (root / "conf" / "base.yaml").write_text(f"transforms: {{allow: [{self.module}]}}\n")

    def write(self, ids: Mapping[str, int]) -> None:
        """Write a file of two ids below each folder."""
        for folder, first in ids.items():
            path = self.root / "in" / folder / "a.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pl.DataFrame({"id": [first, first + 1]}).write_parquet(path)

    def job(self, function: str = "same", mode: str = "error", **more: Any) -> Job:
        source = {"uri": str(self.root / "in"), **more.pop("input", {})}
        return Job.model_validate(
            {
                "name": "test",
                "input": source,
                "transform": f"{self.module}:{function}",
                "output": {"uri": self.output, "mode": mode},
                "rounds": 1,
                "retries": 0,
                **more,
            }
        )

    @property
    def output(self) -> str:
        return str(self.root / "out")

    @property
    def settings(self) -> Settings:
        return load_settings(overrides={"state_dir": str(self.root / ".chunkmap")})

    @property
    def storage(self) -> Storage:
        return own_storage()

    def run(self, job: Job) -> RunSummary:
        return run_serially(job, self.settings, self.storage)

    def backfill(self, job: Job, asked: WindowSelection | None = None, **options: Any) -> None:
        drafted = draft(
            job, self.settings, self.storage, asked or WindowSelection(), Options(**options)
        )
        created = create(self.storage, drafted)
        assert created is not None, "there is something to do"
        store, _ = created
        BackfillDriver(store, self.settings, NoBackfillOrchestrator()).run()

    def ids(self) -> dict[str, list[int]]:
        """The ids that the current manifest has in each folder."""
        table_log = TableLog(self.storage, self.output)
        found: dict[str, list[int]] = {}
        for key in table_log.snapshot(table_log.manifest())["key"].to_list():
            rows = pl.read_parquet(f"{self.output}/{key}", glob=False, hive_partitioning=False)
            found.setdefault(key.rpartition("/")[0], []).extend(rows["id"].to_list())
        return {folder: sorted(found[folder]) for folder in sorted(found)}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIXED", str(tmp_path / "fixed"))
    yield World(tmp_path)


@contextmanager
def earlier_release() -> Iterator[None]:
    """Spell values anew, and store plans without saying that they are not."""
    build = Plan.build.__func__  # type: ignore[attr-defined]

    def unmarked(cls: type[Plan], tables: Any, meta: Mapping[str, Any]) -> Any:
        return build(cls, tables, {k: v for k, v in meta.items() if k != "raw_folders"})

    def respelled(chunk: Chunk) -> tuple[tuple[str, str], ...]:
        return tuple((name, default_raw(value)) for name, value in chunk.partition)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "build", classmethod(unmarked))
        patch.setattr(Chunk, "raw_partition", property(respelled))
        yield


# -- identity -----------------------------------------------------------------------------------


def test_folders_of_the_output_are_those_of_the_input(world: World) -> None:
    folders = ["k=01", "k=1", "k=a b", "k=a%20b", "k=%2F", "k=__HIVE_DEFAULT_PARTITION__", "k=ü",
               "k=[1]", "k=*", "k=x=y", "k=?"]  # fmt: skip
    wanted = {folder: 10 * n for n, folder in enumerate(folders)}
    world.write(wanted)
    world.run(world.job())
    assert world.ids() == {folder: [n, n + 1] for folder, n in sorted(wanted.items())}
    rows = scan_output(world.output).collect()
    assert dict(rows.group_by("k").len().iter_rows()) == {
        "01": 2, "1": 2, "a b": 4, "/": 2, None: 2, "ü": 2, "[1]": 2, "*": 2, "x=y": 2, "?": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    "server", ["moto", pytest.param("seaweedfs", marks=pytest.mark.integration)]
)
def test_folders_on_s3_are_those_of_the_input(
    world: World, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = request.getfixturevalue(server).access
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", access.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", access.secret)
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    folders = ["k=01", "k=1", "k=a b", "k=a%20b", "k=%2F", f"k={NULL_VALUE}", "k=ü", "k=[1]",
               "k=*", "k=x=y", "k=?", "k=#", "k=+", "k=%FF", "k=&;'", "k={x}",
               "k="]  # fmt: skip
    for number, folder in enumerate(folders):
        own_storage().put(f"{prefix}/in/{folder}/a.parquet", parquet(10 * number, 2))
    output = {"uri": f"{prefix}/out/", "mode": "error"}
    world.run(world.job("seen", input={"uri": f"{prefix}/in/"}, output=output))
    table_log = TableLog(own_storage(), f"{prefix}/out/")
    keys = table_log.snapshot(table_log.manifest())["key"].to_list()
    assert sorted(key.rpartition("/")[0] for key in keys) == sorted(folders)
    assert verify_output(own_storage(), f"{prefix}/out/").problems == ()
    rows = scan_output(f"{prefix}/out/").collect()
    assert sorted(rows["id"].to_list()) == sorted(
        10 * n + i for n in range(len(folders)) for i in range(2)
    )
    assert rows.filter(pl.col("k").ne_missing(pl.col("seen"))).is_empty()


def test_leading_zeros_are_kept(world: World) -> None:
    world.write({"k=01": 0, "k=12": 10})
    world.run(world.job("seen"))
    assert world.ids() == {"k=01": [0, 1], "k=12": [10, 11]}
    assert scan_output(world.output).collect()["seen"].to_list() == [1, 1, 12, 12]


def test_declared_text_is_what_the_transform_sees(world: World) -> None:
    world.write({"k=01234": 0})
    world.run(world.job("seen", input={"hive_types": {"k": "string"}}))
    assert world.ids() == {"k=01234": [0, 1]}
    rows = scan_output(world.output).collect()
    assert rows.rows() == [(0, "01234", "01234"), (1, "01234", "01234")]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "raw", "wanted", "dtype"),
    [
        ("int8", "07", 7, pl.Int8),
        ("int16", "7", 7, pl.Int16),
        ("int32", "-7", -7, pl.Int32),
        ("date", "2024-01-05", date(2024, 1, 5), pl.Date),
        ("string", "2024-01-05", "2024-01-05", pl.String),
    ],
)
def test_every_declared_type_goes_through(
    world: World, kind: str, raw: str, wanted: object, dtype: pl.DataType
) -> None:
    null = f"k={NULL_VALUE}"
    world.write({f"k={raw}": 0, null: 10})
    source = {"hive_types": {"k": kind}, "filter": [["k", "==", wanted]]}
    world.run(world.job("seen", "append", input=source))
    source["filter"] = [["k", "is null"]]
    world.run(world.job("seen", "append", input=source))
    assert world.ids() == {f"k={raw}": [0, 1], null: [10, 11]}
    rows = scan_output(world.output).sort("id").collect()
    assert rows.schema["k"] == rows.schema["seen"] == dtype
    assert rows["k"].to_list() == rows["seen"].to_list() == [wanted, wanted, None, None]


def test_a_run_of_a_job_with_windows_reads_nulls_too(world: World) -> None:
    world.write({"k=2024-01-01": 0, f"k={NULL_VALUE}": 10})
    window = {"column": "k", "grain": "day"}
    world.run(world.job("same", "overwrite-partitions", window=window))
    assert world.ids() == {"k=2024-01-01": [0, 1], f"k={NULL_VALUE}": [10, 11]}


def test_types_of_the_job_are_those_of_the_planner() -> None:
    assert get_args(HiveType) == HIVE_TYPES


def test_an_unknown_that_makes_a_column_text_doubles_no_rows(world: World) -> None:
    world.write({"k=01": 0, "k=02": 10})
    job = world.job(mode="overwrite-partitions")
    world.run(job)
    world.write({"k=unknown": 20})
    world.run(job)
    assert world.ids() == {"k=01": [0, 1], "k=02": [10, 11], "k=unknown": [20, 21]}


def test_two_spellings_replace_each_its_own(world: World) -> None:
    world.write({"k=1": 0, "k=01": 10})
    world.run(world.job(mode="overwrite-partitions"))
    world.write({"k=01": 30})
    job = world.job(mode="overwrite-partitions", input={"exclude": ["k=1/*"]})
    world.run(job)
    assert world.ids() == {"k=01": [30, 31], "k=1": [0, 1]}


VALUES: dict[str, Any] = {"window": {"column": "k", "grain": "value"}}


@pytest.mark.parametrize("other", ["unknown", "20"])
def test_windows_of_values_with_zeros_are_found_and_replaced(world: World, other: str) -> None:
    world.write({"k=01": 0, "k=1": 10, f"k={other}": 20})
    job = world.job(mode="overwrite-partitions", **VALUES)
    world.backfill(job)
    assert scan_output(world.output, window="01").collect()["id"].to_list() == [0, 1]
    world.write({"k=01": 30})
    world.backfill(job, WindowSelection(values=("01",)), reprocess="all")
    assert world.ids() == {"k=01": [30, 31], "k=1": [10, 11], f"k={other}": [20, 21]}
    assert scan_output(world.output, window="01").collect()["id"].to_list() == [30, 31]


# -- what earlier releases have stored ----------------------------------------------------------


def test_a_run_of_an_earlier_release_is_resumed(world: World) -> None:
    world.write({"k=01": 0, "k=02": 10})
    job = world.job("fails", chunks={"per_file": True})
    with earlier_release(), pytest.raises(RunIncompleteError) as failed:
        world.run(job)
    assert (failed.value.summary.failed, failed.value.summary.mapped) == (1, 1)
    (world.root / "fixed").touch()
    summary = world.run(job)
    assert (summary.run, summary.state) == (failed.value.summary.run, "done")
    assert summary.mapped == 1, "what was done is not done again"
    assert world.ids() == {"k=01": [0, 1], "k=2": [10, 11]}


def test_replacing_partitions_that_were_spelled_anew_is_refused(world: World) -> None:
    world.write({"k=01": 0, "k=12": 10})
    job = world.job(mode="overwrite-partitions")
    with earlier_release():
        world.run(job)
    assert world.ids() == {"k=1": [0, 1], "k=12": [10, 11]}
    world.write({"k=01": 30})
    with pytest.raises(UsageError, match=r"contains k=1/, .* for the input's k=01/") as caught:
        world.run(job)
    assert "output.mode: overwrite" in str(caught.value.hint)
    windows = world.job(mode="overwrite-partitions", **VALUES)
    with pytest.raises(UsageError, match="contains k=1/"):
        world.backfill(windows, reprocess="all")
    world.run(world.job(mode="overwrite"))
    assert world.ids() == {"k=01": [30, 31], "k=12": [10, 11]}
    world.write({"k=01": 40})
    world.run(job)
    assert world.ids() == {"k=01": [40, 41], "k=12": [10, 11]}


def test_a_request_of_an_earlier_release_is_the_same_request() -> None:
    job = Job.model_validate(
        {
            "name": "daily",
            "input": {"uri": "s3://in/t/"},
            "transform": "a.b:c",
            "output": {"uri": "s3://out/t/", "mode": "overwrite-partitions"},
            "window": {"column": "ds", "grain": "day"},
        }
    )
    asked = WindowSelection("2024-01-01", "2024-02-01")
    assert _request_digest(job, asked, Options()) == "27d7f11a8284"
    source = job.input.model_copy(update={"hive_types": {"ds": "date"}})
    other = job.model_copy(update={"input": source})
    assert _request_digest(other, asked, Options()) != "27d7f11a8284"


# -- a transform's own values -------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("function", "folder", "said"),
    [
        ("upper", "k=de", "column 'k' has other values .*, such as 'DE'"),
        ("null", "k=de", "column 'k' has other values .*, such as null"),
        ("as_text", "k=01", "column 'k' is of type String, not Int64"),
        ("from_id", "k=1", "column 'k' has other values .*, such as 0"),
        ("from_id", "k=de", "column 'k' is of type Int64, not String"),
        ("key_alone", "k=de", "2 rows but only the columns k"),
    ],
)
def test_a_result_that_the_key_contradicts_is_refused(
    world: World, function: str, folder: str, said: str
) -> None:
    world.write({folder: 0})
    job = world.job(function)
    with pytest.raises(RunIncompleteError) as caught:
        world.run(job)
    [error] = caught.value.summary.errors
    assert re.search(said, error)
    assert "PartitionColumnError: chunk 0: " in error
    assert ".rename({'k': 'k_new'})" in error
    assert not list((world.root / "out").rglob("*.parquet"))
    with pytest.raises(PartitionColumnError, match=said):
        try_transform(job, world.settings, world.storage, 5)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("function", ["same", "without_key", "key_alone_of_nothing"])
@pytest.mark.parametrize("folder", ["k=de", "k=01", "k=2024-01-05", "k=a%20b", "k=%FF"])
def test_a_result_that_says_what_the_key_says_is_written(
    world: World, function: str, folder: str
) -> None:
    world.write({folder: 0})
    summary = world.run(world.job(function))
    assert summary.rows_out == (0 if function == "key_alone_of_nothing" else 2)


def test_chunks_that_cross_partitions_are_read_back(world: World) -> None:
    world.write({"k=a/j=1": 0, "k=a/j=2": 10, "k=b/j=1": 20})
    job = world.job("same", chunks={"cross_partitions": True, "max_rows": 4})
    world.run(job)
    assert sorted(world.ids()) == ["k=a", "k=b/j=1"]
    rows = scan_output(world.output).collect()
    wanted = [(0, "a", 1), (1, "a", 1), (10, "a", 2), (11, "a", 2), (20, "b", 1), (21, "b", 1)]
    assert sorted(rows.select("id", "k", "j").rows()) == wanted


def test_nulls_that_the_key_says_are_null(world: World) -> None:
    world.write({"k=__HIVE_DEFAULT_PARTITION__": 0, "k=x": 10})
    world.run(world.job("same"))
    rows = scan_output(world.output).collect()
    assert rows.sort("id")["k"].to_list() == [None, None, "x", "x"]


def test_other_readers_see_the_same_columns(world: World) -> None:
    world.write({"k=de": 0, "k=fr": 10})
    world.run(world.job("seen"))
    wanted = [(0, "de"), (1, "de"), (10, "fr"), (11, "fr")]
    hive = pl.scan_parquet(f"{world.output}/**/*.parquet", hive_partitioning=True).collect()
    assert sorted(hive.select("id", "k").rows()) == wanted
    table = pyarrow.dataset.dataset(world.output, partitioning="hive").to_table()
    assert sorted(zip(*table.select(["id", "k"]).to_pydict().values(), strict=True)) == wanted
