"""A disk that is full, on a worker that stages to local files."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.errors import StorageError
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.storage import own_storage
from tests.support import plain

FILES, ROWS = 8, 20_000
TRANSFORM = "def same(frame):\n    return frame\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_fails_chunks_and_room_lets_them_go_on(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = f"transforms_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{module}.py").write_text(TRANSFORM)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text(f"transforms: {{allow: [{module}]}}\n")
    frames = []
    for number in range(FILES):
        ids = pl.int_range(number * ROWS, (number + 1) * ROWS, eager=True)
        # Noise, so that compression does not make it small.
        frames.append(pl.DataFrame({"id": ids, "noise": ids.hash(seed=1)}))
        path = tmp_path / "in" / f"{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        frames[-1].write_parquet(path)
    output = small_disk / "out"
    job = Job.model_validate(
        {
            "name": "full",
            "input": {"uri": str(tmp_path / "in")},
            "chunks": {"per_file": True},
            "transform": f"{module}:same",
            "output": {"uri": str(output)},
            "rounds": 1,
            "retries": 0,
        }
    )
    settings = load_settings(overrides={"state_dir": str(tmp_path / ".chunkmap")})
    storage = own_storage()
    # The state is on the same disk: the run itself ends where it can note nothing more.
    with pytest.raises((RunIncompleteError, StorageError)) as failure:
        run_serially(job, settings, storage)
    assert "No space left on device" in str(failure.value) or failure.type is RunIncompleteError
    assert not list(output.glob("**/*.parquet"))

    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    # The driver could not say that it is gone, and its process is alive: it is this one.
    summary = run_serially(job, settings, storage, ResumeOptions(take_over=True))
    assert summary.state == "done"
    assert_frame_equal(plain.published(output), pl.concat(frames))
