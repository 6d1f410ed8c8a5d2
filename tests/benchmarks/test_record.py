import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import ValidationError

from benchmarks.suite.record import SCHEMA_FILE, Record, load_record, records_in, with_results
from tests.support.benchmark_records import around, bad, full_record, record, result


def test_the_schema_is_the_committed_one() -> None:
    committed = json.loads(SCHEMA_FILE.read_text("utf-8"))
    assert Record.model_json_schema() == committed, (
        "records changed: raise SCHEMA_VERSION and write record.schema.json anew"
    )


def test_records_follow_the_schema() -> None:
    schema = json.loads(SCHEMA_FILE.read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads(full_record().model_dump_json()))


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    made = full_record()
    (tmp_path / "a.json").write_text(made.model_dump_json())
    assert load_record(tmp_path / "a.json") == made


def test_the_baseline_is_read_whatever_its_version() -> None:
    assert load_record(SCHEMA_FILE.parent / "baseline.json").complete


def test_records_are_listed_oldest_first(tmp_path: Path) -> None:
    for name, day in (("a", 3), ("b", 1), ("c", 2)):
        (tmp_path / f"{name}.json").write_text(record(day=day).model_dump_json())
    assert [session.created.day for session in records_in(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "change", [{"schema_version": 4}, {"unheard-of": 1}, {"repeat": 0}, {"results": [{}]}]
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    data = json.loads(record().model_dump_json()) | change
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(ValidationError):
        load_record(tmp_path / "a.json")


def test_results_of_the_same_key_are_replaced_and_others_added() -> None:
    first = record(result("w", "chunkmap", [1.0]), bad("w", "polars", "failed", "x"))
    second = with_results(first, [result("w", "polars", [2.0]), result("v", "polars", [3.0])])
    assert [(result.workload, result.subject, result.state) for result in second.results] == [
        ("w", "chunkmap", "ok"),
        ("w", "polars", "ok"),
        ("v", "polars", "ok"),
    ]


def test_costs_are_of_one_task() -> None:
    assert result("ledger", "chunkmap", around(5.0), tasks=1000).samples() == pytest.approx(
        around(0.005)
    )


def test_cold_samples_serve_where_there_are_no_warm_ones() -> None:
    warm = result("w", "chunkmap", [1.0])
    process = warm.processes[0]
    cold = process.model_copy(update={"iterations": process.iterations[:1]})
    assert warm.samples() == [1.0]
    assert warm.model_copy(update={"processes": (cold,)}).samples() == [2.0]
