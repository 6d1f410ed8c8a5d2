"""What a terminal would obey is spelled; everything else stays as it is."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import logs
from pipeline.printable import escaped_json, one_line_json, printable, printable_line


@cache
def obeyed() -> frozenset[str]:
    """Characters that are not shown as they are."""
    every = map(chr, range(sys.maxunicode + 1))
    return frozenset(each for each in every if printable(each) != each)


TEXTS = st.text() | st.deferred(
    lambda: st.text(st.sampled_from([*sorted(obeyed()), "a", "\\", "\n"]))
)


def test_all_controls_and_marks_of_direction_are_spelled() -> None:
    known = obeyed()
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            assert (character in known) == (character not in "\n\t"), hex(code)
        elif unicodedata.bidirectional(character) in {
            *("LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"),
        }:
            assert character in known, hex(code)
        elif unicodedata.category(character) not in ("Cf", "Cn"):
            assert character not in known, hex(code)


@pytest.mark.parametrize(
    "text", ["plain", "日本 é", "👩\u200d👩", "می\u200cخواهم", "a\tb\nc", "\\x1b"]
)
def test_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@given(TEXTS)
def test_nothing_is_lost(text: str) -> None:
    shown = printable(text)
    assert not obeyed() & set(shown)
    assert "\n" not in printable_line(text)
    assert printable(shown) == shown
    shown.encode()  # halves of pairs cannot be encoded


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_is_valid_and_on_one_line(value: object) -> None:
    text = one_line_json(value)
    assert text.isascii()
    assert text.isprintable()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    read = json.loads(text, parse_constant=refuse)
    if "nan" not in repr(value).lower() and "inf" not in repr(value).lower():
        assert read == value


@given(st.text())
def test_escapes_in_json_are_the_same_data(value: str) -> None:
    text = escaped_json(json.dumps(value, ensure_ascii=False))
    assert not obeyed() & set(text)
    assert json.loads(text) == value


# -- logs -------------------------------------------------------------------------------------

HOSTILE = "a\x1b]0;title\x07\x9b31m\u202e\x7f\n2024-01-01 00:00:00,000 ERROR   forged: line"


def logged(formatter: logging.Formatter) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger(HOSTILE)
    logger.addHandler(handler)
    with logs.log_ids(run=HOSTILE, chunk="c"):
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.exception("%s failed", HOSTILE)
    return stream.getvalue()


def test_log_lines_hold_no_control_characters_and_forge_no_lines() -> None:
    text = logged(logs.TextFormatter())
    assert not obeyed() & set(text)
    assert "\\x1b]0;title" in text
    first, *rest = text.splitlines()
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert first[:4].isdigit()


def test_log_lines_as_json_are_ascii() -> None:
    text = logged(logs.JsonFormatter())
    assert text.count("\n") == 1
    assert text.isascii()
    assert not obeyed() & set(text)
    assert json.loads(text)["message"] == f"{HOSTILE} failed"
