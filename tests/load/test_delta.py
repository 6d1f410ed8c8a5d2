"""Loads into a Delta table: its log records what it has, so nothing is in it twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from pipeline.config.load_file import load_file_of
from pipeline.config.settings import Settings
from pipeline.errors import TransientStorageError, UsageError
from pipeline.load.connect import open_load
from pipeline.load.delta import DeltaLoad
from pipeline.load.errors import (
    DestinationError,
    LoadFailedError,
    ReplacedCommitsError,
    TableMismatchError,
)
from pipeline.load.records import LoadSummary
from tests.load.killer import Killer
from tests.load.targets import ids
from tests.load.typed import TYPES
from tests.servers.fixtures import seaweedfs  # noqa: F401
from tests.servers.launching import Server
from tests.support.published_frames import Frames


@dataclass(frozen=True)
class DeltaTarget:
    """Loads of one output into a Delta table."""

    output: Frames
    uri: str

    def open(self, **into: Any) -> DeltaLoad:
        named = {f"into.{name}": value for name, value in into.items()}
        options = {"name": "x", "input.uri": self.output.uri, "into.uri": f"delta:{self.uri}"}
        output = self.output
        load = open_load(load_file_of(options | named), output.settings, output.storage)
        assert isinstance(load, DeltaLoad)
        return load

    def load(self, **into: Any) -> LoadSummary:
        return self.open(**into).run()

    @property
    def table(self) -> DeltaTable:
        return DeltaTable(
            self.uri.removeprefix("file://"),
            storage_options=self.output.storage.client_options(self.uri),
        )

    def frame(self) -> pl.DataFrame:
        frame = pl.from_arrow(self.table.to_pyarrow_table())
        assert isinstance(frame, pl.DataFrame)
        return frame

    @property
    def ids(self) -> list[int]:
        return sorted(self.frame()["id"].to_list())


@pytest.fixture
def target(output: Frames, tmp_path: Path) -> DeltaTarget:
    return DeltaTarget(output, f"file://{tmp_path}/lake/sales/")


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer("pipeline.load.delta:DeltaLoad") as killer:
        yield killer


def test_only_new_commits_are_appended_one_by_one(target: DeltaTarget) -> None:
    target.output.add(ids(1, 2), ids(3))
    first = target.load()
    assert (first.rows, len(first.commits), first.held, first.created) == (3, 1, 0, True)
    version = target.table.version()
    assert target.load().rows == 0
    assert target.table.version() == version
    target.output.add(ids(4))
    target.output.add(ids(5))
    last = target.load()
    assert (last.rows, len(last.commits), last.held, last.created) == (2, 2, 1, False)
    assert target.ids == [1, 2, 3, 4, 5]
    assert target.table.version() == version + 2
    named = {commit.get("chunkmap.commits") for commit in target.table.history(2)}
    assert named == set(last.commits)


def test_a_preview_writes_nothing(target: DeltaTarget, tmp_path: Path) -> None:
    target.output.add(ids(1))
    shown = target.open().preview()
    assert (shown.rows, shown.created, shown.dry_run) == (1, True, True)
    assert not (tmp_path / "lake").exists()
    target.load()
    assert target.open().preview().rows == 0


@pytest.mark.sampled(3)
@pytest.mark.faults
@pytest.mark.parametrize("step", ["_create-after", "_write-before", "_write-after"])
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_killed_load_is_repeated_without_loss_or_duplicates(
    target: DeltaTarget, killer: Killer, step: str, mode: str
) -> None:
    target.output.add(ids(1, 2))
    target.output.add(ids(3))
    killer.load_and_die(target.output.uri, f"delta:{target.uri}", mode, step)
    target.load(mode=mode)
    assert target.ids == [1, 2, 3]
    assert target.load(mode=mode).rows == 0


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_commit_whose_reply_is_lost_is_looked_up(
    target: DeltaTarget, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.output.add(ids(1))
    target.output.add(ids(2))
    write, lost = DeltaLoad._write, [1]

    def loses(self: DeltaLoad, *arguments: Any, **options: Any) -> None:
        write(self, *arguments, **options)
        if lost:
            lost.pop()
            raise TransientStorageError("the reply was lost")

    monkeypatch.setattr(DeltaLoad, "_write", loses)
    summary = target.load(mode=mode)
    assert (summary.rows, len(summary.commits)) == (2, 2) and not lost
    assert target.ids == [1, 2]


def test_of_two_loads_at_once_each_commit_is_there_once(
    target: DeltaTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.output.add(ids(1))
    target.output.add(ids(2))
    write = DeltaLoad._write

    def after_another(self: DeltaLoad, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(DeltaLoad, "_write", write)
        assert target.load().rows == 2
        write(self, *arguments, **options)

    monkeypatch.setattr(DeltaLoad, "_write", after_another)
    target.load()
    assert target.ids == [1, 2]


def test_a_replace_and_an_append_at_once_leave_each_row_once(
    target: DeltaTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.output.add(ids(1))
    target.load()
    target.output.add(ids(2))
    write = DeltaLoad._write

    def after_a_replace(self: DeltaLoad, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(DeltaLoad, "_write", write)
        assert target.load(mode="replace").rows == 2
        write(self, *arguments, **options)

    monkeypatch.setattr(DeltaLoad, "_write", after_a_replace)
    target.load()
    assert target.ids == [1, 2]


def test_other_writers_of_the_table_do_not_matter(
    target: DeltaTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.output.add(ids(1))
    target.load()
    target.output.add(ids(2))
    write = DeltaLoad._write

    def after_another(self: DeltaLoad, *arguments: Any, **options: Any) -> None:
        write_deltalake(target.table, ids(100).to_arrow(), mode="append")
        write(self, *arguments, **options)

    monkeypatch.setattr(DeltaLoad, "_write", after_another)
    assert target.load().rows == 1
    assert target.ids == [1, 2, 100]
    target.output.add(ids(3), mode="overwrite")
    with pytest.raises(LoadFailedError, match="has 1 row that no load of"):
        target.load(mode="replace")


def test_a_rollback_is_refused_and_then_replaced(target: DeltaTarget) -> None:
    target.output.add(ids(1))
    target.output.add(ids(2), mode="overwrite")
    target.load()
    target.output.rollback(1)
    with pytest.raises(ReplacedCommitsError, match="rolled back") as caught:
        target.load()
    assert "merge" not in (caught.value.hint or "")
    assert target.load(mode="replace").rows == 1
    assert target.ids == [1]
    assert target.load(mode="replace").rows == 0
    assert target.load().rows == 0, "the file has another key, and is the same"
    target.output.rollback(2)
    assert target.load(mode="replace").rows == 1
    assert target.ids == [2]


def test_what_the_table_has_is_known_without_our_records(target: DeltaTarget) -> None:
    target.output.add(ids(1))
    target.load()
    storage = target.output.storage
    for info in storage.objects(target.open().store.prefix):
        storage.delete(info.uri)
    assert target.load().rows == 0
    assert target.ids == [1]


def test_other_columns_are_refused_or_added(target: DeltaTarget) -> None:
    target.output.add(ids(1))
    target.load()
    target.output.add(ids(2).with_columns(x=pl.lit(7, pl.Int8)))
    with pytest.raises(TableMismatchError, match="it lacks x") as caught:
        target.load()
    assert "--schema widen" in (caught.value.hint or "")
    assert target.open(schema="widen").preview().added == ("x",)
    assert target.load(schema="widen").added == ("x",)
    assert sorted(target.frame().select("id", "x").rows()) == [(1, None), (2, 7)]


def test_wider_types_of_the_table_are_filled(target: DeltaTarget) -> None:
    there = pl.DataFrame({"v": ["old"], "id": [0], "d": [Decimal("1.000")]})
    there = there.cast({"d": pl.Decimal(20, 3)})
    path = Path(target.uri.removeprefix("file://"))
    path.parent.mkdir()
    write_deltalake(str(path), there.to_arrow())
    frame = ids(1).cast({"id": pl.Int32}).with_columns(d=pl.lit(Decimal("2.5"), pl.Decimal(4, 1)))
    target.output.add(frame)
    assert target.load().rows == 1
    assert sorted(target.frame().select("id", "v", "d").rows()) == [
        (0, "old", Decimal("1.000")), (1, "v1", Decimal("2.500")),
    ]  # fmt: skip
    other = replace(target, uri=target.uri.replace("sales", "other"))
    write_deltalake(other.uri.removeprefix("file://"), pl.DataFrame({"id": ["a"]}).to_arrow())
    with pytest.raises(TableMismatchError, match="id is string and must hold integer"):
        other.load()


def test_every_type_has_the_same_values_afterwards(target: DeltaTarget) -> None:
    frame = TYPES.drop("hour", "took")
    target.output.add(frame)
    target.load()
    wanted = frame.with_columns(
        pl.col("kind", "level").cast(pl.String),
        pl.col("at_ms").cast(pl.Datetime("us")),
        pl.col("at_zone").dt.convert_time_zone("UTC"),
    )
    loaded = target.frame().with_columns(pl.col("at_zone").dt.convert_time_zone("UTC"))
    assert loaded.to_dicts() == wanted.to_dicts()
    target.output.add(frame)
    assert target.load().rows == 2, "the table that it made fits"


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (TYPES.select("hour"), "column hour"),
        (TYPES.select("took"), "column took"),
        (pl.DataFrame({"a b": [1]}), "a character that Delta refuses"),
        (pl.DataFrame({"id": [1], "ID": [2]}), "same name in Delta"),
    ],
)
def test_what_has_no_counterpart_is_refused_before_anything_is_written(
    target: DeltaTarget, frame: pl.DataFrame, says: str, tmp_path: Path
) -> None:
    target.output.add(frame)
    with pytest.raises(TableMismatchError, match=says):
        target.load()
    assert not (tmp_path / "lake").exists()


def test_a_value_that_does_not_fit_is_not_rounded(target: DeltaTarget) -> None:
    target.output.add(pl.DataFrame({"id": [1], "at": pl.Series([1], dtype=pl.Datetime("ns"))}))
    with pytest.raises(LoadFailedError, match=r"column at .*Datetime"):
        target.load()
    assert target.ids == []


def test_places_that_chunkmap_publishes_to_are_refused(target: DeltaTarget) -> None:
    target.output.add(ids(1))
    above = target.output.uri.rstrip("/").rpartition("/")[0] + "/"
    for place in (target.output.uri, target.output.uri + "table/", above):
        with pytest.raises(UsageError, match="lie within each other"):
            replace(target, uri=place).load()
    path = target.uri.removeprefix("file://")
    Path(path).parent.mkdir()
    ours = CommitProperties(app_transactions=[Transaction("chunkmap", 1)])
    write_deltalake(path, ids(1).to_arrow(), commit_properties=ours)
    with pytest.raises(DestinationError, match="is published by chunkmap"):
        target.load()


def test_a_constraint_of_the_table_is_named(target: DeltaTarget) -> None:
    target.output.add(ids(1))
    target.load()
    target.table.alter.add_constraint({"small": "id < 5"})
    target.output.add(ids(7))
    with pytest.raises(LoadFailedError, match=r"refuses the rows: .*(?i:check|constraint|small)"):
        target.load()
    assert target.ids == [1]


@pytest.mark.integration
def test_tables_are_loaded_on_s3(seaweedfs: Server) -> None:  # noqa: F811
    settings = Settings(s3=seaweedfs.settings())
    place = f"s3://{seaweedfs.bucket}/delta-loads"
    output = Frames(f"{place}/out/", settings)
    target = DeltaTarget(output, f"{place}/lake/")
    output.add(ids(1))
    assert target.load().created
    output.add(ids(2), ids(3))
    assert target.load().rows == 2
    assert target.load().rows == 0
    assert target.ids == [1, 2, 3]
