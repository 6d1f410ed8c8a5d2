"""Create folders and files that hold secrets, readable by the current user only."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

FOLDER_MODE, FILE_MODE = 0o700, 0o600
"""Modes that allow access to the owner only."""
OTHER_USERS = 0o077
"""Bits of a mode that allow access to group and others."""


def make_folder(folder: Path) -> Path:
    """Create a folder and its missing parents for the current user only; return it."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    return folder


def state_folder(root: Path, *parts: str) -> Path:
    """Create the state folder, or close it to other accounts; return a folder inside.

    All code that keeps state on this machine uses this function, because the first caller creates
    the folder that will hold secrets.

    Args:
        root: The setting `state_dir`. It gets a .gitignore.
        parts: Path of a folder inside, which is created too. Default: the state folder itself.
    """
    make_folder(root)
    if not is_closed(root):
        # A file system without modes, or another user's folder, stays as it is.
        with suppress(OSError):
            root.chmod(FOLDER_MODE)
    ignore = root / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    return make_folder(root.joinpath(*parts))


def is_closed(folder: Path) -> bool:
    """Whether no other account of this machine may enter a folder."""
    return not stat.S_IMODE(folder.stat().st_mode) & OTHER_USERS


def write_file(path: Path, text: str) -> None:
    """Replace a file atomically; only the current user may read it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)
