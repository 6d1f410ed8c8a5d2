"""HEAD.json that is gone, old or damaged: every command refuses, and repair puts it right."""

from __future__ import annotations

import json
from collections.abc import Callable
from unittest.mock import patch

import pytest

from pipeline.errors import StateError
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.publish import publish_run
from pipeline.storage.documents import seal_json
from pipeline.table.errors import DamagedStateError, HeadBehindError, ManifestConflictError
from pipeline.table.publish import prepare_output, rollback
from pipeline.table.repair import _give_up_forgotten, diagnose, repair
from pipeline.table.retention import locate
from tests.support.runs_by_hand import plan_of
from tests.table.conftest import Output

PLAN, OTHER = plan_of(3, folders=(0, 1)), plan_of(4, folders=(1, 2))

COMMANDS: dict[str, Callable[[Output], object]] = {
    "run": lambda output: prepare_output(output.table_log, "append", "0" * 16),
    "clean": lambda output: vacuum(output.storage, output.uri, older_than=0.0),
    "rollback": lambda output: rollback(output.table_log),
    "verify": lambda output: verify_output(output.storage, output.uri),
    "history": lambda output: output.table_log.head(),
    "scan": lambda output: locate(output.table_log, output.table_log.manifest()),
}


def with_a_past(output: Output) -> bytes:
    """Three manifests; returns the pointer as it was at the first."""
    output.publish(PLAN, "append", "a")
    old = output.storage.get(output.table_log.head_file.uri).data
    output.publish(OTHER, "overwrite", "b")
    output.publish(PLAN, "append", "c")
    return old


@pytest.mark.sampled(5)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["gone", "old"])
def test_every_command_refuses_and_changes_nothing(output: Output, kind: str, command: str) -> None:
    old, uri = with_a_past(output), output.table_log.head_file.uri
    output.storage.delete(uri) if kind == "gone" else output.storage.put(uri, old)
    before = output.snapshot()
    with pytest.raises(HeadBehindError, match="manifest 3 is stored") as caught:
        COMMANDS[command](output)
    assert (caught.value.newest, caught.value.current) == (3, None if kind == "gone" else 1)
    assert f"chunkmap repair {output.uri}" in str(caught.value.hint)
    assert output.snapshot() == before


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", ["gone", "old", "empty", "cut", "not JSON", "of another type"])
def test_repair_points_to_the_newest_manifest(output: Output, kind: str) -> None:
    old, uri = with_a_past(output), output.table_log.head_file.uri
    files, named = output.visible(), output.named()
    now = output.storage.get(uri).data
    match kind:
        case "gone":
            output.storage.delete(uri)
        case "old":
            output.storage.put(uri, old)
        case _:
            bad = {"empty": b"", "cut": now[:20], "not JSON": b"\xff\x00", "of another type": b"[]"}
            output.storage.put(uri, bad[kind])
            with pytest.raises(DamagedStateError, match=uri):
                output.table_log.head()
    before = output.snapshot()
    found = diagnose(output.table_log)
    assert [problem.situation for problem in found.problems] == [
        {"gone": "head missing", "old": "head behind"}.get(kind, "head damaged")
    ]
    assert output.snapshot() == before, "to diagnose is to look"
    assert repair(output.table_log)[-1].problems == ()
    assert (output.visible(), output.named()) == (files, named)
    assert verify_output(output.storage, output.uri).problems == ()
    run = output.publish(OTHER, "append", "d")
    assert run.ledger.published() == output.table_log.head()[0].current == 5


@pytest.mark.sampled(3)
def test_versions_that_were_kept_can_still_be_gone_back_to(output: Output) -> None:
    output.publish(PLAN, "overwrite", "a")
    output.publish(OTHER, "overwrite", "b")
    output.storage.delete(output.table_log.head_file.uri)
    repair(output.table_log)
    # The repair's manifest has the files of the second: one before is the first.
    assert rollback(output.table_log).rollback_of == 1
    assert verify_output(output.storage, output.uri).problems == ()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["head missing", "head behind", "claim lost"])
