"""The README's ratios are those of the stored figures in docs/guides/benchmarks.md."""

from __future__ import annotations

import math
import re

from tests.contracts.source import ROOT
from tests.docs.pages import read

FIGURES = read(ROOT / "docs" / "guides" / "benchmarks.md")
POLARS = "Polars, one process"


def _table(heading: str) -> list[list[str]]:
    """The cells of the figures' table under a heading."""
    section = FIGURES.partition(f"### {heading}")[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def _seconds(text: str) -> float:
    """The first time of a cell: `304.7 ms [301.7, 320.5]` is 0.3047."""
    number, unit = re.match(r"([\d.]+) (s|ms|µs)", text).groups()  # type: ignore[union-attr]
    return float(number) / {"s": 1, "ms": 1e3, "µs": 1e6}[unit]


def test_the_readme_says_how_much_slower_a_run_is_than_polars() -> None:
    ratios = {row[0]: row[2] for row in _table("Ratios") if row[1] == POLARS}
    warm = {row[0]: _seconds(row[4]) for row in _table("Seconds") if row[1] == POLARS}
    large = re.search(
        r"\| row-map, 24 million rows \| [^|]+ \| Polars, [^|]+ \| ([\d.]+) ", FIGURES
    )
    assert large is not None
    least, most = 0.1, 0.4
    short = [float(ratios[name]) for name, seconds in warm.items() if least <= seconds < most]
    assert len(short) > 3
    said = " ".join(read(ROOT / "README.md").split())
    assert f"took {large[1]} times as long as Polars for 24 million rows" in said
    assert f"{ratios['row-map']} times for 6 million" in said
    files = re.search(r"\| daily, 1,096 files \| [^|]+ \| Polars, [^|]+ \| ([\d.]+) ", FIGURES)
    larger = re.search(
        r"\| row-map, 120 million rows \| [^|]+ \| Polars, [^|]+ \| ([\d.]+) ", FIGURES
    )
    assert files is not None
    assert larger is not None
    assert f"{float(files[1]):.1f} times for a thousand small files" in said
    assert f"for 120 million rows it took {larger[1]} times as long" in said
    assert (
        f"and {math.floor(min(short))} to {math.ceil(max(short))} times for jobs that Polars does "
        f"in {least} to {most} s"
    ) in said


def test_the_readme_says_how_fast_local_mode_is() -> None:
    found = dict(
        re.findall(r"\| ([\w-]+, \d+ million rows) \| [^|]+ \| [^|]+ \| ([\d.]+) \|", FIGURES)
    )
    said = " ".join(read(ROOT / "README.md").split())
    local = found["row-map, 24 million rows"], found["stations, 100 million rows"]
    assert f"it took {local[0]} times as long for 24 million rows, and {local[1]} times" in said
