"""Start the command line, `chunkmap`.

This module is not in a package because a folder on PYTHONPATH may have a package of the same name
as chunkmap's, which Python would import instead.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

GC_THRESHOLD = 10_000
"""New objects after which Python looks for garbage. With its own 700, that is a tenth of the time
that a command takes to import what it needs, nearly all of which stays."""


def main() -> None:
    """Import chunkmap's packages from the folder of this file, and run the command line."""
    gc.set_threshold(GC_THRESHOLD)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from pipeline.own_packages import settle

    settle()
    from pipeline.cli import main as run

    run()


if __name__ == "__main__":
    main()
