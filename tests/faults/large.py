"""Objects of which S3 copies the bytes on its side, for jobs that keep columns."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import polars as pl

from pipeline.cluster.local.services import BUCKET
from pipeline.storage.s3_uploads import MIN_COPY_BYTES
from tests.faults.world import World, parquet, rows

FILES, ROWS, NOISE_BYTES = 2, 800, 7000
KEEPING: dict[str, Any] = {
    "transform": "added",
    "changes": {"chunks": {"per_file": True}},
    "layout": {"keep": "all"},
}
"""What makes a scenario one over such objects."""


def large(number: int, seed: int = 0) -> bytes:
    """A file of which the server copies the bytes: a part has at least 5 MiB."""
    noise = np.random.default_rng([number, seed]).bytes(ROWS * NOISE_BYTES)
    texts = [noise[at : at + NOISE_BYTES] for at in range(0, len(noise), NOISE_BYTES)]
    data = parquet(rows(number * ROWS, ROWS).with_columns(noise=pl.Series(texts)), ROWS // 2)
    assert MIN_COPY_BYTES < len(data) < MIN_COPY_BYTES + (1 << 20)
    return data


def write(world: World) -> str:
    """Store files of their own; return their prefix."""
    uri = f"s3://{BUCKET}/large-{uuid.uuid4().hex[:6]}/in/"
    for number in range(FILES):
        world.storage.put(f"{uri}{number}.parquet", large(number))
    return uri
