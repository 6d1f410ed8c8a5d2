"""An output in a folder of its own, and a fresh database of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.published_frames import Frames


@pytest.fixture
def output(tmp_path: Path) -> Frames:
    return Frames.of(tmp_path)
