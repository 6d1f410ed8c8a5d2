"""Conditional stages: what is done depends on the data, and on the day.

A day without orders raises an alarm, a usual day gets a report per country, a busy one a report per
country and hour, and Sundays a report of the week besides. The pipeline's file says so (`when:`);
this program runs it for three days. The API is a part of this program.

    chunkmap up
    python -m examples.conditional
"""

import argparse
from datetime import date
from pathlib import Path

from typing_extensions import override

from examples.commands import chunkmap
from examples.local_api import JsonApi, serving
from pipeline import scan_output

PIPELINE = Path(__file__).with_name("pipeline.yaml")
ORDERS = {4: 0, 5: 150}
"""Orders by weekday: none on Fridays, many on Saturdays, 40 on other days."""


class Orders(JsonApi):
    """Has the orders of a day: GET /?from=2024-03-08&to=2024-03-09."""

    @override
    def document(self, params: dict[str, str]) -> object:
        day = date.fromisoformat(params["from"])
        numbers = range(ORDERS.get(day.weekday(), 40))
        of_day: dict[str, object] = {"day": str(day)}
        return [
            of_day | {"country": ("DE", "FR")[n % 2], "hour": 8 + n % 12, "cents": 100 + n * 37}
            for n in numbers
        ]


def main() -> None:
    """Run the pipeline for a Friday, a Saturday and a Sunday."""
    parser = argparse.ArgumentParser(description="Conditional stages.")
    parser.add_argument("--port", type=int, default=8301, help="Port of the API.")
    days = ("--from", "2024-03-08", "--to", "2024-03-11")
    with serving(Orders, parser.parse_args().port) as api:
        chunkmap("pipeline", "backfill", PIPELINE, *days, "--param", f"api={api}")
    for report in ("2024-03-09/by-hour", "2024-03-10/totals", "2024-03-10/week"):
        print(f"\n{report}")
        print(scan_output(f"s3://demo/examples/conditional/{report}/").head(3).collect())


if __name__ == "__main__":
    main()
