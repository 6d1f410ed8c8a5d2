"""`chunkmap demo`: the main job from nothing to a verified output, on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import stack
from pipeline.cli.running import run_job
from pipeline.cli.screen import notes, quiet_libraries
from pipeline.cli.states import verify
from pipeline.errors import StackError
from pipeline.job import Job, load_job
from pipeline.settings import Settings, load_settings
from pipeline.storage import open_storage

JOB = Path("conf/jobs/demo.yaml")
SCALE_FACTOR = 1
"""TPC-H lineitem has 6 million rows at scale factor 1."""
FILES = 8


def demo(environment: str | None, *, as_json: bool) -> int:
    """Run the demo; returns the exit code."""
    quiet_libraries()
    job = load_job(JOB)
    with _stack(environment) as settings:
        if settings.prefect.api_url:
            notes.print(f"Prefect UI: {settings.prefect.api_url.removesuffix('/api')}")
        _generate(job, settings)
        run_job(job, settings, str(JOB), as_json=as_json)
        # With --json there is one object on stdout, and it is the run's.
        return verify(job.output.uri, environment, quiet=as_json)


@contextmanager
def _stack(environment: str | None) -> Iterator[Settings]:
    """The embedded stack, stopped afterwards unless it ran before."""
    before = load_settings(environment)
    ran = all(one.state == "running" for one in stack.status(before))
    stack.up(before, notes.print)
    try:
        yield load_settings(environment)
    finally:
        if not ran:
            stack.down(before, notes.print)


def _generate(job: Job, settings: Settings) -> None:
    """Put TPC-H lineitem into S3, unless it is there."""
    storage = open_storage(settings)
    target = job.input.uri[0]
    if len(storage.objects(target)) == FILES:
        notes.print(f"TPC-H lineitem is in {target} already")
        return
    tool = shutil.which("tpchgen-cli", path=str(Path(sys.executable).parent))
    if tool is None:
        raise StackError("tpchgen-cli is not installed", hint="pip install 'chunkmap[local]'")
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="chunkmap-") as folder:
        command = [tool, "parquet", "-s", str(SCALE_FACTOR), "--tables=lineitem"]
        command += [f"--parts={FILES}", f"--output-dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StackError(f"tpchgen-cli failed: {done.stderr.strip()}")
        for path in sorted(Path(folder, "lineitem").iterdir()):
            storage.put(target + path.name, path.read_bytes())
    notes.print(f"TPC-H lineitem generated into {target} in {time.perf_counter() - clock:.1f} s")
