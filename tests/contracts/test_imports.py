"""Imports go down only, and each foreign system has one door: the contracts in pyproject.toml."""

import subprocess
import sys

import pytest
from importlinter import cli

from tests.contracts.picture import picture, shown
from tests.contracts.source import PACKAGES, ROOT, imports_of, module_name, names_of, python_files


def test_the_contracts_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    # It would switch off all loggers that there are, for the tests after this one too.
    monkeypatch.setattr(cli, "_configure_logging", lambda verbose: None)
    broken = cli.lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert broken == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_module_passes_on_names_of_another() -> None:
    """Names are imported from where they are defined; a package's `__init__` may offer some."""
    paths = [path for path in python_files(*PACKAGES) if path.name != "__init__.py"]
    defined = {module_name(path): names_of(path).bound for path in paths}
    passed_on = [
        f"{module_name(path)}:{line} imports {name} from {target}"
        for path in paths
        for target, name, line in names_of(path).taken
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


def test_the_picture_of_the_rooms_is_that_of_the_contracts() -> None:
    assert shown() == picture(), "draw it again: python -m tests.contracts.picture"
