"""`chunkmap up` and `chunkmap down`."""

from __future__ import annotations

from pipeline import stack
from pipeline.cli.screen import notes
from pipeline.settings import load_settings


def up(environment: str | None) -> None:
    """Start the embedded stack and say what runs where."""
    stack.up(load_settings(environment), notes.print)


def down(environment: str | None) -> None:
    """Stop the embedded stack."""
    stack.down(load_settings(environment), notes.print)
