"""`python -m pipeline.cluster.worker`: a Dask worker as chunkmap wants it."""

from __future__ import annotations

import argparse
import sys

from pipeline.config.masking import mask_text
from pipeline.errors import ChunkmapError
from pipeline.printable import continued, printable


def main(arguments: list[str] | None = None) -> int:
    """Run the worker until it is told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.cluster.worker",
        description="Run a Dask worker of the scheduler that the settings name (dask.scheduler).",
    )
    parser.add_argument("--name", help="by which the cluster knows it (default: its address)")
    parser.add_argument("--host", help="address to listen at (default: towards the scheduler)")
    parser.add_argument(
        "--dashboard-address",
        default=":8788",
        help="of /health and /metrics (default: %(default)s)",
    )
    # As `dask worker` takes it, and as dask-kubernetes therefore gives it.
    parser.add_argument("--dashboard", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--local-directory", help="for temporary files")
    given = parser.parse_args(arguments)
    from pipeline.cluster.serve import serve_worker
    from pipeline.config.settings import load_settings
    from pipeline.logs import set_up

    pages = given.dashboard_address
    try:
        settings = load_settings()
        set_up(settings.logs.format, settings.logs.level)
        return serve_worker(
            settings,
            name=given.name,
            host=given.host,
            pages=pages if ":" in pages else f":{pages}",
            folder=given.local_directory,
        )
    except ChunkmapError as error:
        message = continued(f"error: {error}") + f"\nnext:  {continued(str(error.hint))}"
        print(printable(mask_text(message)), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
