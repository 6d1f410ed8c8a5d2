"""Which stages run: conditions, needs, notes, `--from` and `--only`. Stages are calls, which cost
nothing."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import (
    JobError,
    PipelineFileError,
    PreconditionFailedError,
    StateError,
    TransformNotAllowedError,
)
from pipeline.pipelines.state import StageNote
from pipeline.pipelines.summary import StageFailedError, StageRefusedError
from pipeline.storage import own_storage
from tests.pipelines.conftest import CALLS, Folder, actions
from tests.support.faulty_storage import KilledError

A = "  - {name: a, call: 'MODULE:note', params: {rows: 3}}\n"
B = "  - {name: b, call: 'MODULE:note'}\n"
C = "  - {name: c, call: 'MODULE:note'}\n"


def test_stages_run_once_with_the_same_parameters(folder: Folder) -> None:
    parameters = "{date: date}"
    pipeline = folder.pipeline(A + B, parameters, date="2024-03-01")
    assert actions(folder.plan(pipeline)) == ["run", "run"]
    first = folder.run(pipeline)
    assert (folder.states(first), folder.ran) == (["done", "done"], ["a", "b"])
    assert [stage.rows for stage in first.stages] == [3, 0]
    second = folder.run(pipeline)
    assert (folder.states(second), folder.ran) == (["unchanged", "unchanged"], [])
    assert (first.attempt, second.attempt, second.stages[0].rows) == (1, 2, 3)
    assert [(shown.name, shown.state) for shown in folder.shown] == [
        ("a", "unchanged"),
        ("b", "unchanged"),
    ]
    assert actions(folder.plan(pipeline)) == ["unchanged", "unchanged"]
    folder.run(folder.pipeline(A + B, parameters, date="2024-03-02"))
    assert folder.ran == ["a", "b"]
    assert len(folder.store.all()) == 2


def test_changed_code_or_parameters_run_again_with_what_needs_them(folder: Folder) -> None:
    stages = A + B + "  - {name: c, call: 'MODULE:note', needs: []}\n"
    folder.run(folder.pipeline(stages))
    changed = folder.pipeline(stages.replace("rows: 3", "rows: 4"))
    assert actions(folder.plan(changed)) == ["run", "run", "unchanged"]
    folder.run(changed)
    assert folder.ran == ["a", "b"]
    folder.code(CALLS.replace("no such address", "there is no address"))
    assert actions(folder.plan(changed)) == ["run", "run", "run"]
    folder.run(changed)
    assert folder.ran == ["a", "b", "c"]


def test_conditions_and_branches(folder: Folder) -> None:
    stages = (
        A
        + "  - {name: big, call: 'MODULE:note', needs: [a], when: a.rows > 5}\n"
        + "  - {name: small, call: 'MODULE:note', needs: [a], when: rows <= 5 and input.changed}\n"
        + "  - {name: after_big, call: 'MODULE:note', needs: [big]}\n"
        + "  - {name: join, call: 'MODULE:note', needs: [big, small], if_skipped: run}\n"
        + "  - {name: mondays, call: 'MODULE:note', when: weekday(date) == 0}\n"
    )
    pipeline = folder.pipeline(stages, "{date: date}", date="2024-03-01")  # A Friday.
    assert actions(folder.plan(pipeline)) == [
        "run", "depends", "depends", "depends", "run", "skip"]  # fmt: skip
    summary = folder.run(pipeline)
    assert folder.states(summary) == ["done", "skipped", "done", "skipped", "done", "skipped"]
    assert [stage.reason for stage in summary.stages if stage.state == "skipped"] == [
        "not a.rows > 5",
        "big was skipped",
        "not weekday(date) == 0",
    ]
    # Nothing has changed: `input.changed` no longer holds, and nothing is called again.
    again = folder.run(pipeline)
    assert folder.states(again) == ["unchanged", "skipped", "skipped", "skipped", "done", "skipped"]
    monday = folder.pipeline(stages, "{date: date}", date="2024-03-04")
    assert folder.states(folder.run(monday))[-1] == "done"


def test_a_failed_pipeline_goes_on_where_it_stopped(folder: Folder) -> None:
    failing = "  - {name: b, call: 'MODULE:note', params: {fails: true}, when: a.changed}\n"
    with pytest.raises(StageFailedError, match=r"stage b: .*note failed: ValueError") as caught:
        folder.run(folder.pipeline(A + failing + C))
    error = caught.value
    assert "secret" not in str(error) and "secret" not in str(folder.store.all())
    assert (error.exit_code, folder.states(error.summary)) == (1, ["done", "failed"])
    [record] = folder.store.all()
    assert record.state == "failed"
    fixed = folder.pipeline(A + failing.replace("true", "false") + C)
    assert actions(folder.plan(fixed)) == ["unchanged", "run", "run"]
    summary = folder.run(fixed)
    # `a` did its work in this attempt: to go on does not change what conditions see.
    assert (folder.states(summary), folder.ran) == (["unchanged", "done", "done"], ["b", "c"])
    assert (summary.attempt, folder.store.all()[0].state) == (1, "done")


@pytest.mark.parametrize("after", [False, True])
def test_a_pipeline_that_was_killed_at_a_call_calls_again(folder: Folder, after: bool) -> None:
    pipeline = folder.pipeline(A + B + C)
    with pytest.raises(KilledError):
        folder.run(pipeline, dies="b", after=after)
    [record] = folder.store.all()
    assert (record.state, record.stages["b"].state) == ("unfinished", "running")
    assert [p.action for p in folder.plan(pipeline)] == ["unchanged", "run", "run"]
    folder.run(pipeline)
    assert folder.ran == ["b", "c"]


def test_calls_get_facts(folder: Folder) -> None:
    stages = A + "  - {name: b, call: 'MODULE:keep'}\n"
    code = "import json, pathlib\n\ndef note(facts, rows): return rows\n\ndef keep(facts):\n"
    folder.code(
        code + "    pathlib.Path('facts.json').write_text(json.dumps(facts, default=str))\n"
    )
    pipeline = folder.pipeline(stages, "{date: date}", date="2024-03-01")
    folder.run(pipeline)
    found = json.loads((folder.root / "facts.json").read_text())
    assert found["parameters"] == {"date": "2024-03-01"} and found["run"] == pipeline.run
    assert found["stages"]["a"]["rows"] == 3 and found["stages"]["a"]["state"] == "done"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("os:getcwd", TransformNotAllowedError, "not allowed"),
        ("MODULE:nothing", StageRefusedError, "no function 'nothing'"),
        ("MODULE:other", StageFailedError, "returned str"),
    ],
)
def test_calls_are_allow_listed_and_checked(
    folder: Folder, call: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        folder.run(folder.pipeline(f"  - call: '{call}'\n"))
    if error is TransformNotAllowedError:
        assert not folder.store.all()  # Refused before anything was noted.


def test_parts_of_a_pipeline(folder: Folder) -> None:
    pipeline = folder.pipeline(A + B + "  - {name: c, call: 'MODULE:note', when: b.changed}\n")
    with pytest.raises(PipelineFileError, match="stage b needs stage a, which is left out and has"):
        folder.run(pipeline, start_from="b")
    with pytest.raises(PipelineFileError, match="has no stage 'd'"):
        folder.run(pipeline, only="d")
    assert folder.states(folder.run(pipeline, only="a")) == ["done", "left out", "left out"]
    summary = folder.run(pipeline, start_from="b")
    assert (folder.states(summary), folder.ran) == (["left out", "done", "done"], ["b", "c"])
    assert summary.stages[0].rows == 3
    # The whole again is another attempt, in which nothing has changed.
    assert folder.states(folder.run(pipeline)) == ["unchanged", "unchanged", "skipped"]
    assert actions(folder.plan(pipeline, only="b")) == ["left out", "unchanged", "left out"]


def test_a_stage_after_a_skipped_one_that_is_left_out_is_skipped(folder: Folder) -> None:
    stages = A + "  - {name: b, call: 'MODULE:note', when: rows > 5}\n" + C
    pipeline = folder.pipeline(stages)
    folder.run(pipeline)
    assert folder.states(folder.run(pipeline, only="c")) == ["left out", "left out", "skipped"]


def test_notes_that_are_damaged_or_newer_are_named(folder: Folder) -> None:
    pipeline = folder.pipeline(A)
    folder.run(pipeline)
    storage, uri = own_storage(), folder.store.uri(pipeline.run)
    data = storage.get(uri).data
    for damaged in (b"", b"{}", data[:-20], data.replace(b'"rows":3', b'"rows":4')):
        storage.put(uri, damaged)
        with pytest.raises(StateError, match=pipeline.run) as caught:
            folder.run(pipeline)
        assert "delete it" in str(caught.value.hint)
    other = folder.pipeline(A, "{x: {type: integer, default: 1}}")
    storage.put(folder.store.uri(other.run), data)
    with pytest.raises(StateError, match=f"notes of run {pipeline.run}"):
        folder.run(other)
    storage.delete(uri)
    folder.run(pipeline)
    assert folder.ran == ["a"]


def test_notes_of_two_processes_are_both_kept(folder: Folder) -> None:
    pipeline = folder.pipeline(A + B)
    first = folder.store.begin(pipeline, again=True)
    folder.store.begin(pipeline, again=True)
    note = StageNote(state="done", attempt=1)
    folder.store.note(first, "a", note)
    folder.store.note(first, "b", note)
    [record] = folder.store.all()
    assert set(record.stages) == {"a", "b"} and record.state == "done"


def test_a_reply_that_is_lost_is_no_conflict(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = own_storage()
    losing = [True]
    put_if = storage.put_if

    def lost(uri: str, data: bytes, etag: str) -> None:
        put_if(uri, data, etag)
        if losing and losing.pop():
            raise PreconditionFailedError(uri)

    monkeypatch.setattr(storage, "put_if", lost)
    summary = folder.run(folder.pipeline(A + B))
    assert folder.states(summary) == ["done", "done"] and not losing
    assert summary.attempt == 1
    losing.append(True)
    assert folder.run(folder.pipeline(A + B)).attempt == 2 and not losing


def test_a_stage_that_cannot_be_fingerprinted_stops_all(folder: Folder) -> None:
    with pytest.raises((JobError, TransformNotAllowedError)):
        folder.run(folder.pipeline(A + "  - {name: b, call: 'nowhere_at_all:x'}\n"))
    assert not folder.store.all()
