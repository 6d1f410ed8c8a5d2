"""Settings that a run sends: workers use them, within the limits of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.settings import Settings
from pipeline.runs.worker.run_settings import received_settings, sent_settings


def settings(allow: list[str], path: str = ".", **more: object) -> Settings:
    return Settings.model_validate({"transforms": {"allow": allow, "path": [path]}, **more})


@pytest.mark.parametrize(
    ("asked", "own", "both"),
    [
        (["shop"], ["shop", "lab"], ("shop",)),
        (["shop", "lab"], ["shop"], ("shop",)),
        (["shop"], ["lab"], ()),
        (["shop.prices"], ["shop"], ("shop.prices",)),
        (["shop"], ["shop.prices"], ("shop.prices",)),
    ],
)
def test_the_workers_own_list_is_the_ceiling(
    asked: list[str], own: list[str], both: tuple[str, ...]
) -> None:
    received = received_settings(settings(own), sent_settings(settings(asked)))
    assert received.transforms.allow == both


def test_a_run_brings_its_folders_and_sizes_but_no_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code").mkdir()
    s3 = {"endpoint_url": "http://elsewhere:1", "secret_access_key": "hush"}
    asked = settings(["shop"], "code", reading={"prefetch": False}, s3=s3)
    sent = sent_settings(asked)
    assert "hush" not in sent
    assert "elsewhere" not in sent
    own = settings(["shop"], "/theirs")
    received = received_settings(own, sent)
    assert received.transforms.path == (str(tmp_path / "code"), "/theirs")
    assert not received.reading.prefetch
    assert received.s3 == own.s3
    (tmp_path / "code").rmdir()  # A worker on another machine has no such folder.
    assert received_settings(own, sent).transforms.path == ("/theirs",)
    assert received_settings(own, "") is own
