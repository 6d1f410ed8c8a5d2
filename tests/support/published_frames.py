"""Outputs that are published frame by frame, without runs: each frame is a file of a commit."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from pipeline.config.settings import Settings, load_settings
from pipeline.storage import Storage, open_storage
from pipeline.table.columns import Columns, digest_columns
from pipeline.table.log import TableLog
from pipeline.table.manifest import FILES, Commit, CommitEntry
from pipeline.table.publish import publish, rollback
from pipeline.uris import staged_area


class Frames:
    """An output in a local folder, or on any storage."""

    def __init__(self, uri: str, settings: Settings | None = None) -> None:
        self.uri = uri
        self.settings = settings or load_settings()

    @classmethod
    def of(cls, folder: Path) -> Frames:
        """Make an output in a folder."""
        return cls(f"file://{folder}/out/")

    @property
    def storage(self) -> Storage:
        return open_storage(self.settings)

    @property
    def table_log(self) -> TableLog:
        return TableLog(self.storage, self.uri)

    def add(self, *frames: pl.DataFrame, mode: str = "append") -> str:
        """Publish a commit of some files; returns its name."""
        return self.add_files({f"{i}": frame for i, frame in enumerate(frames)}, mode)

    def add_files(self, frames: Mapping[str, pl.DataFrame], mode: str = "append") -> str:
        """Publish a commit of files with these keys, such as `day=1/a`."""
        run = uuid.uuid4().hex[:16]
        rows = []
        columns: Columns = {}
        for index, (name, frame) in enumerate(frames.items()):
            folder, slash, _ = name.rpartition("/")
            key = f"{folder}{slash}part-{index:05d}-{run}.parquet"
            buffer = io.BytesIO()
            frame.write_parquet(buffer)
            data = buffer.getvalue()
            attempt = uuid.uuid4().hex
            area = staged_area(self.uri)
            staged = self.storage.stage(self.uri + key, memoryview(data), attempt, area)
            rows.append(
                {
                    "key": key,
                    "rows": frame.height,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "chunk": uuid.uuid4().hex,
                    "index": index,
                    "attempt": attempt,
                    "upload": staged.upload,
                    "parts": list(staged.parts),
                }
            )
            columns |= {column: str(kind) for column, kind in frame.schema.items()}
        files = pl.DataFrame(rows, schema=FILES)
        entry = CommitEntry(
            name=run,
            run=run,
            mode=mode,
            files=files.height,
            rows=int(files["rows"].sum()),
            bytes=int(files["bytes"].sum()),
            columns=digest_columns(columns),
        )
        log = self.table_log
        folders = {key.rpartition("/")[0] for key in files["key"]}
        replaces = tuple(sorted(folders)) if mode == "overwrite-partitions" else ()
        base = log.head()[0].current
        draft = Commit(entry, base, (), files, replaces=replaces, columns=columns)
        publish(log, draft, widens=lambda: True)
        return run

    def rollback(self, number: int) -> int:
        """Make an older version current again; returns the number of the new manifest."""
        return rollback(self.table_log, number).number
