"""Completions that point elsewhere, written with a worker's own keys: nothing is deleted or copied.

Each is stored twice, as what would be chosen and as a duplicate, which publishing deletes unread.
"""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest

from partitioning import Plan, PlanRequest, plan_dataset
from pipeline.errors import StateError
from pipeline.runs.admin.vacuum import discard_run, vacuum
from pipeline.runs.driver.commit import draft_commit
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.reduce_stage import drop_partials
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Completion
from pipeline.storage import RetryPolicy, StagedObject, Storage, StorageReader, staged_area
from pipeline.storage.local_backend import LocalBackend
from pipeline.table.errors import UploadsVanishedError
from pipeline.table.log import TableLog
from pipeline.table.publish import publish
from tests.servers.launching import Server, backend_of
from tests.servers.roles import Roles, roles
from tests.support.runs_by_hand import Run, job_of, parquet

QUICK = RetryPolicy(attempts=3, seconds=30.0, wait_initial=0.01, wait_max=0.05)
ROWS = 2


@dataclass(frozen=True)
class Scene:
    """An output beside others, as its driver and a hostile worker see it."""

    owner: Storage
    """Sees everything."""
    driver: Storage
    worker: Storage
    root: str
    """URI of everything, with a slash at its end."""
    elsewhere: str
    """URI of an object that neither of them has anything to do with."""
    output: str
    plan: Plan

    def run(self, output: str | None = None, code: str = "code") -> tuple[Run, Run]:
        """A run as its driver and as a worker sees it."""
        job = job_of("append", output or self.output)
        ledger = Ledger.create(self.driver, job, self.plan, code, 0)
        driver = Run(self.driver, ledger, self.plan)
        return driver, driver.again(self.worker)

    def victims(self) -> dict[str, str]:
        """All that is there and not of this output."""
        mine = (self.output, self.output.rstrip("/") + ".chunkmap/")
        there = [*self.owner.objects(self.root), self.owner.head(self.elsewhere)]
        return {info.uri: info.etag for info in there if not info.uri.startswith(mine)}

    def rows(self) -> list[int]:
        """What a plain glob over the output sees."""
        found = [self.driver.get(info.uri).data for info in self.driver.objects(self.output)]
        return sorted(i for data in found for i in pl.read_parquet(io.BytesIO(data))["id"])


def scene(owner: Storage, driver: Storage, worker: Storage, root: str, elsewhere: str) -> Scene:
    """Three inputs, an output that was published, and another that is to be."""
    for number in range(3):
        owner.put(f"{root}in/{number:03d}.parquet", parquet(number * ROWS, ROWS))
    owner.put(elsewhere, b"secret")
    plan = plan_dataset(PlanRequest(f"{root}in/", per_file=True), StorageReader(driver)).plan
    name = uuid.uuid4().hex[:8]
    made = Scene(owner, driver, worker, root, elsewhere, f"{root}out/{name}/", plan)
    neighbour, _ = made.run(f"{root}out/{name}b/")
    neighbour.complete()
    publish_run(driver, neighbour.ledger)
    return made


Change = Callable[[Scene, Completion], Completion]


def _staged_by_another(scene: Scene, done: Completion) -> Completion:
    _, other = scene.run(code="other")
    return replace(done, upload=other.completion(done.index).upload)


def _climbing(scene: Scene, done: Completion) -> Completion:
    area = staged_area(scene.output)
    return replace(done, upload=f"{area}../../../in/000.parquet.{done.attempt}")


KINDS: dict[str, Change] = {
    "an input": lambda s, c: replace(c, upload=f"{s.root}in/000.parquet"),
    "an object elsewhere": lambda s, c: replace(c, upload=s.elsewhere),
    "another output's pointer": lambda s, c: replace(
        c, upload=s.output.rstrip("/") + "b.chunkmap/HEAD.json"
    ),
    "another output's file": lambda s, c: replace(
        c, uri=c.uri.replace(s.output, s.output.rstrip("/") + "b/")
    ),
    "what another run staged": _staged_by_another,
    "a path that climbs": _climbing,
    "a key that climbs": lambda s, c: replace(c, uri=f"{s.output}../../in/000.parquet"),
    "a local file": lambda s, c: replace(c, upload="file:///etc/hostname"),
    "a path": lambda s, c: replace(c, upload=s.elsewhere.removeprefix("file://")),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    with roles(
        tmp_path_factory.mktemp("roles"),
        buckets="lake,other",
        inputs="lake/in/",
        outputs="lake/out/",
    ) as server:
        yield server


def on(server: Server) -> Storage:
    return Storage({"s3": backend_of(server.access)}, QUICK)


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.integration), "file"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    if request.param == "file":
        local = Storage({"file": LocalBackend()}, QUICK)
        root = f"file://{tmp_path}/lake/"
        return scene(local, local, local, root, f"file://{tmp_path}/other/secret")
    server: Roles = request.getfixturevalue("server")
    seen = (on(server.admin), on(server.driver), on(server.worker))
    return scene(*seen, "s3://lake/", "s3://other/secret")


