"""The JavaScript of charts is made once per account."""

from __future__ import annotations

from pathlib import Path

import pytest
import vl_convert

from pipeline.report.vega_bundle import vega_bundle


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = vega_bundle()
    assert "vegaEmbed" in made
    [file] = (tmp_path / "cache" / "chunkmap").iterdir()
    assert file.stat().st_mode & 0o077 == 0

    def fail(_: str) -> str:
        raise AssertionError("made again")

    monkeypatch.setattr(vl_convert, "javascript_bundle", fail)
    assert vega_bundle() == made


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    # It takes seconds, and its text is looked at above.
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: f"made of {snippet}")
    assert vega_bundle().startswith("made of ")
