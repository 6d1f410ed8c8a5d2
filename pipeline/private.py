"""Folders and files that hold secrets: for their user alone, from the moment they are made."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
"""Modes of what only its user may read."""
OTHERS = 0o077
"""What a mode allows to all other accounts."""


def make_folder(folder: Path) -> Path:
    """Make a folder and those above it that are missing, for this user alone; return it."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(mode=FOLDER, exist_ok=True)
    return folder


def state_folder(root: Path, *parts: str) -> Path:
    """Make the state folder, or close it to other accounts; return a folder inside.

    Everything that keeps state on this machine goes through here, since whatever comes first makes
    the folder in which secrets will lie.

    Args:
        root: The setting `state_dir`. Version control leaves it out.
        parts: Names of a folder inside, which is made too. Default: the state folder itself.
    """
    make_folder(root)
    if not is_closed(root):
        # On file systems without modes, or in another user's folder, it stays as it is.
        with suppress(OSError):
            root.chmod(FOLDER)
    ignore = root / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    return make_folder(root.joinpath(*parts))


def is_closed(folder: Path) -> bool:
    """Whether no other account of this machine may enter a folder."""
    return not stat.S_IMODE(folder.stat().st_mode) & OTHERS


def write_file(path: Path, text: str) -> None:
    """Replace a file in one step; only this user may read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)
