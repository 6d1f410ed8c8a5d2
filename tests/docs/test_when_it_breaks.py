"""docs/when-it-breaks.md knows every error and exit code, and names only commands that exist."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
from typing import Any

import pytest
import typer.main

import pipeline
from partitioning.errors import PlanningError
from pipeline.cli.app import app
from pipeline.errors import ChunkmapError
from tests.contracts.source import ROOT

PAGE = (ROOT / "docs" / "when-it-breaks.md").read_text("utf-8")
OTHER_KINDS = {"FileError"}
"""Kinds of errors that have no class of ours."""


def subclasses(base: type) -> set[type]:
    found: set[type] = set(base.__subclasses__())
    return found.union(*map(subclasses, found))


@pytest.fixture(scope="module")
def errors() -> set[type]:
    """All classes of errors, those of every module included."""
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if module.name.endswith("errors") or module.name in (
            "pipeline.local.workers",
            "pipeline.pipelines.summary",
            "pipeline.runs.backfill.run",
            "pipeline.runs.backfill.summary",
            "pipeline.runs.driver.summary",
            "pipeline.storage.lookup_tables",
        ):
            importlib.import_module(module.name)
    found = subclasses(ChunkmapError) | subclasses(PlanningError)
    # Which others are loaded depends on the tests before; private ones reach nobody.
    return {
        each
        for each in found
        if each.__module__.startswith(("pipeline", "partitioning")) and each.__name__[0] != "_"
    }


def commands() -> list[str]:
    return sorted(set(re.findall(r"`(chunkmap [^`]+)`", PAGE)))


def test_it_knows_every_error(errors: set[type]) -> None:
    section = PAGE.partition("\n## Errors\n")[2]
    named = re.findall(r"`(\w+Error)`", section)
    assert len(named) == len(set(named)), "an error is named twice"
    assert set(named) - OTHER_KINDS == {each.__name__ for each in errors}
    assert set(re.findall(r"`(\w+Error)`", PAGE)) <= set(named)


def test_it_knows_every_exit_code(errors: set[type]) -> None:
    table = PAGE.partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    codes = {each.exit_code for each in errors if issubclass(each, ChunkmapError)}
    assert listed == codes | {0}


@pytest.fixture(scope="module")
def whole() -> Any:
    """All commands, which take a fifth of a second to make."""
    return typer.main.get_command(app)


@pytest.mark.parametrize("command", commands())
def test_its_commands_exist_with_their_options(whole: Any, command: str) -> None:
    """What is written in capitals stands for a value."""
    found = whole
    words = shlex.split(command)[1:]
    while words and hasattr(found, "commands") and words[0] in found.commands:
        found = found.commands[words.pop(0)]
    assert not hasattr(found, "commands"), f"{command}: no such command"
    known = {option for each in found.params for option in each.opts + each.secondary_opts}
    assert {word for word in words if word.startswith("-")} <= known
    arguments = [each for each in found.params if each.param_type_name == "argument"]
    with_value = {
        option
        for each in found.params
        if not getattr(each, "is_flag", False)
        for option in each.opts
    }
    values = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in with_value - {each.name for each in arguments}
    ]
    assert len(values) <= len(arguments) or any(each.nargs != 1 for each in arguments)
    required = [each for each in arguments if each.required]
    assert len(values) >= len(required), f"{command}: lacks {required}"
