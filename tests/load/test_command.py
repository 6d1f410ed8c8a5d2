"""`chunkmap load` and `load_output`: what they are given, and what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pipeline
from pipeline.cli.load import load
from pipeline.errors import LoadFileError, UsageError
from pipeline.load.records import LoadProgress
from tests.support.published_frames import Frames

OPTIONS: dict[str, Any] = {"into.uri": None, "into.table": None, "into.mode": None}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(capsys: pytest.CaptureFixture[str], text: str) -> bool:
    """Whether the output has this text; runs of spaces count as one."""
    return text in re.sub(r" +", " ", capsys.readouterr().out)


def give(source: str, dry_run: bool = False, as_json: bool = False, **options: str) -> None:
    named = {f"into.{name}": value for name, value in options.items()}
    load(source, OPTIONS | named, None, dry_run=dry_run, as_json=as_json)


def test_an_output_is_loaded_and_shown(output: Frames, capsys: pytest.CaptureFixture[str]) -> None:
    output.add(pl.DataFrame({"id": [1, 2]}))
    give(output.uri, uri="a.duckdb", table="t", dry_run=True)
    assert shown(capsys, "would load 1 commit, 2 rows (append)")
    assert not Path("a.duckdb").exists()
    give(output.uri, uri="a.duckdb", table="t")
    assert shown(capsys, "t (created)")
    give(output.uri, uri="a.duckdb", table="t")
    assert shown(capsys, "Nothing to load: table t has all of manifest 1 (1 commit).")


def test_a_file_is_loaded_and_shown_as_json(
    output: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    output.add(pl.DataFrame({"id": [1, 2]}))
    Path("load.yaml").write_text(
        f"name: x\ninput: {{uri: '{output.uri}'}}\ninto: {{uri: a.duckdb, table: t}}\n"
    )
    give("load.yaml", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 2 and found["created"] and found["manifest"] == 1
    give("load.yaml", as_json=True, mode="replace")
    assert json.loads(capsys.readouterr().out)["rows"] == 0


def test_a_half_given_load_is_refused(output: Frames) -> None:
    with pytest.raises(UsageError, match="name the database, or another") as caught:
        give(output.uri)
    assert f"chunkmap load {output.uri} --into" in (caught.value.hint or "")
    with pytest.raises(LoadFileError, match="names no destination"):
        give(output.uri, uri="mysql://host/db")
    with pytest.raises(UsageError, match="--set"):
        load(output.uri, OPTIONS | {"into.uri": "a.duckdb"}, None, changes=["a=1"],
             dry_run=False, as_json=False)  # fmt: skip


def test_programs_load_too(output: Frames) -> None:
    output.add(pl.DataFrame({"id": [1, 2]}))
    seen: list[int] = []

    def listen(now: LoadProgress) -> None:
        seen.append(now.rows)

    first = pipeline.load_output(
        output.uri,
        "a.duckdb",
        "t",
        mode="merge",
        key="id",
        listen=listen,
    )
    assert first.rows == seen[-1] == 2
    assert pipeline.load_output(output.uri, "duckdb:a.duckdb", "t").rows == 0


def test_a_delta_table_is_loaded_and_shown(
    output: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    output.add(pl.DataFrame({"id": [1, 2]}))
    give(output.uri, uri="delta:lake/t")
    text = re.sub(r" +", " ", capsys.readouterr().out)
    for part in ("loaded 1 commit, 2 rows (append)", "table created", "into Delta table file://"):
        assert part in text
    give(output.uri, uri="delta:lake/t")
    assert shown(capsys, "lake/t/ has all of manifest 1 (1 commit).")
