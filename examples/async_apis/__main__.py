"""A hundred requests of an API at once, against one after the other.

Exchange rates come from an API that has an answer per day, and takes a while for each. An ingest
asks for many days at a time (`http.concurrency`), in one thread, and stores each answer as it
comes: after an interruption it asks for the missing ones. The API is a part of this program.

    chunkmap up
    python -m examples.async_apis [--latency 0.1]
"""

import argparse
import time
from pathlib import Path

import polars as pl
from typing_extensions import override

from examples.local_api import JsonApi, serving
from pipeline import scan_output
from pipeline.config.ingest import load_ingest
from pipeline.ingest import IngestOptions, ingest

HERE = Path(__file__).parent


class Rates(JsonApi):
    """Has the rates of a day: GET /?from=2024-01-01&to=2024-01-02."""

    latency = 0.1
    """Seconds that an answer takes."""

    @override
    def document(self, params: dict[str, str]) -> object:
        time.sleep(self.latency)
        number = int(params["from"].replace("-", ""))
        rates = {"CHF": 0.9 + number % 7 / 100, "USD": 1.05 + number % 11 / 100}
        return [{"day": params["from"], "to": to, "rate": rate} for to, rate in rates.items()]


def ingest_rates(url: str, at_once: int) -> float:
    """Ingest a hundred days; return the seconds that it took."""
    changes = [f"http.url={url}", f"http.concurrency={at_once}"]
    options = IngestOptions(refresh=True)  # As if it had not been done yet.
    summary = ingest(load_ingest(HERE / "rates.yaml", changes), options=options)
    print(f"{summary.asked} requests, {at_once} at a time: {summary.seconds:.1f} s")
    return summary.seconds


def main() -> None:
    """Ingest the same days twice."""
    parser = argparse.ArgumentParser(description="A hundred requests at once.")
    parser.add_argument("--latency", type=float, default=0.1, help="Seconds of an answer.")
    Rates.latency = parser.parse_args().latency
    with serving(Rates) as url:
        ratio = ingest_rates(url, 1) / ingest_rates(url, 50)
    print(f"{ratio:.1f} times as fast")
    rates = scan_output("s3://demo/examples/rates/")
    print(rates.group_by("to").agg(days=pl.len(), mean=pl.col("rate").mean()).sort("to").collect())


if __name__ == "__main__":
    main()
