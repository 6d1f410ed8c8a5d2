"""Files of ingests: what they mean, what is said about wrong ones, and their JSON Schema."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from pipeline.config.file_examples import nested
from pipeline.config.ingest import load_ingest, parse_ingest
from pipeline.config.ingest_examples import INGEST_EXAMPLES, ingest_schema
from pipeline.config.yaml_file import dump_yaml, parse_yaml
from pipeline.errors import JobError

LEAST = """\
name: orders
http: {url: https://shop.example/api/orders}
output: {uri: s3://shop/orders/}
"""
FULL = """\
name: orders
http:
  url: https://shop.example/api/orders
  params: {status: paid, day: 2024-03-01, all: true}
  auth: {env: SHOP_TOKEN}
  records: data
  pages: {by: cursor, parameter: after, path: meta.next}
window: {from: 2024-03-01, to: 2024-03-04, parameters: [since, until]}
types: {at: "datetime[us, UTC]"}
output: {uri: s3://shop/orders/, mode: append}
"""
SCHEMA = ingest_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def as_json(text: str) -> Any:
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


@pytest.mark.parametrize("text", [LEAST, FULL])
def test_an_ingest_is_read_and_written(text: str) -> None:
    ingest = parse_ingest(text)
    assert parse_ingest(ingest.to_yaml()) == ingest
    assert not list(CHECK.iter_errors(as_json(text)))


def test_the_documented_defaults() -> None:
    ingest = parse_ingest(LEAST)
    assert ingest.http is not None
    assert (ingest.schema_, ingest.output.mode, ingest.http.pages.by) == ("pinned", "error", "none")
    assert (ingest.http.retries, ingest.http.concurrency, ingest.http.timeout) == (5, 8, 30.0)


def test_a_window_is_cut_into_steps() -> None:
    window = parse_ingest(FULL.replace("until]", "until], step: 36h")).window
    assert window is not None
    assert [window.values(*step) for step in window.steps()] == [
        (("since", "2024-03-01"), ("until", "2024-03-02")),
        (("since", "2024-03-02"), ("until", "2024-03-04")),
    ]
    assert window.label == "2024-03-01 to 2024-03-04"


def test_a_step_may_end_after_all_dates() -> None:
    text = FULL.replace("2024-03-04", "9999-12-31T12:00").replace("2024-03-01", "9999-01-01")
    window = parse_ingest(text.replace("until]", "until], step: 30d")).window
    assert window is not None
    assert len(window.steps()) == 13
    assert window.steps()[-1][1] == window.to


def test_an_end_that_is_included_is_the_moment_before() -> None:
    window = parse_ingest(FULL.replace("until]", "until], includes_end: true")).window
    assert window is not None
    assert window.values(*window.steps()[0])[1] == ("until", "2024-03-03")
    more = 'until], includes_end: true, format: "%Y-%m-%dT%H:%M:%SZ"'
    window = parse_ingest(FULL.replace("until]", more)).window
    assert window is not None
    assert window.values(*window.steps()[0])[1] == ("until", "2024-03-03T23:59:59Z")


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
def test_seconds_since_1970_do_not_depend_on_the_zone_of_the_machine(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        window = parse_ingest(FULL.replace("until]", 'until], format: "%s.%f %%s"')).window
        assert window is not None
        assert window.values(*window.steps()[0]) == (
            ("since", "1709251200.000000 %s"),
            ("until", "1709510400.000000 %s"),
        )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_window_is_set_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "ingest.yaml"
    path.write_text(FULL, "utf-8")
    window = load_ingest(path, ["window.from=2024-03-02", 'window.to="2024-03-02T12:00"']).window
    assert window is not None
    assert (window.from_, window.to) == (
        datetime(2024, 3, 2, tzinfo=UTC),
        datetime(2024, 3, 2, 12, tzinfo=UTC),
    )
    with pytest.raises(JobError, match=r"--set window.to: `window.to`: 'soon' is not a date"):
        load_ingest(path, ["window.to=soon"])


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("  url: ", "  uri: ", "ingest.yaml:3: unknown key `http.uri`; did you mean `url`?"),
        ("by: cursor", "by: cursors", "ingest.yaml:7: `http.pages.by`: expected 'none', 'page'"),
        (", path: meta.next", "", "ingest.yaml:7: `http.pages`: `by: cursor` needs `path`"),
        ("{env: SHOP_TOKEN}", "{}", "ingest.yaml:5: `http.auth`: set `env` or `secret`"),
        ("{env: SHOP_TOKEN}", "{env: A, value: Bearer x}", "`value` must contain {secret}"),
        ("status: paid", "api_key: abc", "'api_key' looks like a secret"),
        ("https://shop", "https://me:pw@shop", "must not hold credentials"),
        ("https://shop.example/api/orders", "ftp://a/b", "is not an address"),
        ("/api/orders", "/api/orders?a=1", "parameters are in http.params"),
        ("2024-03-04", "2024-03-01", "which is not after its beginning"),
        ("2024-03-01, to", "0001-01-01T00:00:00+05:00, to", "is not a date such as 2024-03-01"),
        ("2024-03-01, to", "'0001-01-01T00:00+05:00', to", "is not a date such as 2024-03-01"),
        ("until]", "until], step: 1ms", "steps are more than 10,000"),
        ("[since, until]", "[since, status]", "query parameter 'status' is set twice"),
        ("[since, until]", "[since, since]", "query parameter 'since' is set twice"),
        ('"datetime[us, UTC]"', "datetime", "ingest.yaml:9: `types.at`: 'datetime' is not a type"),
        ('"datetime[us, UTC]"', "binary", "no type that values of JSON are read as"),
        ('"datetime[us, UTC]"', '"list[datetime[us, UTC]]"', "no type that values of JSON are"),
        ("mode: append", "mode: overwrite-partitions", "needs `partition_by`"),
        ("s3://shop/orders/", "s3://shop/", "is a whole bucket"),
        ("name: orders", "name: a/b", "ingest.yaml:1: `name`"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, complaint: str) -> None:
    assert old in FULL
    with pytest.raises(JobError) as caught:
        parse_ingest(FULL.replace(old, new))
    assert complaint in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["url: https://me:pw@h/", "headers: {X-Api-Key: pw}"])
def test_secrets_in_a_file_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_ingest(LEAST.replace("url: https://shop.example/api/orders", text))
    assert "pw" not in str(caught.value)


ROWS = """\
name: orders
sql: {url: {env: SHOP}, table: orders, incremental: {column: at, lag: 5m}}
output: {uri: s3://shop/orders/, mode: append}
"""


@pytest.mark.parametrize(
    "text",
    [
        ROWS,
        ROWS.replace("{env: SHOP}", "sqlite:shop.db"),
        "name: a\nsource: shop.rows:read\noutput: {uri: s3://shop/a/}\n",
    ],
)
def test_an_ingest_of_rows_is_read_and_written(text: str) -> None:
    ingest = parse_ingest(text)
    assert parse_ingest(ingest.to_yaml()) == ingest
    assert ingest.kind == ("source" if "source" in text else "sql")
    assert not list(CHECK.iter_errors(as_json(text)))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("table: orders", "table: orders, query: SELECT 1", "set `table` or `query`"),
        ("table: orders", "table: a.b.c", "is neither a table nor schema.table"),
        ("{env: SHOP}", "{env: SHOP, secret: shop}", "set one of `value`, `env` and `secret`"),
        ("{env: SHOP}", "postgresql://me:pw@h/d", "has a password in it"),
        ("{env: SHOP}", "'postgresql://me@h/d?password=pw'", "has a password in it"),
        ("{env: SHOP}", "postgresql://me:a/pw@h/d", "encode characters of the password"),
        ("{env: SHOP}", "mysql://h/d", "a function that yields its rows"),
        ("mode: append", "mode: overwrite", "`sql.incremental` needs `output.mode: append`"),
        ("lag: 5m", "lag: 0s", "greater than 0"),
        ("sql:", "source: a:b\nsql:", "set one of `http`, `files`, `sql` and `source`"),
        ("sql:", "source: {function: a:b, params: {token: pw}}\nfiles:", "looks like a secret"),
    ],
)
def test_what_is_wrong_with_rows_is_named(old: str, new: str, complaint: str) -> None:
    assert old in ROWS
    with pytest.raises(JobError) as caught:
        parse_ingest(ROWS.replace(old, new))
    assert complaint in str(caught.value) and "pw" not in str(caught.value)


@pytest.mark.parametrize("key", INGEST_EXAMPLES.texts)
def test_an_example_is_accepted_by_both(key: str) -> None:
    values = {
        name: parse_yaml(f"value: {text}", "example", JobError).data["value"]
        for name, text in INGEST_EXAMPLES.values(key).items()
    }
    text = dump_yaml(nested(values))
    parse_ingest(text)
    assert not list(CHECK.iter_errors(as_json(text)))
    assert yaml.safe_load("\n".join(INGEST_EXAMPLES.lines(key)))


def test_the_schema_describes_each_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    sections = [SCHEMA, *SCHEMA["$defs"].values()]
    plain = [
        (name, field)
        for section in sections
        for name, field in section["properties"].items()
        if "$ref" not in json.dumps(field)
    ]
    assert len(plain) == len(INGEST_EXAMPLES.texts)
    assert all(field.get("description") and field.get("examples") for _, field in plain)


@pytest.mark.parametrize(
    "text", [LEAST + "typs: {}\n", LEAST.replace("name: orders", "name: a/b"), "name: a\n"]
)
def test_what_the_schema_can_refuse_it_refuses(text: str) -> None:
    assert list(CHECK.iter_errors(as_json(text)))
