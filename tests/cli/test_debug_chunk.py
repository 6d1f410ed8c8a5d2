"""`--debug-chunk N` maps one chunk in the terminal, and opens the debugger where it fails."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.cli.debug import debug_chunk
from pipeline.errors import TransformError, UsageError
from pipeline.runs.driver.debug import find_chunk, user_traceback
from pipeline.runs.driver.summary import RunIncompleteError
from tests.support.small import Small

CODE = """
import polars as pl

def check(values):
    most = values.max()
    if most == 3:
        raise ValueError("three")
    return values

def fails(frame):
    return frame.with_columns(pl.col("id").map_batches(check, return_dtype=pl.Int64))

def by_polars(frame):
    step = frame.with_columns(text=pl.col("id").cast(pl.String))
    return step.with_columns(pl.col("text").str.to_date("%Y-%m-%d"))
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(4):
        small.write(f"{number}.parquet", pl.DataFrame({"id": [number]}))
    return small


def test_a_chunk_that_works_is_mapped_and_nothing_is_stored(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    assert debug_chunk(small.job("fails"), small.settings, 2) == 0
    said = capsys.readouterr().out
    assert f"chunk 2: {small.input}2.parquet, rows 0 to 0" in said
    assert "it works here: 1 planned rows, 1 rows out" in said
    assert not (small.root / "out").exists()
    assert not (small.root / "out.chunkmap").exists()


def test_it_takes_the_plan_of_the_failed_run(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunIncompleteError) as caught:
        small.run(small.job("fails"))
    run = caught.value.summary.run
    assert f"chunkmap retry {run} --debug-chunk N" in str(caught.value.hint)
    small.write("00.parquet", pl.DataFrame({"id": [9]}))  # Would be chunk 1 of a new plan.
    assert debug_chunk(small.job("fails"), small.settings, 1) == 0
    assert f"chunk 1 of run {run}: {small.input}1.parquet" in capsys.readouterr().out
    with pytest.raises(UsageError, match="the plan has 4, from 0 to 3"):
        debug_chunk(small.job("fails"), small.settings, 4)
    with pytest.raises(TransformError, match="three"):  # Without a terminal.
        debug_chunk(small.job("fails"), small.settings, 3)


def test_the_debugger_is_at_the_users_last_frame(small: Small) -> None:
    found = find_chunk(small.job("fails"), small.settings, small.storage, 3)
    with pytest.raises(TransformError) as caught:
        found.map()
    trace = user_traceback(caught.value, small.settings.transforms.allowed)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_code.co_name == "check"
    assert trace.tb_frame.f_locals["most"] == 3


def test_a_query_that_fails_in_polars_is_stepped_through(small: Small) -> None:
    found = find_chunk(small.job("by_polars"), small.settings, small.storage, 0)
    with pytest.raises(TransformError) as caught:
        found.map()
    assert user_traceback(caught.value, small.settings.transforms.allowed) is None
    frames = []

    def run(call: Callable[..., pl.LazyFrame], frame: pl.LazyFrame) -> None:
        frames.append(frame.collect())
        call(frame)

    found.step(run)
    assert frames[0]["id"].to_list() == [0]


def test_in_a_terminal(small: Small) -> None:
    job = small.job("fails")
    (small.root / "job.yaml").write_text(job.to_yaml())
    terminal, end = pty.openpty()
    call = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", call, "run", "job.yaml", "--debug-chunk", "3"]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        os.write(terminal, b"p most\np values.to_list()\nq\n")
        said = b""
        while True:
            try:
                part = os.read(terminal, 65536)
            except OSError:
                break  # The terminal's other side is closed.
            said += part
            if not part:
                break
        assert process.wait(60) == 1
    os.close(terminal)
    text = said.decode()
    assert "ValueError: three" in text
    assert "-> raise ValueError" in text
    assert "[3]" in text
