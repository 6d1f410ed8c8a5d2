"""Any byte of any stored object changed, or the object cut: a named error, or the same meaning."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitioning.errors import PlanningError
from partitioning.table_file import MAGIC, TableFile
from pipeline.errors import ChunkmapError, StateError
from pipeline.runs.admin.known_outputs import known_outputs, remember_output
from pipeline.runs.admin.status import list_runs
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.backfill.records import BackfillResumeOptions
from pipeline.runs.backfill.store import BackfillStore, backfills_of
from pipeline.runs.driver.heartbeat import Heartbeat, read_driver
from pipeline.runs.driver.publish import publish_run
from pipeline.runs.driver.report import fetch_report
from pipeline.runs.ledger.find import find_runs, runs_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.runs.worker import reduce
from pipeline.storage.documents import parse_stored, report_folder, seal_json
from tests.support.backfills import Days, days
from tests.support.examples import fewer
from tests.support.memory_storage import MemoryBackend, _Stored
from tests.support.outputs import copied
from tests.support.runs_by_hand import OUTPUT, Run, plan_of, run_of

PLAN = plan_of(4, folders=(0, 1))
NAMED = (ChunkmapError, PlanningError)


def answers(readers: Mapping[str, Callable[[], object]]) -> dict[str, object]:
    """What each reader says, or the named error that it raises."""
    said: dict[str, object] = {}
    for name, reader in readers.items():
        try:
            said[name] = reader()
        except NAMED as error:
            said[name] = error
    return said


def make_run() -> tuple[MemoryBackend, Run]:
    """A run with everything that is ever stored of one."""
    backend = MemoryBackend()
    run = run_of(backend.storage(), PLAN, "append")
    run.complete(0, 1)
    run.store(run.failure(2, 1.0))
    run.ledger.read()
    run.ledger.compact()
    run.complete(2, 3)
    Heartbeat.of(run.storage, run.ledger.prefix).write("done")
    run.ledger.accept(0)
    publish_run(run.storage, run.ledger)
    return backend, run


@cache
def made() -> tuple[MemoryBackend, Run]:
    return make_run()


def meaning(backend: MemoryBackend, run: str) -> dict[str, Any]:
    """What each reader makes of a run: its value, or the error that it names the fault by."""
    storage = backend.storage()
    ledger = Ledger(storage, OUTPUT, run)
    driver = read_driver(storage, ledger.prefix)
    readers: dict[str, Callable[[], Any]] = {
        "record": ledger.record,
        "job": ledger.job,
        "plan": lambda: [*ledger.plan().chunks()],
        "published": ledger.published,
        "accepted": ledger.accepted,
        "driver": lambda: driver and driver.model_dump(exclude={"seen"}),
        "left": lambda: ledger.read().left(4),
        "completions": lambda: list(ledger.read().completions.iter_rows()),
        "runs": lambda: [record.run for record in runs_of(storage, OUTPUT)],
        "states": lambda: [state.run for state in list_runs(storage, OUTPUT)],
    }
    return answers(readers)


@pytest.fixture(scope="module")
def sound_meaning() -> dict[str, Any]:
    backend, run = made()
    return meaning(backend, run.ledger.run)


@pytest.fixture(scope="module")
def objects() -> list[str]:
    backend, run = made()
    return sorted(uri for uri in backend.stored if uri.startswith(run.ledger.prefix))


def test_all_kinds_of_objects_are_there(objects: list[str]) -> None:
    names = {uri.removeprefix(made()[1].ledger.prefix).partition("/")[0] for uri in objects}
    assert names == {
        *("run.json", "job.yaml", "plan.arrow", "driver.json", "published.json", "accepted.json"),
        *("completions", "folded"),
    }


MAY_BE_NONE = ("driver", "published", "accepted")


@settings(max_examples=fewer(120), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_object_of_a_run_is_named_or_means_the_same(
    data: st.DataObject, objects: list[str], sound_meaning: dict[str, Any]
) -> None:
    backend, run = made()
    uri = data.draw(st.sampled_from(objects))
    sound = backend.stored[uri].data
    at = data.draw(st.integers(0, len(sound) - 1))
    changed = bytearray(sound)
    if data.draw(st.booleans()):
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        changed = changed[:at]
    other = copied(backend)
    other.stored[uri] = _Stored(bytes(changed))
    for name, value in meaning(other, run.ledger.run).items():
        if isinstance(value, Exception):
            assert uri in str(value), (name, value)
        elif value != sound_meaning[name]:
            # A segment that is damaged is left out; so is a note, which nothing depends on.
            lost = name in ("left", "completions") and "/completions/" in uri
            hidden = name == "runs" and uri.endswith("run.json")
            none = name in MAY_BE_NONE and not value
            assert lost or hidden or none, (name, value)
            if lost:
                assert Ledger(other.storage(), OUTPUT, run.ledger.run).read().problems


def test_every_beginning_of_a_job_is_named() -> None:
    """The first lines of a YAML file may be a YAML file."""
    backend, run = made()
    uri = run.ledger.prefix + "job.yaml"
    sound = backend.stored[uri].data
    for end in range(len(sound)):
        other = copied(backend)
        other.stored[uri] = _Stored(sound[:end])
        with pytest.raises(ChunkmapError, match=r"job\.yaml"):
            Ledger(other.storage(), OUTPUT, run.ledger.run).job()


@pytest.mark.parametrize("cut", [0, 10])
@pytest.mark.parametrize("name", ["run.json", "job.yaml", "plan.arrow"])
def test_one_damaged_run_does_not_block_the_others(name: str, cut: int) -> None:
    backend, first = make_run()
    second = run_of(backend.storage(), plan_of(2), "append")
    second.complete()
    uri = first.ledger.prefix + name
    backend.stored[uri] = _Stored(backend.stored[uri].data[:cut])
    states = {state.run: state for state in list_runs(backend.storage(), OUTPUT)}
    assert states[first.ledger.run].state == "damaged"
    assert uri in states[first.ledger.run].problems[0]
    assert states[second.ledger.run].done == 2
    assert publish_run(second.storage, second.ledger) == 2
    assert vacuum(backend.storage(), OUTPUT).spared in ((), (first.ledger.run,))


def test_what_a_damaged_run_has_staged_is_spared() -> None:
    backend = MemoryBackend()
    run = run_of(backend.storage(), PLAN)
    run.complete()
    backend.stored[run.ledger.prefix + "run.json"] = _Stored(b"")
    cleaned = vacuum(backend.storage(), OUTPUT, older_than=0.0)
    assert cleaned.spared == (run.ledger.run,)
    assert len(backend.uploads) == 4
    vacuum(backend.storage(), OUTPUT, older_than=0.0, discard=[run.ledger.run])
    assert not backend.uploads


def test_a_record_of_another_run_is_refused() -> None:
    backend, run = make_run()
    other = run_of(backend.storage(), plan_of(2), "append")
    backend.stored[other.ledger.prefix + "run.json"] = backend.stored[
        run.ledger.prefix + "run.json"
    ]
    with pytest.raises(StateError, match=f"it is the record of run {run.ledger.run}"):
        other.again(other.storage).ledger.record()


# -- what later releases wrote -----------------------------------------------------------------


def of_a_newer_release(document: bytes) -> bytes:
    """A stored JSON document with a format that this release does not know."""
    fields = {**json.loads(document), "version": 9}
    del fields["sha256"]
    return seal_json(json.dumps(fields).encode())


def test_a_run_of_a_newer_release_is_refused() -> None:
    backend, run = make_run()
    uri = run.ledger.prefix + "run.json"
    backend.stored[uri] = _Stored(of_a_newer_release(backend.stored[uri].data))
    with pytest.raises(StateError, match="format 9; this chunkmap supports 2"):
        Ledger(backend.storage(), OUTPUT, run.ledger.run).record()
    [listed] = list_runs(backend.storage(), OUTPUT)
    assert listed.state == "damaged"


def test_a_backfill_of_a_newer_release_is_refused(world: Any) -> None:
    _, store = world
    path = Path(store.prefix.removeprefix("file://"), "backfill.json")
    sound = path.read_bytes()
    try:
        path.write_bytes(of_a_newer_release(sound))
        with pytest.raises(StateError, match="format 9; this chunkmap supports 1"):
            store.record()
    finally:
        path.write_bytes(sound)


# -- what earlier releases wrote ---------------------------------------------------------------


def test_a_run_without_checksums_is_read() -> None:
    backend, run = make_run()
    prefix = run.ledger.prefix
    record = run.record.model_dump_json(indent=1).encode()
    backend.stored[prefix + "run.json"] = _Stored(record)
    backend.stored[prefix + "job.yaml"] = _Stored(run.ledger.job().to_yaml().encode())
    backend.stored[prefix + "plan.arrow"] = _Stored(unchecked(PLAN.to_bytes()))
    backend.stored[prefix + "published.json"] = _Stored(b'{"manifest": 1}')
    assert meaning(backend, run.ledger.run)["published"] == 1
    told = meaning(backend, run.ledger.run)
    assert not [value for value in told.values() if isinstance(value, Exception)]
    assert told["left"] == []


def unchecked(data: bytes) -> bytes:
    """A plan as earlier releases wrote it."""
    return data[: -16 - 32] + data[-16:-8] + MAGIC


OLD = unchecked(PLAN.to_bytes())


@settings(max_examples=fewer(100), deadline=None)
@given(at=st.integers(0, len(OLD) - 1), bit=st.integers(0, 7))
def test_a_changed_byte_of_a_plan_without_checksum_is_noticed_where_it_matters(
    at: int, bit: int
) -> None:
    assert not TableFile(OLD).has_checksum
    changed = bytearray(OLD)
    changed[at] ^= 1 << bit
    backend, run = made()
    other = copied(backend)
    other.stored[run.ledger.prefix + "plan.arrow"] = _Stored(bytes(changed))
    try:
        plan = Ledger(other.storage(), OUTPUT, run.ledger.run).plan()
    except StateError:
        return
    identity = [
        (c.id, [(f.uri, f.etag, f.size, f.row_group_start, f.row_group_stop) for f in c.fragments])
        for c in plan.chunks()
    ]
    assert identity == [
        (c.id, [(f.uri, f.etag, f.size, f.row_group_start, f.row_group_stop) for f in c.fragments])
        for c in PLAN.chunks()
    ]


# -- backfills ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("days")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        world = Days(root)
        world.write(days("2024-02-27", 3))
        store = world.create(world.job())
        world.drive(store, BackfillResumeOptions())
        yield world, store


def backfill_meaning(world: Days, store: BackfillStore) -> dict[str, Any]:
    again = BackfillStore(store.storage, store.output, store.backfill)
    readers: dict[str, Callable[[], Any]] = {
        "record": again.record,
        "windows": lambda: again.windows().rows(),
        "plan": lambda: again.plan().id,
        "job": again.job,
        "control": again.control,
        "driver": lambda: (found := again.driver()) and found.driver,
        "progress": lambda: None if (p := again.progress()) is None else p.rows(),
        "backfills": lambda: [
            record.backfill for record in backfills_of(store.storage, store.output)
        ],
    }
    return answers(readers)


@pytest.fixture(scope="module")
def sound_backfill(world: Any) -> dict[str, Any]:
    found = backfill_meaning(*world)
    assert not [value for value in found.values() if isinstance(value, Exception)]
    return found


@settings(max_examples=fewer(80), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_object_of_a_backfill_is_named_or_means_the_same(
    data: st.DataObject, world: Any, sound_backfill: dict[str, Any]
) -> None:
    days_, store = world
    folder = Path(store.prefix.removeprefix("file://"))
    names = ("backfill.json", "windows.arrow", "plan.arrow", "job.yaml", "control.json")
    path = folder / data.draw(st.sampled_from([*names, "driver.json", "progress.arrow"]))
    sound = path.read_bytes()
    at = data.draw(st.integers(0, len(sound) - 1))
    changed = bytearray(sound)
    if data.draw(st.booleans()):
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        changed = changed[:at]
    try:
        path.write_bytes(bytes(changed))
        after = backfill_meaning(days_, store)
    finally:
        path.write_bytes(sound)
    for name, value in after.items():
        if isinstance(value, Exception):
            assert path.name in str(value), (name, value)
        elif value != sound_backfill[name]:
            advisory = name in ("driver", "progress") and value is None
            hidden = name == "backfills" and path.name == "backfill.json"
            assert advisory or hidden, (name, value)


def test_a_damaged_driver_record_does_not_stop_a_driver(world: Any) -> None:
    days_, store = world
    uri = store.prefix + "driver.json"
    sound = store.storage.get(uri).data
    for data in (b"", b"{", b"[]", b'{"driver": 1}'):
        store.storage.put(uri, data)
        days_.drive(store, BackfillResumeOptions(take_over=True))
    store.storage.put(uri, sound)


# -- partials ----------------------------------------------------------------------------------


def test_a_damaged_partial_is_named() -> None:
    data = reduce._to_ipc(pl.DataFrame({"a": [1, 2]}))
    assert reduce._from_ipc(data, "u")["a"].to_list() == [1, 2]
    assert reduce._from_ipc(data[40:], "u")["a"].to_list() == [1, 2], "of earlier releases"
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 4
        with pytest.raises(StateError, match="u cannot be used"):
            reduce._from_ipc(bytes(changed), "u")
    with pytest.raises(StateError, match="not a partial result"):
        reduce._from_ipc(b"", "u")


# -- ids that become paths ---------------------------------------------------------------------


@pytest.mark.parametrize("run", ["../../x", "..", "a/b", "/etc", "", "x" * 500, "0123456789ABCDEF"])
def test_an_id_that_is_none_is_refused_wherever_it_comes_from(run: str, tmp_path: Path) -> None:
    backend, sound = make_run()
    record = sound.record.model_dump_json().replace(sound.ledger.run, run)
    with pytest.raises(StateError, match="run"):
        parse_stored(RunRecord, record.encode(), "u")
    uri = sound.ledger.prefix + "run.json"
    backend.stored[uri] = _Stored(record.encode())
    assert find_runs(backend.storage(), OUTPUT).records == []
    if run != "0123456789ABCDEF":
        with pytest.raises(StateError, match="not the id"):
            report_folder(tmp_path, run)
        with pytest.raises(StateError, match="not the id"):
            fetch_report(backend.storage(), uri, tmp_path, run)
    assert not list(tmp_path.rglob("*"))


def test_names_that_a_worker_may_write_are_no_runs() -> None:
    backend, run = make_run()
    record = backend.stored[run.ledger.prefix + "run.json"]
    backend.stored[f"{run.ledger.prefix}completions/run.json"] = record
    backend.stored[f"{OUTPUT[:-1]}.chunkmap/runs/x/partials/run.json"] = record
    found = find_runs(backend.storage(), OUTPUT)
    assert [record.run for record in found.records] == [run.ledger.run]
    assert found.damaged == {}


@pytest.mark.parametrize("text", ["", "{", "3", "{}", '["ftp://x"]', '[1, {"a": 2}]'])
def test_a_damaged_list_of_outputs_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_text(text)
    assert known_outputs(tmp_path) == []
    remember_output(tmp_path, "s3://b/t")
    assert known_outputs(tmp_path) == ["s3://b/t/"]
