"""Find packages that were installed after this process started."""

from __future__ import annotations

import site
from pathlib import Path

import psutil

_read: set[Path] = set()
"""Files that have been read since this process started."""


def add_new_paths() -> bool:
    """Extend the import path as Python does at its start, by what was installed since.

    An editable install writes a `.pth` file, which a running interpreter does not read.

    Returns:
        Whether there was any such file.
    """
    started = psutil.Process().create_time()
    before = len(_read)
    for folder in dict.fromkeys([*site.getsitepackages(), site.getusersitepackages()]):
        for file in sorted(Path(folder).glob("*.pth")):
            if file not in _read and file.stat().st_mtime > started:
                _read.add(file)
                site.addpackage(folder, file.name, None)
    return len(_read) > before
