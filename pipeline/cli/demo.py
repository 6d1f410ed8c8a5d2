"""Run the demo job from start to verified output on this machine: `chunkmap demo`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pipeline.cli.output import notes, print_json, say
from pipeline.cli.run import run_job, show
from pipeline.cli.status import verify
from pipeline.cluster import local
from pipeline.config.job import Job, load_job
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import StackError
from pipeline.flows.server import ui_address
from pipeline.runs.admin.verify import verify_output
from pipeline.storage import open_storage

JOB = Path(__file__).parents[1] / "examples" / "demo.yaml"
SCALE_FACTOR = 1
"""TPC-H lineitem has 6 million rows at scale factor 1."""
FILES = 8


def demo(environment: str | None, *, as_json: bool) -> int:
    """Run the demo; returns the exit code."""
    job = load_job(JOB)
    with _stack(environment) as settings:
        if settings.prefect.api_url:
            login = local.prefect_login(settings)
            page = ui_address(settings.prefect.api_url)
            _note(f"Prefect UI: {page} ({login})" if login else f"Prefect UI: {page}")
        _generate(job, settings)
        outcome = run_job(job, settings, "chunkmap demo", quiet=as_json)
        if not as_json:
            show(outcome)
            return verify(job.output.uri, environment)
        found = verify_output(open_storage(settings), job.output.uri)
        print_json(outcome.to_dict() | {"verified": asdict(found)})
        return 1 if found.problems else 0


def _note(text: str) -> None:
    say(text, console=notes)


@contextmanager
def _stack(environment: str | None) -> Iterator[Settings]:
    """Start the local services if the settings need them, and stop them unless they ran before."""
    before = load_settings(environment)
    if local.is_elsewhere(before):
        yield before
        return
    ran = all(service.state == "running" for service in local.status(before))
    local.up(before, _note)
    try:
        yield load_settings(environment)
    finally:
        if not ran:
            local.down(before, _note)


def _generate(job: Job, settings: Settings) -> None:
    """Generate TPC-H lineitem into S3, unless it exists."""
    storage = open_storage(settings)
    target = job.input.uri[0]
    if len(storage.objects(target)) == FILES:
        _note(f"TPC-H lineitem is in {target} already")
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
    _note(f"TPC-H lineitem generated into {target} in {time.perf_counter() - clock:.1f} s")
