"""Tell somebody that orders are missing."""

from collections.abc import Mapping
from typing import Any


def alarm(facts: Mapping[str, Any]) -> None:
    """Tell that no orders came: here, print it; elsewhere, post it to a chat."""
    print(f"ALARM: no orders on {facts['parameters']['date']}")
