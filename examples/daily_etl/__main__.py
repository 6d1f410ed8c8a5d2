"""A daily ETL: an API with pages, checks, PostgreSQL and DuckDB, as one pipeline.

The orders of a day are ingested, page by page; revenue is computed from them, checked and
published, and then loaded into the databases. It can be stopped at any moment and started again,
and a day that is given again is done at once. The shop's API is a part of this program; it wants a
token, and sometimes asks to come back later.

    chunkmap up
    python -m examples.daily_etl 2024-03-05 [--postgres postgresql://user@host/database]
"""

import argparse
import os
from pathlib import Path

from examples.commands import chunkmap
from examples.local_api import serving
from pipeline.examples.shop_api import TOKEN, Shop

PIPELINE = Path(__file__).with_name("pipeline.yaml")


def main() -> None:
    """Bring a day's orders to the databases; tell somebody if that fails."""
    parser = argparse.ArgumentParser(description="A daily ETL.")
    parser.add_argument("day", help="A day in March 2024, such as 2024-03-05.")
    parser.add_argument("--postgres", help="A PostgreSQL database, without password.")
    # The same port each time: orders from another address would be another ingest.
    parser.add_argument("--port", type=int, default=8300, help="Port of the shop's API.")
    options = parser.parse_args()
    words = ["pipeline", "run", PIPELINE, "--date", options.day]
    if options.postgres:
        words += ["--param", "to_postgresql=true", "--param", f"database={options.postgres}"]
    os.environ["SHOP_TOKEN"] = TOKEN
    with serving(Shop, options.port) as api:
        try:
            chunkmap(*words, "--param", f"api={api}")
        except SystemExit as failure:
            print(f"ALARM: daily_etl {options.day} failed with exit code {failure.code}")
            raise


if __name__ == "__main__":
    main()