def test_repair_keeps_the_files_that_a_dead_publisher_did_not_move(
    output: Output, kind: str
) -> None:
    output.publish(PLAN, "overwrite", "a")
    old = output.storage.get(output.table_log.head_file.uri).data
    with patch("pipeline.table.settle.move_replaced"):
        output.publish(OTHER, "overwrite", "b")
    match kind:
        case "head missing":
            output.storage.delete(output.table_log.head_file.uri)
        case "head behind":
            output.storage.put(output.table_log.head_file.uri, old)
        case _:
            _give_up_forgotten(output.table_log)
    repair(output.table_log)
    assert rollback(output.table_log).rollback_of == 1
    assert verify_output(output.storage, output.uri).problems == ()


@pytest.mark.sampled(3)
def test_a_pointer_with_a_claim_that_explains_the_manifest_is_rolled_forward(
    output: Output,
) -> None:
    output.publish(PLAN, "append", "a")
    run = output.run(OTHER, "append", "b")
    run.complete()
    claims: list[bytes] = []
    move = output.storage.put_if

    def note(uri: str, data: bytes, etag: str) -> None:
        move(uri, data, etag)
        claims.append(data)

    output.storage.put_if = note  # type: ignore[method-assign]
    publish_run(output.storage, run.ledger)
    output.storage.put_if = move  # type: ignore[method-assign]
    output.storage.put(output.table_log.head_file.uri, claims[0])
    assert prepare_output(output.table_log, "append", "0" * 16).number == 2
    assert output.visible() == output.named()


@pytest.mark.sampled(3)
def test_a_new_output_over_old_state_is_refused(output: Output) -> None:
    """Files and pointer removed by hand: the old manifests must not be adopted."""
    with_a_past(output)
    output.storage.delete(output.table_log.head_file.uri)
    for key in output.visible():
        output.storage.delete(output.uri + key)
    with pytest.raises(HeadBehindError):
        prepare_output(output.table_log, "error", "0" * 16)
    [problem] = repair(output.table_log)[-1].problems
    assert (problem.situation, problem.action) == ("head missing", "")
    assert output.table_log.state in problem.advice


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ["manifests/3.json", "commits/{run}.arrow"])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_damaged_manifests_and_commit_records_are_named(
    output: Output, name: str, damage: str
) -> None:
    with_a_past(output)
    uri = output.table_log.state + name.format(run=output.table_log.manifest().commits[-1].run)
    data = output.storage.get(uri).data
    bad = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "flipped": bytes([data[0] ^ 0xFF]) + data[1:],
    }[damage]
    output.storage.put(uri, bad)
    for command in ("verify", "clean", "scan"):
        with pytest.raises(StateError, match=uri):
            COMMANDS[command](output)
    with pytest.raises(StateError, match=uri):
        diagnose(output.table_log)


@pytest.mark.sampled(3)
def test_formats_of_a_newer_release_are_refused(output: Output) -> None:
    with_a_past(output)
    for uri in (output.table_log.state + "manifests/3.json", output.table_log.head_file.uri):
        data = output.storage.get(uri).data
        said = {**json.loads(data), "version": 9}
        del said["sha256"]
        output.storage.put(uri, seal_json(json.dumps(said).encode()))
        with pytest.raises(StateError, match="format 9"):
            output.table_log.manifest()
        output.storage.put(uri, data)


def test_another_manifest_of_the_same_number_is_never_adopted(output: Output) -> None:
    with_a_past(output)
    table_log = output.table_log
    commits = table_log.manifest(3).commits
    assert table_log.write_manifest(2, commits).number == 3, "the same once more is no conflict"
    with pytest.raises(ManifestConflictError, match=r"manifests/3\.json"):
        output.table_log.write_manifest(2, commits[:-1])
