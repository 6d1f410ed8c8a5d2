"""constraints.txt is fresh, hashed, complete and says nothing about where packages come from.

All of it offline: a resolver would find newer versions, which is no fault of the file.
"""

import re
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.contracts.extra import requirements_of
from tests.contracts.source import ROOT

LOCK = ROOT / "constraints.txt"
APART = {"docs": ROOT / "docs" / "requirements.txt"}
"""Extras with a lock of their own."""
ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+?))? \\\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)

OF_AN_EXTRA = re.compile(r"""^[^;]*;(?!.*\bor\b)(?:.*\band\b)?\s*extra\s*==\s*["'][^"']+["']\s*$""")
"""A requirement that only an extra has."""


class Pin(NamedTuple):
    """One locked package."""

    version: Version
    marker: Marker | None

    def applies(self) -> bool:
        return self.marker is None or self.marker.evaluate()


@cache
def pins(lock: Path = LOCK) -> dict[str, list[Pin]]:
    """Locked versions by name; a name has several when they differ by platform."""
    found: dict[str, list[Pin]] = {}
    for entry in ENTRY.finditer(lock.read_text("utf-8")):
        marker = Marker(entry["marker"]) if entry["marker"] else None
        pin = Pin(Version(entry["version"]), marker)
        found.setdefault(canonicalize_name(entry["name"]), []).append(pin)
    return found


def declared() -> list[str]:
    """Requirements in pyproject.toml: the project's, the build's, those of extras in this lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    optional = project["project"]["optional-dependencies"]
    extras = [optional[extra] for extra in optional.keys() - APART.keys()]
    return sorted(
        {
            *project["project"]["dependencies"],
            *project["build-system"]["requires"],
            *(requirement for extra in extras for requirement in extra),
        }
    )


def unmet(requirement: Requirement, lock: Path = LOCK) -> str | None:
    """Why the lock does not satisfy this requirement, or None when it does."""
    locked = pins(lock).get(canonicalize_name(requirement.name))
    if not locked:
        return f"{requirement} is not locked"
    wrong = [pin.version for pin in locked if not requirement.specifier.contains(pin.version, True)]
    return f"{requirement} is locked at {wrong[0]}" if wrong else None


@pytest.mark.parametrize("requirement", declared())
def test_declared_requirements_are_locked(requirement: str) -> None:
    problem = unmet(Requirement(requirement))
    assert problem is None, f"{problem}: run `make lock`"


@pytest.mark.parametrize("extra", APART)
def test_an_extra_with_a_lock_of_its_own_is_locked(extra: str) -> None:
    problems = [unmet(Requirement(text), APART[extra]) for text in requirements_of(extra)]
    assert not any(problems), f"{problems}: run `make lock`"


@pytest.mark.parametrize("extra", APART)
def test_packages_in_both_locks_have_one_version(extra: str) -> None:
    main, apart = pins(), pins(APART[extra])
    shared = main.keys() & apart.keys()
    assert len(shared) > 5
    for name in shared:
        assert {pin.version for pin in apart[name]} == {pin.version for pin in main[name]}, name


@pytest.mark.parametrize("lock", [LOCK, *APART.values()], ids=lambda path: path.name)
def test_every_line_is_a_hashed_pin(lock: Path) -> None:
    text = lock.read_text("utf-8")
    rest = [line for line in ENTRY.sub("", text).splitlines() if not line.startswith("#")]
    assert rest == [], "not a pin with sha256 hashes"
    assert len(pins(lock)) > (100 if lock == LOCK else 20)


@pytest.mark.parametrize("lock", [LOCK, *APART.values()], ids=lambda path: path.name)
@pytest.mark.parametrize("word", ["http:", "https:", "file:", "git+", "--index", "--find", " @ "])
def test_no_addresses(word: str, lock: Path) -> None:
    assert word not in lock.read_text("utf-8")


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
        # Most are those of extras, and to parse them all takes as long as the rest of these tests.
        needed = [text for text in requires if not OF_AN_EXTRA.search(text)]
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                problem = unmet(requirement)
                problems += [f"{name}: {problem}"] if problem else []
    assert not problems, "\n".join(problems)


def test_the_upper_bound_that_keeps_prefect_starting() -> None:
    """prefect 3.8 fails at start with newer FastAPI; a fresh install must not find one."""
    fastapi = next(Requirement(text) for text in declared() if text.startswith("fastapi"))
    assert not fastapi.specifier.contains("0.163.0")
    assert fastapi.specifier.contains("0.139.2")


def test_the_upper_bound_that_keeps_prefects_schedules() -> None:
    """prefect 3.8 makes no scheduled run with newer SQLAlchemy, and says so in its log alone."""
    sqlalchemy = next(Requirement(text) for text in declared() if text.startswith("sqlalchemy"))
    assert not sqlalchemy.specifier.contains("2.1.0")
    assert sqlalchemy.specifier.contains("2.0.58")


def test_the_constraints_for_pip_are_the_same_pins_without_hashes() -> None:
    """Pip refuses hashes in what `-c` names, unless every requirement has one."""
    text = (ROOT / "pip-constraints.txt").read_text("utf-8")
    pinned = [entry[0].partition(" \\\n")[0] for entry in ENTRY.finditer(LOCK.read_text("utf-8"))]
    assert [line for line in text.splitlines() if not line.startswith("#")] == pinned
    assert not any(Requirement(line).extras for line in pinned), "pip refuses extras there"
