"""The JSON Schema of the job file agrees with what is accepted; each key has an example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from pipeline.config.file_examples import nested
from pipeline.config.job import Job, load_job, parse_job
from pipeline.config.job_examples import EXAMPLES, JOB_EXAMPLES
from pipeline.config.job_schema import job_schema
from pipeline.config.yaml_file import dump_yaml, parse_yaml
from pipeline.errors import JobError
from tests.config.test_job import JOB, LEAST, WINDOW
from tests.contracts.source import ROOT

SCHEMA = job_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def as_json(text: str) -> Any:
    """A job as an editor sees it: dates are text."""
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


def keys(schema: dict[str, Any], above: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in schema["properties"].items():
        options = [field, *field.get("anyOf", [])]
        inner = next((option["$ref"] for option in options if "$ref" in option), None)
        if inner is None:
            found.add(above + name)
        else:
            found |= keys(SCHEMA["$defs"][inner.rpartition("/")[2]], f"{above}{name}.")
    return found


def test_it_is_a_schema_that_describes_each_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert keys(SCHEMA) == set(EXAMPLES)
    sections = [SCHEMA, *SCHEMA["$defs"].values()]
    plain = [
        (name, field)
        for section in sections
        for name, field in section["properties"].items()
        if "$ref" not in json.dumps(field)
    ]
    assert all(field.get("description") and field.get("examples") for _, field in plain)


@pytest.mark.parametrize("key", EXAMPLES)
def test_an_example_is_accepted_by_both(key: str) -> None:
    values = {name: parse_job_value(text) for name, text in JOB_EXAMPLES.values(key).items()}
    text = dump_yaml(nested(values))
    job = parse_job(text)
    assert not list(CHECK.iter_errors(as_json(text)))
    if "." in key or key in ("retries", "params"):
        base = JOB_EXAMPLES.values("name")
        least = {name: values[name] for name in base if name in values and name != key}
        others = {name: values[name] for name in values if name not in (key, *least)}
        without = nested(least | others)
        assert job.model_dump() != (
            Job.model_validate(without).model_dump() if is_valid(without) else None
        ), "an example differs from the default"
    assert yaml.safe_load("\n".join(JOB_EXAMPLES.lines(key)))


def parse_job_value(text: str) -> Any:
    return parse_yaml(f"value: {text}", "example", JobError).data["value"]


def is_valid(data: dict[str, Any]) -> bool:
    try:
        Job.model_validate(data)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        JOB,
        LEAST,
        WINDOW,
        LEAST + "chunk_timeout: 90s\nmax_failures: 5%\n",
        LEAST + "chunk_timeout: 90\nmax_failures: 3\n",
        LEAST.replace("s3://b/in/", "[s3://b/in/, s3://b/more/]"),
        LEAST + "reduce: {combine: 'm:add'}\nparams: {at: 2024-01-01, deep: {a: [1, null]}}\n",
        LEAST.replace("in/}", "in/, filter: [[[a, '<', 1]], [[b, is null]]]}"),
        LEAST.replace("in/}", "in/, filter: null, columns: null}"),
    ],
)
def test_what_is_accepted_the_schema_accepts(text: str) -> None:
    parse_job(text)
    assert not list(CHECK.iter_errors(as_json(text)))


@pytest.mark.parametrize(
    "text",
    [
        JOB.replace("tpch/lineitem/", "x").replace("uri: s3://demo/x", "url: s3://demo/x"),
        JOB.replace("target", "tagret"),
        JOB + "retires: 5\n",
        JOB.replace("128MiB", "lots of"),
        JOB.replace("128MiB", "0"),
        JOB.replace("mode: error", "mode: erorr"),
        JOB.replace('">="', "like"),
        JOB.replace("[[l_shipdate", "[l_shipdate"),
        JOB.replace("examples.revenue:revenue", "examples.revenue"),
        JOB.replace("params: {currency: EUR}", "params: 3"),
        JOB + "retries: many\n",
        JOB + "rounds: 0\n",
        JOB + "max_failures: -1\n",
        LEAST.replace("name: a", "name: a/b"),
        "name: a\n",
    ],
)
def test_what_the_schema_can_refuse_it_refuses(text: str) -> None:
    text = text.replace("1994-01-01]]", "1994-01-01]") if "[[l_" not in text else text
    with pytest.raises(JobError):
        parse_job(text)
    assert list(CHECK.iter_errors(as_json(text)))


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in (ROOT, ROOT / "pipeline", ROOT / "conf")
        for path in sorted(folder.glob("*/**/*.yaml"))
        if "transform:" in path.read_text("utf-8", "replace") and ".venv" not in path.parts
    ],
    ids=lambda path: path.name,
)
def test_the_jobs_of_the_repository_are_accepted(path: Path) -> None:
    load_job(path)
    assert not list(CHECK.iter_errors(as_json(path.read_text())))
