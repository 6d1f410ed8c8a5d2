"""Keep the JavaScript that draws charts: to make it takes a second and 100 MB of memory."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pipeline.private import make_folder, write_file


def vega_bundle() -> str:
    """Return Vega's JavaScript, from the user's cache folder if it is there."""
    file = _cache_folder() / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text("utf-8")
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with suppress(OSError):  # A cache that cannot be written costs the next report this second.
        make_folder(file.parent)
        write_file(file, bundle)
    return bundle


def _cache_folder() -> Path:
    """Return chunkmap's folder in the user's cache folder, as the XDG specification places it."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return Path(folder if os.path.isabs(folder) else os.path.expanduser("~/.cache")) / "chunkmap"
