"""Run the benchmark suite, which only a checkout has: `chunkmap bench`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

import typer

from pipeline.errors import UsageError

_SUITE = Path(__file__).parents[2] / "benchmarks" / "cli.py"


def bench_app() -> typer.Typer:
    """Load the suite's commands from the checkout, or a stub that says where to find them.

    The suite is found by its path, so that another package named `benchmarks` is not taken for it.
    """
    if _SUITE.is_file():
        return cast(typer.Typer, importlib.import_module("benchmarks.cli").app)
    return _missing


_missing = typer.Typer(
    name="bench",
    help="Compare chunkmap with its peers (in a checkout).",
    pretty_exceptions_enable=False,
)


@_missing.callback(
    invoke_without_command=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def _point_to_the_checkout() -> None:
    raise UsageError(
        "the benchmark suite is not part of the installed package",
        hint="clone the repository and run `make bench` there",
    )
