"""The pipeline file: stages, parameters, templates, and errors that name the line."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from pipeline.config.expressions import ExpressionError, Value, kind_of
from pipeline.config.ingest import Ingest
from pipeline.config.job import Job, load_job
from pipeline.config.load_file import LoadFile
from pipeline.config.pipeline_examples import (
    PARAMETER_EXAMPLES,
    PIPELINE_EXAMPLES,
    STAGE_EXAMPLES,
    pipeline_schema,
)
from pipeline.config.pipeline_file import (
    Call,
    Parameter,
    Pipeline,
    parse_pipeline,
    read_pipeline,
)
from pipeline.config.templates import fill_text, text_of
from pipeline.config.yaml_file import dump_yaml
from pipeline.errors import JobError, LoadFileError, PipelineFileError

ORDERS = """\
name: orders
files: {uri: "s3://shop/exports/{{ date }}/"}
output: {uri: s3://shop/orders/, mode: append}
"""
TOTALS = """\
name: totals
input:
  uri: s3://shop/orders/
  filter: [[day, "==", "{{ date }}"]]
transform: examples.totals:totals
params: {limit: "{{ limit + 1 }}", note: "for {{ country }}, {{ limit }}"}
output: {uri: s3://shop/totals/}
"""
PIPELINE = """\
name: daily
state: s3://shop/pipelines/daily/
parameters:
  date: date
  limit: {type: integer, default: 10}
  country: {type: string, default: DE}
pipeline:
  - ingest: orders.yaml
  - name: totals
    map: totals.yaml
    when: rows > 0 and country in ["DE", "FR"]
    set: {output.mode: append}
  - load:
      name: warehouse
      input: {uri: s3://shop/totals/}
      into: {uri: a.duckdb, table: totals}
  - call: examples.tell:tell
    params: {until: "{{ date + 1d }}"}
    needs: [totals]
    if_skipped: run
"""
CHECK = jsonschema.Draft202012Validator(pipeline_schema())
LEAST = "name: a\nstate: s3://b/p/\n"


def resolved(folder: Path, text: str = PIPELINE, **values: Any) -> Pipeline:
    (folder / "orders.yaml").write_text(ORDERS)
    (folder / "totals.yaml").write_text(TOTALS)
    return parse_pipeline(text, "daily.yaml", folder).resolve({"date": "2024-03-01", **values})


def test_stages_have_their_definitions(tmp_path: Path) -> None:
    pipeline = resolved(tmp_path, limit="3")
    orders, totals, load, call = pipeline.stages
    assert [s.name for s in pipeline.stages] == ["ingest", "totals", "load", "call"]
    assert [s.needs for s in pipeline.stages] == [(), ("ingest",), ("totals",), ("totals",)]
    assert isinstance(orders.definition, Ingest) and isinstance(load.definition, LoadFile)
    assert orders.definition.files and orders.definition.files.uri == (
        "s3://shop/exports/2024-03-01/",
    )
    job = totals.definition
    assert isinstance(job, Job) and job.output.mode == "append"
    # A template alone keeps the type of its value; in a text it becomes text.
    assert job.params == {"limit": 4, "note": "for DE, 3"}
    assert job.input.filter == ((("day", "==", date(2024, 3, 1)),),)
    assert call.definition == Call("examples.tell:tell", {"until": date(2024, 3, 2)})
    assert call.runs_if_skipped and not load.runs_if_skipped
    assert pipeline.label == "date 2024-03-01, limit 3, country DE"


def test_the_same_parameters_are_the_same_run(tmp_path: Path) -> None:
    first = resolved(tmp_path)
    assert resolved(tmp_path, date=date(2024, 3, 1), limit=10).run == first.run
    assert resolved(tmp_path, limit=11).run != first.run


@pytest.mark.parametrize("value", [5, -2, 0, 2.5, 5.0, 1e22, 1e-7])
def test_a_number_as_text_is_the_same_run(value: float) -> None:
    """As in the command that a hint names: in a template, `5.0` would be another text than `5`."""
    head = LEAST + f"parameters: {{x: {{type: number, default: {value!r}}}}}\n"
    source = parse_pipeline(head + "pipeline: [{call: 'a:b', params: {y: 'at {{ x }}'}}]\n")
    default = source.resolve()
    given = source.resolve({"x": text_of(default.parameters["x"])})
    assert (given.run, given.label) == (default.run, default.label)
    assert given.stages[0].definition == default.stages[0].definition


def test_a_file_is_read_beside_the_pipeline(tmp_path: Path) -> None:
    resolved(tmp_path)
    (tmp_path / "daily.yaml").write_text(PIPELINE)
    source = read_pipeline(tmp_path / "daily.yaml", ["state=s3://other/p/"])
    assert source.resolve({"date": "2024-03-01"}).state == "s3://other/p/"
    (tmp_path / "orders.yaml").unlink()
    with pytest.raises(JobError, match=r"orders\.yaml does not exist"):
        read_pipeline(tmp_path / "daily.yaml").resolve({"date": "2024-03-01"})


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("date", "2024-03-01", date(2024, 3, 1)),
        ("date", date(2024, 3, 1), date(2024, 3, 1)),
        ("integer", "12", 12),
        ("number", "1.5", 1.5),
        ("number", 2, 2),
        ("string", "12", "12"),
        ("boolean", "true", True),
        ("boolean", False, False),
        ("date", "1 March", None),
        ("date", datetime(2024, 3, 1), None),
        ("integer", "1.5", None),
        ("integer", True, None),
        ("number", "nan", None),
        ("number", float("inf"), None),
        ("string", 12, None),
        ("string", "x" * 20_000, None),
        ("boolean", "yes", None),
        ("boolean", 1, None),
    ],
)
def test_values_of_parameters(kind: str, given: object, value: object) -> None:
    text = LEAST + f"parameters: {{x: {kind}}}\npipeline: [{{call: 'a:b'}}]\n"
    source = parse_pipeline(text)
    if value is None:
        with pytest.raises(PipelineFileError, match=r"parameter x: .* is not"):
            source.resolve({"x": given})
    else:
        assert source.resolve({"x": given}).parameters == {"x": value}


def test_a_date_may_be_relative_to_today() -> None:
    text = LEAST + "parameters: {d: {type: date, default: yesterday}}\npipeline: [{call: 'a:b'}]\n"
    before = datetime.now(UTC).date()
    found = parse_pipeline(text).resolve().parameters["d"]
    assert found in (before - timedelta(1), datetime.now(UTC).date() - timedelta(1))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "parameter date has no value"),
        ({"date": "2024-03-01", "limi": 1}, "has no parameter 'limi'"),
    ],
)
def test_missing_and_unknown_parameters(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineFileError, match=says) as caught:
        parse_pipeline(PIPELINE).resolve(given)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "map: totals.yaml",
            "mapp: totals.yaml",
            r"yaml:10: unknown key .*you mean `map`",
        ),
        (
            "map: totals.yaml",
            "load: x.yaml\n    map: x.yaml",
            r"daily\.yaml:9: .*: a stage has one of",
        ),
        ("call: examples", "call: 3", r"daily\.yaml:17:"),
        ("needs: [totals]", "needs: [total]", "needs 'total'.* did you mean totals"),
        ("name: totals\n    map", "name: ingest\n    map", "two stages have the name 'ingest'"),
        ("name: totals\n    map", "name: date\n    map", "cannot have the name 'date'"),
        ("name: totals\n    map", "name: a-b\n    map", r"daily\.yaml:9: `pipeline\[1\]\.name`"),
        ("  limit: {", "  rows: {", "'rows' is a word of conditions"),
        ("  limit: {", "  api_token: {", "looks like a secret"),
        ("default: 10", "default: ten", r"daily\.yaml:5: .*'ten' is not a whole number"),
        ("when: rows > 0", "when: rows >", r"daily\.yaml:11: .*expected a value"),
        ("when: rows > 0", "when: rows > 'a'", r"daily\.yaml:11: .*compares a number"),
        ("when: rows > 0", "when: warehouse.rows > 0", r"daily\.yaml:11: .*unknown name"),
        ('when: rows > 0 and country in ["DE", "FR"]', "when: rows", "compares something"),
        ("- ingest: orders.yaml", "- ingest: orders.yaml\n    when: rows > 0", "unknown name"),
        ("state: s3:", "state: ftp:", r"daily\.yaml:2: `state`"),
        (
            "set: {output.mode: append}",
            "wen: x",
            r"yaml:12: unknown key .*you mean `when`",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, says: str) -> None:
    assert old in PIPELINE
    with pytest.raises(PipelineFileError, match=says):
        parse_pipeline(PIPELINE.replace(old, new), "daily.yaml")


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ("output.mode: append", "output.mood: x", JobError, r"daily\.yaml:12: .*mood"),
        ("output.mode: append", "name.x: 1", JobError, r"daily\.yaml:12: `name` is 'totals'"),
        ("table: totals", "tabel: totals", LoadFileError, r"daily\.yaml:16: .*tabel"),
        ("table: totals", "table: '{{ dat }}'", LoadFileError, r"daily\.yaml:16: .*name `dat`"),
        (
            "s3://shop/pipelines",
            "s3://shop/totals",
            PipelineFileError,
            r"yaml:2: .*of stage totals",
        ),
        ("{{ date + 1d }}", "{{ 1d }}", PipelineFileError, r"daily\.yaml:18: .*duration"),
        ("{{ date + 1d }}", "{{ date", PipelineFileError, r"daily\.yaml:18: .*not closed"),
    ],
)
def test_wrong_definitions_are_named_with_their_line(
    tmp_path: Path, old: str, new: str, error: type[Exception], says: str
) -> None:
    assert old in PIPELINE
    with pytest.raises(error, match=says):
        resolved(tmp_path, PIPELINE.replace(old, new))


def test_a_wrong_template_of_another_file_names_that_file(tmp_path: Path) -> None:
    resolved(tmp_path)
    (tmp_path / "totals.yaml").write_text(TOTALS.replace("{{ date }}", "{{ day }}"))
    source = parse_pipeline(PIPELINE, "daily.yaml", tmp_path)
    with pytest.raises(JobError, match=r"totals\.yaml:4: .*unknown name `day`; known: country"):
        source.resolve({"date": "2024-03-01"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{date}}", date(2024, 3, 1)),
        (" {{ date }}", " 2024-03-01"),
        ("{{ n }}{{ n }}", "33"),
        ("{{ yes }} {{ 'a' }}", "true a"),
        ('{{ "{{" }}', "{{"),
        ('x{{ "}}" }}', "x}}"),
        ("{ date }", "{ date }"),
        ("}}", "}}"),
    ],
)
def test_templates(text: str, value: object) -> None:
    facts: dict[str, Value] = {"date": date(2024, 3, 1), "n": 3, "yes": True}
    assert fill_text(text, facts, {name: kind_of(v) for name, v in facts.items()}) == value


@pytest.mark.parametrize("text", ["{{ }}", "{{ date", "a {{ n }", "{{ x }}", "{{ {{ n }} }}"])
def test_wrong_templates(text: str) -> None:
    with pytest.raises(ExpressionError):
        fill_text(text, {"n": 3}, {"n": "number"})


@pytest.mark.parametrize("key", STAGE_EXAMPLES.texts)
def test_examples_of_stages_are_accepted(key: str) -> None:
    stage = {name: yaml.safe_load(text) for name, text in STAGE_EXAMPLES.values(key).items()}
    before = {"name": "before", "call": "a:b"}
    needs = {"needs": ["before"]} if key == "needs" else {}
    values = {name: yaml.safe_load(text) for name, text in PIPELINE_EXAMPLES.texts.items()}
    data = values | {"pipeline": [before, stage | needs]}
    text = dump_yaml(data)
    assert parse_pipeline(text).file.pipeline[1].kind in stage
    CHECK.validate(yaml.safe_load(text))


def test_the_schema_agrees_with_the_file() -> None:
    jsonschema.Draft202012Validator.check_schema(CHECK.schema)
    CHECK.validate(yaml.safe_load(PIPELINE))
    wrong = yaml.safe_load(PIPELINE.replace("when:", "wen:"))
    assert [list(error.path) for error in CHECK.iter_errors(wrong)] == [["pipeline", 1]]
    for example in PARAMETER_EXAMPLES.texts:
        given = PARAMETER_EXAMPLES.values(example)
        Parameter.model_validate({name: yaml.safe_load(text) for name, text in given.items()})


def test_a_pipeline_is_not_taken_for_a_job(tmp_path: Path) -> None:
    (tmp_path / "daily.yaml").write_text(PIPELINE)
    with pytest.raises(JobError, match=r"daily\.yaml:7: this is a pipeline") as caught:
        load_job(tmp_path / "daily.yaml")
    assert "chunkmap pipeline backfill" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("stage", "needs"),
    [
        ("ingest: {name: a, files: {uri: s3://i/}, output: {uri: s3://o/a/}}", False),
        ("ingest: {name: a, http: {url: 'https://h/', auth: {env: T}}, output: {uri: s3://o/a/}}",
         False),
        ("ingest: {name: a, http: {url: 'https://h/', auth: {secret: t}}, output: {uri: s3://o/a/}}",
         True),
        ("ingest: {name: a, sql: {url: {secret: t}, query: SELECT 1}, output: {uri: s3://o/a/}}",
         True),
        ("load: {name: a, input: {uri: s3://o/a/}, into: {uri: 'postgresql://u@h/d', table: t, "
         "password_block: p}}", True),
        ("load: {name: a, input: {uri: s3://o/a/}, into: {uri: a.duckdb, table: t}}", False),
        ("call: a:b", False),
    ],
)  # fmt: skip
def test_what_needs_prefect(stage: str, needs: bool) -> None:
    pipeline = parse_pipeline(LEAST + f"pipeline:\n  - {stage}\n").resolve()
    assert pipeline.needs_prefect([each.name for each in pipeline.stages]) is needs


def test_a_value_cannot_change_the_structure(tmp_path: Path) -> None:
    evil = "DE', output: {uri: s3://other/} # {{ date }}\n"
    job = resolved(tmp_path, country=evil).stages[1].definition
    assert isinstance(job, Job)
    assert job.params["note"] == f"for {evil}, 10" and job.output.uri == "s3://shop/totals/"
