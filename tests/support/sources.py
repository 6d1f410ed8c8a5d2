"""A package whose source is read, and how its fingerprint answers to edits."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.sections import TransformSettings
from pipeline.runs.transforms.loading import fingerprint_of

RUN = "def run(frame, n=1):\n    return frame.head(n)\n"

ONE_MODULE = """
import functools
import polars as pl

N = {number}

def helper(frame):
    return frame

class Base:
    size = N

    def method(self, frame):
        return frame

class Heir(Base):
    pass

def decorate(function):
    return function

def make(count):
    def inner(frame):
        return frame.head(count)
    return inner

"""


class Folder:
    """A package `shop` in a folder of its own; only its source is ever read."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, modules: Mapping[str, str]) -> None:
        for name, source in modules.items():
            path = self.root / "shop" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)

    def settings(self, *allow: str) -> TransformSettings:
        return TransformSettings(allow=allow or ("shop",), path=(str(self.root),))

    def of(self, *allow: str, name: str = "shop.main:run", **params: Any) -> str:
        return fingerprint_of(name, params, self.settings(*allow))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    # The folders of later tests come first in sys.path.
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = Folder(tmp_path)
    made.write({"__init__": ""})
    return made


def change(folder: Folder, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether an edit changes the fingerprint of shop.main:run."""
    folder.write(before)
    first = folder.of()
    folder.write(after)
    return folder.of() != first
