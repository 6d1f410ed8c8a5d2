"""What a run stores for the checks of its result."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.runs.ledger import check_files

ROWS = 50_000


NUMBERS = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("keys", "codec"),
    [
        (np.arange(ROWS) // 4, "zstd"),
        (NUMBERS.integers(0, 5000, ROWS), "lz4"),
        (NUMBERS.integers(0, 1 << 62, ROWS), "uncompressed"),
    ],
)
def test_columns_are_stored_by_the_codec_that_pays(keys: Any, codec: Any) -> None:
    """An unordered key takes a sixth of the time as it is, and an ordered one no more with zstd."""
    frame = pl.DataFrame({"order": keys})
    data = check_files.pack_columns(frame)
    assert data == check_files._ipc(frame, codec)
    assert_frame_equal(pl.read_ipc(io.BytesIO(data)), frame)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    frame = pl.DataFrame({"order": [7] * rows}, schema={"order": pl.Int64})
    assert_frame_equal(pl.read_ipc(io.BytesIO(check_files.pack_columns(frame))), frame)
