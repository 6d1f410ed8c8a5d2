"""What a plan is expected to take, before and after a run of the same transform."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.config.job import Job, parse_job
from pipeline.config.settings import load_settings
from pipeline.runs.driver.estimate import estimate
from pipeline.runs.driver.plan import plan_input
from pipeline.runs.driver.run import run_serially
from pipeline.storage import own_storage


def job(folder: Path, transform: str = "identity") -> Job:
    return parse_job(
        f"""
name: expected
input: {{uri: {folder}/in/}}
chunks: {{per_file: true}}
transform: benchmarks.transforms:{transform}
output: {{uri: {folder}/out/}}
"""
    )


def test_an_earlier_run_tells_the_time_and_sizes_tell_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "benchmarks.transforms")
    (tmp_path / "in").mkdir()
    for number in range(6):
        frame = pl.DataFrame({"id": range(1000), "n": [float(number)] * 1000})
        frame.write_parquet(tmp_path / "in" / f"{number}.parquet")
    settings, storage = load_settings(), own_storage()
    own = job(tmp_path)
    plan = plan_input(own, settings, storage).result.plan
    before = estimate(storage, own, plan)
    assert (before.seconds, before.workers, before.run) == (None, None, None)
    chunks = list(plan.chunks())
    largest = max(c.decoded_bytes for c in chunks), max(c.stored_bytes for c in chunks)
    assert before.memory_bytes == 3 * largest[0] + largest[1]
    summary = run_serially(own, settings, storage)
    after = estimate(storage, own, plan)
    assert after.run == summary.run
    assert after.workers == 1
    assert after.seconds is not None
    assert after.seconds > 0
    half = estimate(storage, own, plan_input(halved(own), settings, storage).result.plan)
    assert half.seconds == pytest.approx(after.seconds / 2)
    assert estimate(storage, job(tmp_path, "row_map"), plan).seconds is None


def halved(job: Job) -> Job:
    fewer = job.input.model_copy(update={"exclude": ("[345].parquet",)})
    return job.model_copy(update={"input": fewer})
