"""Announce what the pipeline has done."""

from collections.abc import Mapping
from typing import Any


def announce(facts: Mapping[str, Any]) -> None:
    """Tell that a day is done: here, print it; elsewhere, post it to a chat."""
    rows, day = facts["stages"]["revenue"]["rows"], facts["parameters"]["date"]
    print(f"ANNOUNCEMENT: the {rows} orders of {day} are in the warehouse")
