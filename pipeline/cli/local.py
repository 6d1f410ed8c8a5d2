"""`chunkmap up` and `chunkmap down`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from pipeline.cli.output import notes, print_json, say
from pipeline.cluster import local
from pipeline.config.settings import load_settings


def up(environment: str | None, *, as_json: bool) -> None:
    """Start the embedded stack and say what runs where."""
    settings = load_settings(environment)
    local.up(settings, _echo(as_json))
    if as_json:
        _show(environment)


def down(environment: str | None, *, as_json: bool) -> None:
    """Stop the embedded stack."""
    local.down(load_settings(environment), _echo(as_json))
    if as_json:
        _show(environment)


def _echo(as_json: bool) -> Callable[[str], None]:
    # What runs where is the result of these commands, so it goes to stdout like any other.
    return (lambda line: say(line, console=notes)) if as_json else say


def _show(environment: str | None) -> None:
    print_json({"services": [asdict(one) for one in local.status(load_settings(environment))]})
