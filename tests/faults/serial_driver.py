"""`python -m tests.faults.serial_driver JOB.yaml`: a driver without Prefect and Dask."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import orjson

from pipeline.config.job import load_job
from pipeline.config.settings import load_settings
from pipeline.errors import ChunkmapError
from pipeline.runs.driver import report, run
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.storage import open_storage


def main(file: str) -> int:
    """Run a job; the exit code is the one that `chunkmap run` would give."""
    settings = load_settings()
    if "LONG" not in os.environ:
        _leave_reports_empty()
    try:
        summary = run_serially(load_job(Path(file)), settings, open_storage(settings))
    except ChunkmapError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if isinstance(error, RunIncompleteError):
            print(orjson.dumps(asdict(error.summary)).decode())
        return error.exit_code
    print(orjson.dumps(asdict(summary)).decode())
    return 0


def _leave_reports_empty() -> None:
    """To import what renders them, and to do so, takes longer than the run."""
    setattr(run, "import_renderers", lambda: None)  # noqa: B010 - imported there, from elsewhere
    for name in ("render_html", "render_json", "render_markdown"):
        setattr(report, name, lambda *_: "{}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
