"""`chunkmap bench`: the benchmark suite of a checkout; elsewhere, where to find it."""

from __future__ import annotations

import importlib
from pathlib import Path

import typer

from pipeline.cli.help import SETUP
from pipeline.errors import UsageError

_SUITE = Path(__file__).parents[2] / "benchmarks" / "cli.py"


def add_bench(app: typer.Typer) -> None:
    """Add the commands of the suite, which is next to this package in a checkout only.

    It is found by its place, so that a user's own folder of that name is not taken for it.
    """
    if _SUITE.is_file():
        app.add_typer(
            importlib.import_module("benchmarks.cli").app, name="bench", rich_help_panel=SETUP
        )
        return
    any_arguments = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("bench", context_settings=any_arguments, rich_help_panel=SETUP)(_explain)


def _explain() -> None:
    """Compare chunkmap with its peers (in a checkout of the repository)."""
    raise UsageError(
        "the benchmark suite is not part of the installed package",
        hint="clone the repository and run `make bench` there",
    )
