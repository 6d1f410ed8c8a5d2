"""Make typer applications whose help is short: `-h`, plain flags, examples, groups of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from pipeline.cli.terminal import results_apart

START, JOBS, RUNS, OUTPUTS, SETUP = (
    "Start here",
    "Run a job",
    "Look at runs and control them",
    "Outputs",
    "Cluster and settings",
)
"""Titles of the groups that `chunkmap --help` shows."""


class Command(TyperCommand):
    """A command whose help shows a flag by its name alone, and whose stdout is its result alone."""

    @override
    def get_params(self, ctx: Any) -> Any:
        return _plain_flags(super().get_params(ctx))

    @override
    def invoke(self, ctx: Any) -> Any:
        with results_apart():
            return super().invoke(ctx)


class Group(TyperGroup):
    """A group of commands whose help shows flags as `Command` does."""

    @override
    def get_params(self, ctx: Any) -> Any:
        return _plain_flags(super().get_params(ctx))


def _plain_flags(params: Any) -> Any:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class App(typer.Typer):
    """A typer application with our help; its commands are `Command`s."""

    def __init__(self, name: str, summary: str, **more: Any) -> None:
        super().__init__(
            name=name,
            help=summary,
            cls=Group,
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            rich_markup_mode="rich",
            context_settings={"help_option_names": ["-h", "--help"]},
            **more,
        )

    @override
    def command(self, *args: Any, **more: Any) -> Callable[[Any], Any]:
        more.setdefault("cls", Command)
        return super().command(*args, **more)


def examples(*lines: str) -> str:
    """Format the examples of a command, for its `epilog`; a line is what follows `chunkmap`."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join([f"[bold]{title}[/]", *(f"$ chunkmap {escape(line)}" for line in lines)])


def examples_in(epilog: str | None) -> list[str]:
    """Return the command lines of an `epilog` that `examples` made."""
    lines = (epilog or "").splitlines()
    return [line.replace("\\[", "[")[2:] for line in lines if line.startswith("$ ")]
