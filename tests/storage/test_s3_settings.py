"""Settings of S3 that are not addresses or keys."""

from pathlib import Path

import pytest

from pipeline.config.sections import S3Settings
from pipeline.config.settings import load_settings
from pipeline.errors import SettingsError


def test_no_output_may_be_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As it is documented: 0 stages all of them as uploads."""
    monkeypatch.setenv("CHUNKMAP_S3__COPIED_BYTES", "0")
    assert load_settings(cwd=tmp_path).s3.copied_bytes == 0
    monkeypatch.setenv("CHUNKMAP_S3__COPIED_BYTES", "8MiB")
    assert load_settings(cwd=tmp_path).s3.copied_bytes == 8 << 20
    monkeypatch.setenv("CHUNKMAP_S3__COPIED_BYTES", "-1")
    with pytest.raises(SettingsError, match="is not a size"):
        load_settings(cwd=tmp_path)


def test_another_process_addresses_the_same_s3_in_the_same_way() -> None:
    s3 = S3Settings(addressing="virtual", conditional_writes="single-writer")
    assert s3.environment() == {
        "CHUNKMAP_S3__ADDRESSING": "virtual",
        "CHUNKMAP_S3__CONDITIONAL_WRITES": "single-writer",
    }
    assert S3Settings().environment() == {}
