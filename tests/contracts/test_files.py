"""Short files, and nothing in the repository that ties it to one machine or gives a secret away."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.contracts.source import ROOT, repository_files

# Assembled from halves, so that this file does not hold what it forbids.
FORBIDDEN = {
    "an index option": re.compile("--(extra-|default-)?index" + r"-url\b"),
    "a wheel folder": re.compile("--find" + "-links[ =]"),
    "a package index": re.compile("pypi" + r"\.org/simple|files\.python" + r"hosted\.org"),
    "a trusted host": re.compile("trusted" + "-host"),
    "an AWS access key": re.compile(r"\bA(KI|SI)A[0-9A-Z]{16}\b"),
    "a private key": re.compile("BEGIN [A-Z ]*PRIVATE" + " KEY"),
    "a home folder": re.compile(r"/(home|Users)" + r"/[a-z]+/"),
}


@cache
def _texts() -> list[tuple[Path, str]]:
    found = []
    for path in repository_files():
        try:
            found.append((path, path.read_text("utf-8")))
        except UnicodeDecodeError:
            continue  # a picture
    return found


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    pattern = FORBIDDEN[what]
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    ("what", "example"),
    [
        ("an index option", "--extra-index" + "-url https://example.invalid"),
        ("an index option", "--index" + "-url=x"),
        ("an AWS access key", "AKIA" + "ABCDEFGHIJKLMNOP"),
        ("a home folder", "/home" + "/ada/data"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, example: str) -> None:
    assert FORBIDDEN[what].search(example)
