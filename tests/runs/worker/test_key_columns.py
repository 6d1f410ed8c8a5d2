"""A column is left out of a file only where it says the same as the key."""

from __future__ import annotations

from datetime import date
from urllib.parse import quote

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioning import Chunk, Fragment
from partitioning.model import PartitionValue
from pipeline.errors import PartitionColumnError, Transient
from pipeline.runs.worker.key_columns import without_key_columns
from tests.support.examples import fewer

KINDS: dict[type, pl.DataType] = {str: pl.String(), int: pl.Int64(), date: pl.Date()}
VALUES = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=3),
    st.integers(-(2**63), 2**63 - 1),
    st.dates(),
)


def chunk_of(name: str, value: PartitionValue, raw: str) -> Chunk:
    fragment = Fragment(
        uri=f"s3://b/t/{name}={raw}/a.parquet",
        etag="e",
        size=1,
        row_group_start=0,
        row_group_stop=1,
        row_start=0,
        rows=1,
        footer_size=1,
        stored_bytes=1,
        decoded_bytes=1,
        partition=((name, value),),
    )
    return Chunk("0" * 32, 7, fragment.partition, (fragment,))


@settings(max_examples=fewer(150), deadline=None)
@given(
    name=st.sampled_from(["k", "*", "^k$", "ü", "a.b"]),
    value=VALUES,
    others=st.lists(st.one_of(st.none(), VALUES), max_size=3),
)
def test_what_is_left_out_is_what_the_key_says(
    name: str, value: PartitionValue, others: list[PartitionValue]
) -> None:
    kind = KINDS[type(value)]
    own = [other for other in others if other is None or type(other) is type(value)]
    frame = pl.DataFrame({"id": range(1 + len(own))}).with_columns(
        pl.Series(name, [value, *own], dtype=kind)
    )
    chunk = chunk_of(name, value, quote(str(value), safe=""))
    schema = pl.Schema({"id": pl.Int64(), name: kind})
    if all(other == value for other in own):
        assert without_key_columns(frame, chunk, schema).equals(frame.select("id"))
        return
    with pytest.raises(PartitionColumnError) as caught:
        without_key_columns(frame, chunk, schema)
    assert not isinstance(caught.value, Transient)
    assert str(caught.value).startswith(f"chunk 7: the transform's column {name!r} has other")


def test_a_type_of_its_own_is_kept_from_being_lost() -> None:
    chunk, schema = chunk_of("k", 1, "01"), pl.Schema({"k": pl.Int64()})
    frame = pl.DataFrame({"id": [1], "k": pl.Series([1], dtype=pl.Int8)})
    with pytest.raises(PartitionColumnError, match=r"of type Int8, not Int64, .* k=01/"):
        without_key_columns(frame, chunk, schema)
    assert without_key_columns(frame.clear(), chunk, schema).columns == ["id"]
    assert without_key_columns(frame.clear().select("k"), chunk, schema).shape == (0, 0)
