"""Imports go down only, and each foreign system has one door: the contracts in pyproject.toml."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from importlinter import cli

from tests.contracts.picture import picture, shown
from tests.contracts.source import PACKAGES, ROOT, imports_of, module_name, modules, python_files


def test_the_contracts_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    broken = cli.lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert broken == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_module_passes_on_names_of_another() -> None:
    """Names are imported from where they are defined; a package's `__init__` may offer some."""
    defined = {module: _defined(path) for module, path in _paths().items()}
    passed_on = [
        f"{module}:{line} imports {name} from {target}"
        for module, path in _paths().items()
        for target, name, line in _names_imported(path)
        if target in defined and name not in defined[target]
    ]
    assert not passed_on, "\n".join(passed_on)


def test_modules_of_a_package_do_not_import_the_package() -> None:
    """`partitioning` and `pipeline` themselves only offer names to those outside."""
    found = [
        f"{item.module}:{item.line}"
        for path in python_files(*PACKAGES)
        for item in imports_of(path)
        if item.target == item.module.partition(".")[0]
    ]
    assert not found, "import the module that defines it: " + ", ".join(found)


def test_importing_the_package_imports_no_engine() -> None:
    """`chunkmap --help` and every submodule pay for `import pipeline`: it must stay free."""
    heavy = {"dask", "distributed", "polars", "prefect", "pyarrow"}
    shown = subprocess.run(
        [sys.executable, "-c", f"import pipeline, sys; print(*{heavy} & sys.modules.keys())"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert shown.split() == []


@cache
def _paths() -> dict[str, Path]:
    """The modules that are no packages."""
    files = [path for path in python_files(*PACKAGES) if path.name != "__init__.py"]
    return {module_name(path): path for path in files}


def _defined(path: Path) -> set[str]:
    """The names that a module binds itself, in whatever block."""
    return {name for node in ast.walk(ast.parse(path.read_text("utf-8"))) for name in _bound(node)}


def _bound(node: ast.AST) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Name(ctx=ast.Store()):
            return [node.id]
    return []


def _names_imported(path: Path) -> Iterator[tuple[str, str, int]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" not in modules():
                    yield node.module, alias.name, node.lineno


def test_the_picture_of_the_rooms_is_that_of_the_contracts() -> None:
    assert shown() == picture(), "draw it again: python -m tests.contracts.picture"
