"""Footers of which one field is changed: refused by name, or read right, and no process ends."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from tests.fuzz import corpus
from tests.fuzz.compared import Refused, difference, plan_file, read_planned
from tests.fuzz.footers import cases, is_fine, report
from tests.fuzz.parent import Child, done
from tests.fuzz.thrift_tree import (
    BINARY,
    I64,
    STRUCT,
    Node,
    Steps,
    at,
    footer_of,
    replaced,
    with_footer,
    write_tree,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
SEED = 14
FILES = (
    "types money+money18+money38", "types utc+zone+duration", "types structs", "page index",
    "pages 2", "empty row groups", "int96", "Polars, several row groups",
)  # fmt: skip


def test_changes_are_refused_or_read(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for case, result in done(
        cases(tmp_path, SEED, range(1500 if "LONG" in os.environ else 100), FILES)
    ):
        outcomes[result.outcome] += 1
        if not is_fine(case, result):
            failures.append(report(case, result, SEED))
    assert not failures, "\n".join(failures)
    assert outcomes["equal"] > 20
    assert outcomes["refused in planning"] > 20


def changed(file: str, path: Steps, new: Node | None) -> bytes:
    data = corpus.footers()[file]
    footer = footer_of(data)
    at(footer, path)  # It is there.
    return with_footer(data, replaced(footer, path, new))


def original(file: str, tmp_path: Path) -> Path:
    path = tmp_path / "original.parquet"
    path.write_bytes(corpus.footers()[file])
    return path


NOTE = (5, 0, 2)
"""The value of the first pair of a file's metadata."""


@pytest.mark.parametrize(
    ("file", "path", "new"),
    [
        ("pages 2", NOTE, Node(I64, 0)),  # Polars panicked.
        ("encoding PLAIN", NOTE, Node(STRUCT, b"\x1c" * 20 + b"\0" * 21)),
        ("codec zstd", (5, 0, 1), Node(I64, 1)),
        ("page index", (4, 0, 1, 0, 4), Node(I64, -1)),
        ("page index", (4, 0, 1, 0, 5), Node(I64, 2**31 - 1)),
        ("codec zstd", (4, 0, 1, 0, 3, 3), None),
        ("codec zstd", (4, 0, 1, 0, 3, 16), Node(STRUCT, ())),
        ("codec zstd", (4, 0, 1, 0, 3, 12), Node(STRUCT, ())),
        ("sorted", (4, 0, 4, 0, 2), None),
    ],
)
def test_what_no_decoder_needs_may_be_damaged(
    file: str, path: Steps, new: Node | None, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(changed(file, path, new))
    plan, expected = plan_file(str(damaged)), plan_file(str(original(file, tmp_path)))
    assert not isinstance(plan, Refused), plan
    assert not isinstance(expected, Refused), expected
    frame, rows = read_planned(plan), read_planned(expected)
    assert not isinstance(frame, Refused), frame
    assert not isinstance(rows, Refused), rows
    assert difference(frame, rows) is None


@pytest.mark.parametrize(
    ("file", "path", "new", "reason"),
    [
        # Beyond what the columns of a plan hold.
        ("codec zstd", (4, 0, 1, 1, 3, 6), Node(I64, 2**63 - 1), "claims 12 values in 9,223"),
        # Polars allocates as much for each row, and ends the process.
        ("Polars", (2, 2, 2), Node(I64, 2**28), "values of 268,435,456 bytes in"),
        ("codec zstd", (2, 1, 4), Node(BINARY, b"\xff"), "not UTF-8"),
    ],
)
def test_what_cannot_be_is_refused_in_planning(
    file: str, path: Steps, new: Node | None, reason: str, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(changed(file, path, new))
    plan = plan_file(str(damaged))
    assert isinstance(plan, Refused)
    assert reason in plan.reason


def test_values_that_the_pages_have_not_are_refused(tmp_path: Path) -> None:
    """Polars allocates memory for as many, and ends the process."""
    damaged = tmp_path / "damaged.parquet"
    path = (4, 0, 1, 0, 3, 5)
    damaged.write_bytes(changed("types list+list_text", path, Node(I64, 2**32)))
    plan = plan_file(str(damaged))
    assert not isinstance(plan, Refused)
    found = read_planned(plan)
    assert isinstance(found, Refused)
    assert "claims 4,294,967,296 values, the pages have 21" in found.reason


def test_rows_that_the_pages_have_not_are_refused(tmp_path: Path) -> None:
    """pyarrow, which reads this encoding for Polars, would give those that there are."""
    data = corpus.footers()["encoding BYTE_STREAM_SPLIT, fixed"]
    footer = footer_of(data)
    for path in ((3,), (4, 0, 3), (4, 0, 1, 0, 3, 5)):
        assert at(footer, path).value == corpus.ROWS
        footer = replaced(footer, path, Node(I64, 20))
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(with_footer(data, footer))
    plan = plan_file(str(damaged))
    assert not isinstance(plan, Refused)
    found = read_planned(plan)
    assert isinstance(found, Refused)
    assert "12 rows instead of 20" in found.reason


def test_a_tree_is_written_as_it_was_read() -> None:
    for data in corpus.footers().values():
        footer = footer_of(data)
        assert footer_of(with_footer(data, footer)) == footer


@pytest.mark.long
def test_planning_takes_no_more_memory_than_ten_times_the_footer(tmp_path: Path) -> None:
    table = pa.table({f"column_{i}": pa.array(range(20), pa.int64()) for i in range(500)})
    data = corpus.by_pyarrow(table, row_group_size=1, use_dictionary=False)
    footer = footer_of(data)
    claims = replaced(footer, (4,), replace(at(footer, (4,)), claimed=2**31))
    child = Child()
    try:
        for number, (tree, outcome) in enumerate(
            ((footer, "planned"), (claims, "refused in planning"))
        ):
            path = tmp_path / f"{number}.parquet"
            path.write_bytes(with_footer(data, tree))
            length = path.stat().st_size - len(data) + len(write_tree(footer))
            assert length > 1 << 20
            job = {"path": str(path), "footer": length, "slack": 1 << 20, "skip": ["reading"]}
            assert child.do(job).outcome == outcome
    finally:
        child.close()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("abort", "signal SIGABRT in reading"),
        ("hang", "hang in reading"),
        (None, "equal"),
    ],
)
def test_a_process_that_ends_or_hangs_is_told_of(
    how: str | None, outcome: str, tmp_path: Path
) -> None:
    path = original("codec zstd", tmp_path)
    child = Child(1.0)
    try:
        assert child.do({"path": str(path), "footer": 1000, "fault": how}).outcome == outcome
        greedy = child.do({"path": str(path), "footer": -(10**9)})
        assert greedy.outcome == "memory"
    finally:
        child.close()
