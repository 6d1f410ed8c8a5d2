"""What the packages import is declared in pyproject.toml, not merely there by luck."""

import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contracts.source import ROOT, imports_of, python_files

PEERS = ROOT / "benchmarks" / "peers"
OURS = {"chunkmap", "partitioning", "pipeline", "benchmarks"}


@cache
def _providers() -> Mapping[str, list[str]]:
    """Distributions by module: to read all their lists of files takes seconds."""
    return metadata.packages_distributions()


def _names(requirements: list[str]) -> set[str]:
    """Names of distributions, those that an extra of another brings included."""
    names: set[str] = set()
    for requirement in map(Requirement, requirements):
        names.add(canonicalize_name(requirement.name))
        if requirement.extras:
            names |= {
                canonicalize_name(inner.name)
                for inner in map(Requirement, metadata.requires(requirement.name) or [])
                if inner.marker
                and any(inner.marker.evaluate({"extra": extra}) for extra in requirement.extras)
            }
    return names


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("chunkmap", ()),
        ("partitioning", ()),
        ("pipeline", ("local", "sql", "checks", "tables", "lineage", "traces")),
        ("benchmarks", ("bench", "local", "sql")),
    ],
)
def test_imports_are_declared(folder: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = _names(project["dependencies"])
    for extra in extras:
        declared |= _names(project["optional-dependencies"][extra])
    missing = set()
    for path in python_files(folder):
        if path.is_relative_to(PEERS):
            continue  # each has a lock of its own, which tests/benchmarks holds it against
        for _, target, line in imports_of(path):
            top = target.partition(".")[0]
            if top in OURS or top in sys.stdlib_module_names:
                continue
            providers = {canonicalize_name(name) for name in _providers().get(top, [])}
            if not providers & declared:
                missing.add(f"{path.relative_to(ROOT)}:{line} imports {top}")
    assert not missing, "\n".join(sorted(missing))
