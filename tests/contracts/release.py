"""`python -m tests.contracts.release version | check TAG | notes`: what a release needs."""

from __future__ import annotations

import re
import sys
import tomllib

from tests.contracts.source import ROOT

SAMPLES = ROOT / "tests" / "support" / "stored_samples"
_RELEASE = re.compile(r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", re.MULTILINE)


def version() -> str:
    """The version in pyproject.toml, the only place that has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["version"])


def releases() -> dict[str, str]:
    """The text of the changelog for each release, newest first."""
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    _, *parts = _RELEASE.split(changelog)
    return {number: text.strip() for number, text in zip(parts[::2], parts[1::2], strict=True)}


def problems(tag: str) -> list[str]:
    """Why this tag cannot be released."""
    current = version()
    sample = SAMPLES / f"{current}.tar.gz"
    newest = next(iter(releases()), "")
    return [
        problem
        for problem, holds in {
            f"the tag {tag} is not v{current}, the version in pyproject.toml": tag == f"v{current}",
            f"CHANGELOG.md begins with {newest}: give the section of {current} its number and "
            f"date, as in `## {current} (2026-01-31)`": newest == current,
            f"no {sample.name}: python -m tests.support.stored_samples.make": sample.exists(),
        }.items()
        if not holds
    ]


def main(command: str, *arguments: str) -> int:
    """Print the version or the notes of the newest release, or check a tag."""
    if command == "version":
        print(version())
    elif command == "notes":
        print(releases()[version()])
    elif command == "check":
        for problem in (found := problems(*arguments)):
            print(problem, file=sys.stderr)
        return 1 if found else 0
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
