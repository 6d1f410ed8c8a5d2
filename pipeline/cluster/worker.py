"""Run a Dask worker with chunkmap's settings: `python -P -m pipeline.cluster.worker`."""

from __future__ import annotations

import argparse
import sys

from pipeline.errors import ChunkmapError
from pipeline.masking import mask_text
from pipeline.printable import error_text


def main(arguments: list[str] | None = None) -> int:
    """Run the worker until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -P -m pipeline.cluster.worker",
        description="Run a Dask worker of the scheduler that the settings name (dask.scheduler).",
    )
    parser.add_argument("--name", help="name in the cluster (default: the worker's address)")
    parser.add_argument(
        "--host", help="address to listen on (default: the one facing the scheduler)"
    )
    parser.add_argument(
        "--dashboard-address",
        default=":8788",
        help="address of /health and /metrics (default: %(default)s)",
    )
    # An option of `dask worker` that dask-kubernetes passes.
    parser.add_argument("--dashboard", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--local-directory", help="folder for temporary files")
    options = parser.parse_args(arguments)
    from pipeline.cluster.serve import serve_worker
    from pipeline.config.settings import load_settings
    from pipeline.logs import set_up

    pages = options.dashboard_address
    try:
        settings = load_settings()
        set_up(settings.logs.format, settings.logs.level)
        return serve_worker(
            settings,
            name=options.name,
            host=options.host,
            pages=pages if ":" in pages else f":{pages}",
            folder=options.local_directory,
        )
    except ChunkmapError as error:
        print(mask_text(error_text(str(error), error.hint)), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
