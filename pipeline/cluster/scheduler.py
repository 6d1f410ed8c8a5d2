"""Run a Dask scheduler with chunkmap's settings: `python -P -m pipeline.cluster.scheduler`."""

from __future__ import annotations

import argparse
import sys

from pipeline.errors import ChunkmapError
from pipeline.masking import mask_text
from pipeline.printable import error_text


def main(arguments: list[str] | None = None) -> int:
    """Run the scheduler until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -P -m pipeline.cluster.scheduler", description="Run a Dask scheduler."
    )
    parser.add_argument(
        "--host", help="address to listen on (default: all with dask.tls, else 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, default=8786, help="port to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--dashboard-address",
        default=":8787",
        help="address of the dashboard, /health and /metrics (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    from pipeline.cluster.serve import serve_scheduler
    from pipeline.config.settings import load_settings
    from pipeline.logs import set_up

    try:
        settings = load_settings()
        set_up(settings.logs.format, settings.logs.level)
        return serve_scheduler(settings, options.host, options.port, options.dashboard_address)
    except ChunkmapError as error:
        print(mask_text(error_text(str(error), error.hint)), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
