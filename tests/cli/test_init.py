"""`chunkmap init` in an empty folder: what it writes checks and plans as it is."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipeline.config.job_template import Column, Template, name_of_input
from pipeline.errors import UsageError
from tests.support.forks import give

ODD = 'a "quoted"\n\x1b[31m \\ column'


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "sales" / "day=2024-02-29"
    folder.mkdir(parents=True)
    frame = pl.DataFrame({"id": [1, 2], "price": [1.5, 2.5], ODD: ["x", "y"]})
    frame.write_parquet(folder / "a.parquet")
    return tmp_path


def test_it_checks_and_plans_at_once(shop: Path) -> None:
    said = give("init", "sales/", cwd=shop)
    assert said.returncode == 0, said.stderr
    for path in ("sales.yaml", "transforms/sales.py", "conf/base.yaml", "job.schema.json"):
        assert path in said.stdout and (shop / path).is_file()
    assert "4 columns" in said.stdout and "chunkmap check sales.yaml" in said.stdout
    transform = (shop / "transforms" / "sales.py").read_text()
    assert '"price",  # Float64' in transform and "Date, from the folder's name" in transform
    assert "\x1b" not in transform
    assert 'window: {column: "day"}' in (shop / "sales.yaml").read_text()
    checked = json.loads(give("check", "sales.yaml", "--json", cwd=shop).stdout)
    assert checked["schema_in"] == checked["schema_out"]
    assert give("plan", "sales.yaml", cwd=shop).returncode == 0


def test_the_editor_s_schema_is_the_command_s(shop: Path) -> None:
    give("init", "--json", cwd=shop)
    first = (shop / "first.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=job.schema.json"
    stored = json.loads((shop / "job.schema.json").read_text())
    assert stored == json.loads(give("schema").stdout)


def test_a_second_job_leaves_what_is_shared_and_what_is_the_user_s(shop: Path) -> None:
    (shop / "conf").mkdir()
    (shop / "conf" / "base.yaml").write_text("transforms: {allow: [shop]}\n")
    (shop / "job.schema.json").write_text("mine")
    said = json.loads(give("init", "sales", "--name", "class", "--json", cwd=shop).stdout)
    assert said["next"][0] == "add transforms to transforms.allow in conf/base.yaml"
    assert said["written"] == ["class.yaml", "transforms/class_.py", "transforms/__init__.py"]
    assert (shop / "job.schema.json").read_text() == "mine"
    again = give("init", "sales", "--name", "class", cwd=shop)
    assert again.returncode == 2
    assert "class.yaml and transforms/class_.py exist already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("nosuch",), "no object at"),
        (("sales", "--output", "sales/a"), "overlap"),
        (("sales", "--name", "a b"), "`name`"),
        (("gs://b/c",), "has the scheme 'gs'"),
    ],
)
def test_what_cannot_be_a_job_is_refused_and_nothing_written(
    shop: Path, arguments: tuple[str, ...], part: str
) -> None:
    before = sorted(shop.rglob("*"))
    said = give("init", *arguments, cwd=shop)
    assert said.returncode == 2
    assert part in said.stderr and "Traceback" not in said.stderr
    assert sorted(shop.rglob("*")) == before


@pytest.mark.parametrize("name", ["a", "a-b", "2024", "class", "x.y", "no", "1e6"])
@pytest.mark.parametrize("uri", ["s3://b/in/", "s3://b/a b/c", "file:///x/y", "s3://b/#1/: -"])
def test_any_name_and_place_give_a_job_that_parses(name: str, uri: str) -> None:
    columns = [Column("#", "Int64"), Column("ds", str(date), is_partition=True)]
    files = Template(name, uri, columns=columns).files()
    job = yaml.safe_load(files[f"{name}.yaml"])
    module, _, function = job["transform"].partition(":")
    assert f"{module.replace('.', '/')}.py" in files
    code = files[f"{module.replace('.', '/')}.py"]
    compile(code, "transform", "exec")
    assert f"def {function}(" in code
    assert name_of_input(uri)


def test_a_bucket_needs_an_output_elsewhere() -> None:
    with pytest.raises(UsageError, match="would not be valid"):
        Template("a", "s3://b/").files()
