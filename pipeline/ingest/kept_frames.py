"""Rows that were read to find their types, kept on this machine's disk until they are written."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Hashable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Final

import polars as pl

from pipeline.ingest.schema import Types

MAX_SHARE: Final = 0.25
"""Share of the free disk that may be used."""


class KeptFrames:
    """Frames by key, in a folder that is deleted with this object.

    One that is missing is read again from its source, so that errors of the disk are none.
    """

    def __init__(self, max_share: float = MAX_SHARE) -> None:
        self._max_share = max_share
        self._paths: dict[Hashable, Path] = {}
        self._used = 0
        self._lock = Lock()

    @cached_property
    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="chunkmap-ingest-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def put(self, key: Hashable, frame: pl.DataFrame) -> None:
        """Keep a frame, if there is space for it."""
        with suppress(OSError, pl.exceptions.PolarsError):
            with self._lock:
                path = self._folder / f"{len(self._paths)}.arrow"
                most = shutil.disk_usage(path.parent).free * self._max_share
                if key in self._paths or self._used + frame.estimated_size() > most:
                    return
                self._paths[key] = path  # Until it is written, reading it fails.
                self._used += int(frame.estimated_size())
            frame.write_ipc(path)

    def get(self, key: Hashable, types: Types) -> pl.DataFrame | None:
        """Return a frame; None if there is none whose columns have these types, or are texts."""
        path = self._paths.get(key)
        if path is None:
            return None
        try:
            frame: pl.DataFrame = pl.read_ipc(path)
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            return None
        kinds = frame.schema.items()
        return frame if all(k in (pl.String(), types.get(n, k)) for n, k in kinds) else None
