"""Bare `make` explains every target, and nothing else happens."""

import re
import subprocess

from tests.contracts.source import ROOT

TARGETS = {
    "demo",
    "test",
    "test-fast",
    "lint",
    "format",
    "up",
    "down",
    "bench",
    "chaos",
    "fuzz",
    "differential",
    "lock",
    "clean",
}


def test_bare_make_lists_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    listed = dict(re.findall(r"^  (\S+) +(\S.*)$", shown, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert phony is not None
    assert listed.keys() == set(phony[1].split())
    assert listed.keys() >= TARGETS
