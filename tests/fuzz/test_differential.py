"""Files of every type that the two writers have are read as another reader reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tests.fuzz import corpus
from tests.fuzz.compared import difference, plan_file, read_planned
from tests.fuzz.differential import compare
from tests.fuzz.parent import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")


def test_every_type_encoding_and_codec(tmp_path: Path) -> None:
    made = dict(corpus.combinations())
    # A part: types, encodings, codecs, versions and nulls have other periods.
    names = list(made) if os.environ.get("LONG") else list(made)[::11]
    for number, name in enumerate(names):
        (tmp_path / f"{number:04}.parquet").write_bytes(made[name])
    found = list(compare(sorted(tmp_path.iterdir())))
    wrong = {names[at]: one.detail for at, one in enumerate(found) if one.outcome != "equal"}
    assert wrong == {}
    assert len(found) == len(names) > 50


def test_the_command_tells_of_files_that_differ_or_are_refused(tmp_path: Path) -> None:
    (tmp_path / "good.parquet").write_bytes(corpus.footers()["codec zstd"])
    (tmp_path / "cut.parquet").write_bytes(corpus.footers()["codec zstd"][:-20])
    shown = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.differential", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert "1  equal" in shown.stdout
    assert "cut.parquet: " in shown.stdout
    assert "truncated or not Parquet" in shown.stdout


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ([float("nan"), None, -0.0], [float("nan"), None, 0.0], True),
        ([1, 2], [1, 3], False),
        (["a"], [b"a"], True),
        ([1, 2], [1, None], False),
        ([{"a": [1, None]}], [{"a": [1, None]}], True),
        ([{"a": [1, None]}], [{"a": [1, 0]}], False),
    ],
)
def test_what_counts_as_a_difference(one: list[object], other: list[object], is_same: bool) -> None:
    frames = [pl.DataFrame({"x": values}, strict=False) for values in (one, other)]
    assert (difference(*frames) is None) == is_same


def test_the_comparison_sees_a_row_that_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(corpus.by_pyarrow(pa.table({"x": [1, 2, 3]})))
    plan = plan_file(str(path))
    assert not isinstance(plan, tuple)
    frame = read_planned(plan)  # type: ignore[arg-type]
    assert isinstance(frame, pl.DataFrame)
    assert difference(frame, frame.head(2)) == "3 and 2 rows"
