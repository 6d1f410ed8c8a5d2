"""Keep chunkmap's own packages importable where a user's folder has one of the same name.

Python finds a package by its name alone, and users have folders called `pipeline` too. In this
process the names are taken by what is imported first; a process that it starts (a worker) inherits
`sys.path` and imports everything again.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

NAMES = ("chunkmap", "partitioning", "pipeline")
"""Top-level packages of chunkmap."""
FOLDER = Path(__file__).resolve().parents[1]
"""Folder that holds them."""
COMMAND = (sys.executable, "-P", str(FOLDER / "chunkmap_main.py"))
"""Command line of another `chunkmap`, from any folder."""


def is_own(module: str) -> bool:
    """Whether a module's name is in one of chunkmap's packages."""
    return module.partition(".")[0] in NAMES


def settle() -> None:
    """Remove chunkmap's folder, put first to import this, unless others hide its packages."""
    sys.path.remove(str(FOLDER))
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    put_own_first()


def put_own_first() -> None:
    """Put chunkmap's folder first in `sys.path` if another folder hides one of its packages."""
    if any(_is_hidden(name) for name in NAMES):
        sys.path.insert(0, str(FOLDER))


def _is_hidden(name: str) -> bool:
    spec = PathFinder.find_spec(name, sys.path)
    places = list((spec.submodule_search_locations or ()) if spec else ())
    return bool(spec) and (FOLDER / name).resolve() not in {Path(at).resolve() for at in places}
