"""Messages count as people do: no `1 windows`."""

import re
from pathlib import Path

import pytest

from tests.contracts.source import ROOT, python_files

NOUNS = (
    "attempt|backfill|batche|chunk|commit|definition|error|file|fragment|group|object|output|"
    "partition|problem|request|round|run|thread|upload|version|warning|window|worker"
)
COUNTED = re.compile(rf"\{{[^{{}}]+:,\}} (?:[a-z]+ )?(?:{NOUNS})s\b")
LIMITS = re.compile(r"\{_?(MAX|MIN)_[A-Z_]+:,\}|none of its \{")
"""What is never one, or is not counted."""


@pytest.mark.parametrize("folder", ["chunkmap", "pipeline"])
def test_counts_agree_with_their_nouns(folder: str) -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in python_files(folder)
        for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1)
        if COUNTED.search(line) and not LIMITS.search(line)
    ]
    assert not hits, "use plural() of pipeline.report.humanize:\n" + "\n".join(hits)
