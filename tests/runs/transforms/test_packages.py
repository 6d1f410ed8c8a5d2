"""The versions of packages that a job's code imports."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from pipeline.runs.transforms import packages
from pipeline.runs.transforms.packages import versions_in_use


def install(folder: Path, distribution: str, module: str, version: str) -> None:
    info = folder / f"{distribution}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (info / "top_level.txt").write_text(module + "\n")
    # Files that are made within one tick of a coarse clock would not change the folder's time.
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns + 1))


def test_a_package_is_found_whose_distribution_has_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"module_{uuid.uuid4().hex[:8]}"
    monkeypatch.syspath_prepend("x" * 5000)  # No file system has such a name.
    monkeypatch.syspath_prepend(tmp_path)
    assert versions_in_use([module]) == {module: "none"}
    install(tmp_path, "some_distribution", module, "1.2.3")
    assert versions_in_use([module]) == {module: "1.2.3"}


def test_distributions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def read() -> dict[str, list[str]]:
        reads.append(1)
        return {}

    monkeypatch.setattr(packages, "packages_distributions", read)
    monkeypatch.setattr(packages, "_folder_times", lambda: (-1,))
    assert set(versions_in_use(["no_such", "nor_this", "none_such"]).values()) == {"none"}
    assert len(reads) == 1
