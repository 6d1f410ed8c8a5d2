"""The load file: what it accepts, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from pipeline.config.file_examples import nested
from pipeline.config.load_examples import LOAD_EXAMPLES, load_schema
from pipeline.config.load_file import (
    LoadFile,
    duckdb_path,
    load_file_of,
    parse_load_file,
    read_load_file,
    split_table,
)
from pipeline.errors import LoadFileError

TEXT = """\
name: sales
input: {uri: s3://b/out/}
into:
  uri: a.duckdb
  table: finance.sales
"""


SCHEMA = load_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_describes_each_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for section in (SCHEMA, *SCHEMA["$defs"].values()):
        for name, field in section["properties"].items():
            if "$ref" not in json.dumps(field):
                assert field.get("description") and field.get("examples"), name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("uri: a.duckdb", "url: a.duckdb"),
        ("uri: a.duckdb", "uri: a.duckdb\n  mode: upsert"),
        ("uri: a.duckdb", "uri: https://h/\n  http: {rows: 0}"),
        ("name: sales", "name: a/b"),
        ("name: sales", "nam: sales"),
    ],
)
def test_what_the_schema_can_refuse_it_refuses(old: str, new: str) -> None:
    with pytest.raises(LoadFileError):
        parse_load_file(TEXT.replace(old, new))
    assert list(CHECK.iter_errors(yaml.safe_load(TEXT.replace(old, new))))
    assert not list(CHECK.iter_errors(yaml.safe_load(TEXT)))


@pytest.mark.parametrize("key", LOAD_EXAMPLES.texts)
def test_examples_are_accepted_and_written_again(key: str) -> None:
    values = {name: yaml.safe_load(text) for name, text in LOAD_EXAMPLES.values(key).items()}
    file = LoadFile.model_validate(nested(values))
    assert not list(CHECK.iter_errors(nested(values)))
    assert parse_load_file(file.to_yaml()) == file
    assert yaml.safe_load("\n".join(LOAD_EXAMPLES.lines(key)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("a.duckdb", "mysql://h/d", "load.yaml:4: `into.uri`.*names no destination"),
        ("a.duckdb", "'duckdb:'", "names no destination"),
        ("finance.sales", "a.b.c", "load.yaml:5: `into.table`: 'a.b.c' is neither a table"),
        ("s3://b/out/", "s3://k:secret@b/out/", "credentials"),
        ("table: finance.sales", "tabel: x", "did you mean `table`"),
        ("  uri: a.duckdb", "  uri: a.duckdb\n  mode: merge", "mode merge needs `key`"),
        ("  uri: a.duckdb", "  uri: a.duckdb\n  key: [id]", "mode merge needs `key`"),
        ("  uri: a.duckdb", "  uri: a.duckdb\n  mode: upsert", "expected 'append'"),
        ("  uri: a.duckdb", "  uri: a.duckdb\n  mode: merge\n  key: [a, a]", "a column twice"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, says: str) -> None:
    with pytest.raises(LoadFileError, match=says) as caught:
        parse_load_file(TEXT.replace(old, new))
    assert "secret" not in str(caught.value)


def test_options_replace_values_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "load.yaml"
    path.write_text(TEXT)
    file = read_load_file(path, {"into.mode": "replace", "into.key": (), "input.version": None})
    assert (file.into.mode, file.into.table) == ("replace", "finance.sales")
    assert read_load_file(path, {}, ["into.table=t"]).into.table == "t"
    with pytest.raises(LoadFileError, match=r"`input` is missing"):
        load_file_of({"name": "x", "into.uri": "a.duckdb", "into.table": "t"})


def test_names_and_paths_are_read() -> None:
    assert split_table("finance.sales") == ("finance", "sales")
    assert split_table("sales") == (None, "sales")
    assert duckdb_path("duckdb:///tmp/a.db") == Path("/tmp/a.db")
    assert duckdb_path("duckdb:/tmp/a.db") == Path("/tmp/a.db")
    assert duckdb_path("a.duckdb") == Path.cwd() / "a.duckdb" == duckdb_path("duckdb:a.duckdb")
