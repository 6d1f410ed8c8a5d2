"""Start and stop the local services: `chunkmap up` and `chunkmap down`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from pipeline.cli.output import notes, print_json, say
from pipeline.cluster import local
from pipeline.config.settings import load_settings


def up(environment: str | None, *, as_json: bool) -> None:
    """Start the local services and print their addresses."""
    settings = load_settings(environment)
    local.up(settings, _echo(as_json))
    if as_json:
        _show(environment)


def down(environment: str | None, *, as_json: bool) -> None:
    """Stop the local services."""
    local.down(load_settings(environment), _echo(as_json))
    if as_json:
        _show(environment)


def _echo(as_json: bool) -> Callable[[str], None]:
    # The addresses are the result of these commands, so they go to stdout.
    return (lambda line: say(line, console=notes)) if as_json else say


def _show(environment: str | None) -> None:
    services = local.status(load_settings(environment))
    print_json({"services": [asdict(service) for service in services]})
