"""Narrow terminals: tables and errors fold between words, never inside them."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from pipeline.cli.output import columns
from pipeline.printable import error_text

NAMES = ("run", "job", "state", "done", "chunks", "rows out", "created")
ROWS = [
    ("0123456789abcdef", "lineitem-revenue", "interrupted", "1,024", "2,048", "6,000,000", "02-29"),
    ("fedcba9876543210", "daily", "done", "7", "7", "12,345", "03-01 12:00"),
]


def shown(width: int) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(columns(NAMES, ROWS, right=("done", "chunks", "rows out")))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_a_table_never_breaks_a_word(width: int) -> None:
    lines = shown(width)
    assert all(len(line) <= width for line in lines)
    for row in ROWS:
        for word in " ".join(row).split():
            assert any(word in line.split() for line in lines), word


def test_a_table_that_fits_is_a_table() -> None:
    assert len(shown(120)) == 3
    narrow = shown(40)
    assert narrow[0].split() == ["run", "0123456789abcdef"] and "" in [x.strip() for x in narrow]


MESSAGE = (
    "run 0123456789abcdef of this job is unfinished, and examples.revenue:revenue has changed "
    "since s3://bucket/a-prefix-that-is-longer-than-the-line/part-0000000001-0123456789abcdef.parquet"
    "\nsecond line"
)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_an_error_folds_between_words(width: int) -> None:
    lines = error_text(MESSAGE, "resume with the new code: --accept-code", width).splitlines()
    words = MESSAGE.split()
    assert [word for line in lines for word in line.removeprefix("error: ").split()][
        : len(words)
    ] == words
    assert all(len(line) <= width for line in lines if "s3://" not in line)
    assert all(re.match(r"error: |next:  | {7}", line) for line in lines)
    assert lines[-1].strip().endswith("--accept-code")


def test_an_error_for_a_file_keeps_its_lines() -> None:
    assert error_text(MESSAGE, None).count("\n") == 1
