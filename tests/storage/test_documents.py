"""Stored JSON: any damage is reported with the name of the object."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.errors import StateError
from pipeline.storage.documents import is_name, parse_number, parse_stored

URI = "s3://out/t.chunkmap/x.json"


class Record(BaseModel):
    number: int
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it is empty"),
        (b'{"number": 1', "EOF"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "object"),
        (b"{}", "number: Field required"),
        (b'{"number": "x", "names": 3}', r"number: .*\(and 1 more\)"),
        (b'{"number": 1, "other": "' + b"x" * 100 + b'"}', "126 bytes; the maximum is 100"),
        (b"[" * 90, "recursion|EOF"),
    ],
)
def test_a_damaged_document_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(StateError, match=problem) as caught:
        parse_stored(Record, data, URI, max_bytes=100)
    assert str(caught.value).startswith(URI)
    assert caught.value.hint
    assert len(str(caught.value)) < 500


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_an_error(data: bytes) -> None:
    for call in (lambda: parse_stored(Record, data, URI), lambda: parse_number(data, "n", URI)):
        try:
            call()
        except StateError as error:
            assert URI in str(error)


def test_a_sound_document_is_read() -> None:
    assert parse_stored(Record, b'{"number": 1, "new": []}', URI) == Record(number=1)
    assert parse_number(b'{"manifest": 7}', "manifest", URI) == 7


@pytest.mark.parametrize(
    "data", [b'{"manifest": -1}', b'{"manifest": true}', b'{"manifest": 1.0}', b"3", b"{}"]
)
def test_what_is_no_number_is_damaged(data: bytes) -> None:
    with pytest.raises(StateError, match="'manifest' is not a number"):
        parse_number(data, "manifest", URI)


@pytest.mark.parametrize("text", ["", ".", "..", ".x", "a/b", "a\\b", "a\nb", "x" * 401])
def test_what_is_no_name(text: str) -> None:
    assert not is_name(text)
    assert is_name("2024-01-01T00:00+02:00")
