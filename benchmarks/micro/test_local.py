"""How long a first result takes without services: a cold start on ten small local files."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

FILES = 10


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job over ten files, whose output is replaced by each run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "first")
    (tmp_path / "first.py").write_text("def same(lf):\n    return lf\n")
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        pl.DataFrame({"n": range(1000)}).write_parquet(tmp_path / "in" / f"{number}.parquet")
    file = tmp_path / "job.yaml"
    values = {"name": "first", "input": {"uri": "in/"}, "transform": "first:same"}
    file.write_text(json.dumps({**values, "output": {"uri": "out/", "mode": "overwrite"}}))
    return file


def test_first_result_from_a_cold_start(benchmark: BenchmarkFixture, job: Path) -> None:
    program = Path(sys.executable).with_name("chunkmap")
    command = [str(program), "run", str(job), "--local", "--json"]

    def run() -> bytes:
        return subprocess.run([*command, "--replan"], check=True, capture_output=True).stdout

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    measure: Any = benchmark.pedantic
    answer = json.loads(measure(run, rounds=3, warmup_rounds=1))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    benchmark.extra_info["cpu_seconds"] = round(used / 4, 2)
    assert (answer["state"], answer["rows_out"]) == ("done", FILES * 1000)
