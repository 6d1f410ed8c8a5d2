"""constraints.txt is fresh, hashed, complete and says nothing about where packages come from.

All of it offline: a resolver would find newer versions, which is no fault of the file.
"""

import re
import tomllib
from functools import cache
from importlib import metadata
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.contracts.source import ROOT

LOCK = ROOT / "constraints.txt"
ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+?))? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)


class Pin(NamedTuple):
    """One locked package."""

    version: Version
    marker: Marker | None

    def applies(self) -> bool:
        return self.marker is None or self.marker.evaluate()


@cache
def pins() -> dict[str, list[Pin]]:
    """Locked versions by name; a name has several when they differ by platform."""
    found: dict[str, list[Pin]] = {}
    for entry in ENTRY.finditer(LOCK.read_text("utf-8")):
        marker = Marker(entry["marker"]) if entry["marker"] else None
        pin = Pin(Version(entry["version"]), marker)
        found.setdefault(canonicalize_name(entry["name"]), []).append(pin)
    return found


def declared() -> list[str]:
    """Every requirement in pyproject.toml: the project's, its extras' and the build's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    return sorted(
        {
            *project["project"]["dependencies"],
            *project["build-system"]["requires"],
            *(requirement for extra in extras for requirement in extra),
        }
    )


def unmet(requirement: Requirement) -> str | None:
    """Why the lock does not satisfy this requirement, or None when it does."""
    locked = pins().get(canonicalize_name(requirement.name))
    if not locked:
        return f"{requirement} is not locked"
    wrong = [pin.version for pin in locked if not requirement.specifier.contains(pin.version, True)]
    return f"{requirement} is locked at {wrong[0]}" if wrong else None


@pytest.mark.parametrize("requirement", declared())
def test_declared_requirements_are_locked(requirement: str) -> None:
    problem = unmet(Requirement(requirement))
    assert problem is None, f"{problem}: run `make lock`"


def test_every_line_is_a_hashed_pin() -> None:
    text = LOCK.read_text("utf-8")
    rest = [line for line in ENTRY.sub("", text).splitlines() if not line.startswith("#")]
    assert rest == [], "not a pin with sha256 hashes"
    assert len(pins()) > 100


@pytest.mark.parametrize("word", ["http:", "https:", "file:", "git+", "--index", "--find", " @ "])
def test_no_addresses(word: str) -> None:
    assert word not in LOCK.read_text("utf-8")


def test_the_lock_is_complete_on_this_platform() -> None:
    """What locked packages require is locked too: `pip install --no-deps` leaves no hole."""
    problems = []
    for name, locked in pins().items():
        if not any(pin.applies() for pin in locked):
            continue
        try:
            requires = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is locked but not installed: run `make install`")
            continue
        for requirement in map(Requirement, requires):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                problem = unmet(requirement)
                problems += [f"{name}: {problem}"] if problem else []
    assert not problems, "\n".join(problems)


def test_the_upper_bound_that_keeps_prefect_starting() -> None:
    """prefect 3.8 fails at start with newer FastAPI; a fresh install must not find one."""
    fastapi = next(Requirement(text) for text in declared() if text.startswith("fastapi"))
    assert not fastapi.specifier.contains("0.163.0")
    assert fastapi.specifier.contains("0.139.2")