def attack(scene: Scene, worker: Run, change: Change) -> None:
    """Store hostile completions of chunk 1: one that would be chosen, and duplicates of it."""
    for attempt in ("0" * 32, "f" * 32):
        worker.store(change(scene, worker.completion(1, attempt)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
def test_publishing_touches_nothing_else(stage: Scene, kind: str) -> None:
    driver, worker = stage.run()
    attack(stage, worker, KINDS[kind])
    worker.complete(0, 2)
    before = stage.victims()
    assert driver.ledger.read().left(3) == [1]
    worker.complete(1)
    progress = driver.ledger.read()
    assert progress.left(3) == [] and progress.duplicates.is_empty()
    assert "2 entries" in progress.problems[0]
    assert publish_run(stage.driver, driver.ledger) == 1
    assert stage.victims() == before
    assert stage.rows() == [0, 1, 2, 3, 4, 5]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
def test_giving_a_run_up_touches_nothing_else(stage: Scene, kind: str) -> None:
    driver, worker = stage.run()
    attack(stage, worker, KINDS[kind])
    before = stage.victims()
    discard_run(stage.driver, driver.ledger)
    vacuum(stage.driver, stage.output, older_than=0.0, discard=[driver.ledger.run])
    assert stage.victims() == before


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_was_frozen_with_it_is_refused(stage: Scene, kind: str) -> None:
    """By an earlier release, say, which believed what it read."""
    driver, worker = stage.run()
    done = [KINDS[kind](stage, worker.completion(1)), worker.completion(0)]
    frame = pl.DataFrame(done, schema=driver.ledger.read().completions.schema, orient="row")
    draft = draft_commit(driver.record, frame)
    before = stage.victims()
    with pytest.raises(StateError, match="could not have given the token") as caught:
        publish(TableLog(stage.driver, stage.output), draft)
    assert caught.value.hint
    assert stage.victims() == before


# -- links -------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> Scene:
    storage = Storage({"file": LocalBackend()}, QUICK)
    root = f"file://{tmp_path}/lake/"
    return scene(storage, storage, storage, root, f"file://{tmp_path}/other/secret")


def test_a_link_in_place_of_what_was_staged_is_not_published(local: Scene) -> None:
    driver, worker = local.run()
    done = worker.complete()
    before = local.victims()
    staged = Path(done[1].upload)
    staged.unlink()
    staged.symlink_to(local.elsewhere.removeprefix("file://"))
    with pytest.raises(UploadsVanishedError) as caught:
        publish_run(local.driver, driver.ledger)
    assert driver.ledger.read().left(3) == [1], "its chunk is mapped again"
    worker.complete(1)
    publish_run(local.driver, driver.ledger, caught.value)
    assert local.victims() == before
    assert local.rows() == [0, 1, 2, 3, 4, 5]
    assert not [info for info in local.driver.objects(local.output) if _is_link(info.uri)]


def _is_link(uri: str) -> bool:
    return os.path.islink(uri.removeprefix("file://"))


def test_what_was_staged_in_a_linked_folder_is_refused(local: Scene) -> None:
    driver, worker = local.run()
    done = worker.complete()
    folder = Path(done[0].upload).parent
    moved = folder.rename(folder.parents[5] / "elsewhere")
    folder.symlink_to(moved)
    before = sorted(moved.iterdir())
    for call in (
        lambda: publish_run(local.driver, driver.ledger),
        lambda: local.driver.abort([_token(completion) for completion in done]),
    ):
        with pytest.raises(StateError, match="symbolic link"):
            call()
    assert sorted(moved.iterdir()) == before


def _token(done: Completion) -> StagedObject:
    return StagedObject(done.uri, done.upload, done.parts, done.bytes_out, done.attempt)


@pytest.mark.parametrize("folder", ["partials", "reduced"])
def test_a_linked_folder_of_a_reduce_is_not_emptied(local: Scene, folder: str) -> None:
    driver, _ = local.run()
    victims = Path(local.elsewhere.removeprefix("file://")).parent
    state = Path(driver.ledger.prefix.removeprefix("file://"))
    (state / folder).symlink_to(victims)
    with pytest.raises(StateError, match="symbolic link"):
        drop_partials(local.driver, driver.ledger)
    assert (victims / "secret").read_bytes() == b"secret"
    with pytest.raises(StateError, match="symbolic link"):
        local.driver.delete(f"{driver.ledger.prefix}{folder}/secret")


def test_a_dangling_link_among_what_is_staged_is_cleared_away(local: Scene) -> None:
    driver, worker = local.run()
    staged = Path(worker.completion(1).upload)
    staged.unlink()
    staged.symlink_to(staged.with_name("nothing"))
    assert discard_run(local.driver, driver.ledger) == 1
    assert not staged.is_symlink()
