"""Rows of CSV that were read for their types are not read again, and are the same rows."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SchemaChangedError
from pipeline.ingest.contents import typed_csv
from pipeline.ingest.kept_frames import KeptFrames
from pipeline.ingest.pieces import Piece, PieceReader
from pipeline.ingest.schema import Types
from pipeline.ingest.texts import read_texts
from tests.ingest.test_ranges import NUMBERS, URI, read, rows_of
from tests.support.examples import fewer


def outcome(column: pl.Series, kind: pl.DataType) -> list[str] | str:
    """The values of texts once they are typed, or the error."""
    try:
        typed = typed_csv(column.to_frame(), {column.name: kind}, URI)
    except SchemaChangedError as error:
        return str(error)
    return [repr(value) for value in typed.to_series()]


ODD = [" 5", "5 ", "5\r", "1e400", "-inf", "True", "2024-01-05", "1" * 16 + ".5", "-0", "+07"]


@settings(max_examples=fewer(300), deadline=None)
@given(st.lists(st.sampled_from([*NUMBERS, *ODD]), min_size=1, max_size=8))
def test_what_is_kept_has_the_values_of_its_texts(texts: list[str]) -> None:
    column = pl.Series("x", [text or None for text in texts], dtype=pl.String)
    look, kept = read_texts(column)
    kind = look.dtype
    assert kept.dtype in (kind, pl.String())
    assert kept.name == "x"
    if kind != pl.Null():
        assert outcome(kept, kind) == outcome(column, kind)


@pytest.mark.parametrize("last", ["7", "x", "007", "1.5", ""])
def test_pieces_that_are_kept_are_not_read_again(
    last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("id,n,day\n" + "5,1.5,2024-01-05\n" * 400 + f"{last},2,2024-02-30\n").encode()
    rows = rows_of(data, 500, keeps=True)
    expected = read(rows_of(data, 500))
    asked: list[str] = []
    read_piece = PieceReader._read

    def counted(reader: PieceReader, piece: Piece) -> bytes:
        asked.append(piece.place)
        return read_piece(reader, piece)

    monkeypatch.setattr(PieceReader, "_read", counted)
    found, frame = read(rows)
    assert found == expected[0]
    assert frame.equals(expected[1])
    # Where the whole column is wider than it is in a piece, that is read again as what it is.
    assert (not asked) == (last in ("7", "")), asked
    assert len(asked) < len(rows.units)


def test_kept_rows_say_which_value_does_not_fit() -> None:
    data = b"id,day\n" + b"5,2024-01-05\n" * 40 + b"6,2024-02-30\n"
    errors = []
    for keeps in (False, True):
        rows = rows_of(data, 1 << 20, keeps=keeps)
        declared: Types = {"day": pl.Date()}
        types = rows.find(declared, None).types | declared
        with pytest.raises(SchemaChangedError) as error:
            rows.frame(0, len(rows.units), types, frozenset())
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert "row 41" in errors[0]


def test_dates_are_converted_once_each() -> None:
    texts = pl.Series("day", ["2024-01-05", None, "2024-01-06", "2024-01-05"])
    typed = typed_csv(texts.to_frame(), {"day": pl.Date()}, URI)
    assert typed["day"].to_list() == [date(2024, 1, 5), None, date(2024, 1, 6), date(2024, 1, 5)]
    nothing = typed_csv(texts.clear().to_frame(), {"day": pl.Date()}, URI)
    assert nothing.schema == {"day": pl.Date()}


def test_frames_are_kept_as_far_as_there_is_space() -> None:
    frame = pl.DataFrame({"a": range(1000)})
    kept = KeptFrames()
    kept.put("x", frame)
    again = kept.get("x", {"a": pl.Int64()})
    assert again is not None
    assert again.equals(frame)
    assert kept.get("x", {"a": pl.Float64()}) is None
    assert kept.get("y", {}) is None
    full = KeptFrames(max_share=1e-12)
    full.put("x", frame)
    assert full.get("x", {}) is None
    folder = kept._folder
    del again
    next(folder.iterdir()).write_bytes(b"damaged")
    assert kept.get("x", {"a": pl.Int64()}) is None
    del kept
    assert not folder.exists()
