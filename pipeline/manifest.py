"""What an output holds: the pointer, its manifests, and the commit records that they list.

    HEAD.json            pointer: the current manifest's number, and the claim of who publishes
    manifests/<n>.json   one snapshot: an ordered list of commits
    commits/<name>.arrow the files that one commit adds, frozen before they are made visible

A manifest never repeats files: a snapshot is its commits, folded in order.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc
from pydantic import BaseModel, ConfigDict

from pipeline.records import RunRecord

_FILES: dict[str, Any] = {
    "key": pl.String,
    "rows": pl.Int64,
    "bytes": pl.Int64,
    "sha256": pl.String,
    "chunk": pl.String,
    "index": pl.Int64,
    "attempt": pl.String,
    "upload": pl.String,
    "parts": pl.List(pl.String),
}
FILES = pl.Schema(_FILES)
"""The columns of a commit record: `key` is relative to the output, `sha256` our own checksum."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Claim(_Record):
    """Who publishes, on top of what."""

    base: int
    """The manifest that the new one goes on top of."""
    commit: str | None = None
    """The commit that is added."""
    rollback: int | None = None
    """Or the manifest that is brought back."""


class Head(_Record):
    """The pointer."""

    version: int = 1
    current: int = 0
    """Number of the current manifest; 0 is the empty output."""
    publishing: Claim | None = None
    writer: str = ""
    """Unique to each write, so that a lost reply can be told from a lost race."""


class CommitEntry(_Record):
    """A commit as a manifest lists it."""

    name: str
    run: str
    mode: str
    """`overwrite` drops all files before it, `overwrite-partitions` those of its partitions."""
    files: int
    rows: int
    bytes: int
    missing: int = 0
    """Planned chunks that are not in it."""
    keep_versions: int = 1
    """Replaced versions that are kept from here on."""
    amendments: int = 0
    """Amendments of its record that count."""


class Manifest(_Record):
    """One snapshot of an output."""

    version: int = 1
    number: int
    created: float
    """Unix seconds."""
    commits: tuple[CommitEntry, ...]
    rollback_of: int | None = None
    """The manifest that this one brought back."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit record."""

    entry: CommitEntry
    base: int
    """The manifest that was current when its run was created: later ones may conflict."""
    missing: tuple[str, ...]
    """Ids of planned chunks that failed and are left out."""
    files: pl.DataFrame
    """Schema FILES."""
    replaces: tuple[str, ...] = ()
    """In mode overwrite-partitions: the folders whose earlier files it drops."""

    def to_bytes(self) -> bytes:
        """Arrow IPC, with the rest as JSON in the schema's metadata."""
        said = {
            "entry": self.entry.model_dump(),
            "base": self.base,
            "missing": self.missing,
            "replaces": self.replaces,
            "writer": uuid.uuid4().hex,
        }
        table = self.files.to_arrow().replace_schema_metadata({"chunkmap": json.dumps(said)})
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> Commit:
        """Read what `to_bytes` wrote."""
        with pa.ipc.open_file(io.BytesIO(data)) as reader:
            table = reader.read_all()
        said = json.loads(table.schema.metadata[b"chunkmap"])
        return cls(
            entry=CommitEntry(**said["entry"]),
            base=said["base"],
            missing=tuple(said["missing"]),
            replaces=tuple(said["replaces"]),
            files=pl.DataFrame(pl.from_arrow(table)).cast(dict(FILES)),  # type: ignore[arg-type]
        )


def folders(files: pl.DataFrame) -> list[str]:
    """The folder of each file: its partition, where the output is partitioned."""
    return [key.rpartition("/")[0] for key in files["key"].to_list()]


def draft_commit(
    record: RunRecord,
    done: pl.DataFrame,
    missing: Iterable[str] = (),
    earlier: Sequence[Commit] = (),
    keep_versions: int = 1,
) -> Commit:
    """Completions of a run as a commit that is not frozen yet.

    Args:
        record: The run.
        done: One completion a chunk (schema COMPLETIONS), of chunks not committed before.
        missing: Ids of planned chunks that are left out.
        earlier: Commits of the same run that are published: this one adds to them.
        keep_versions: Replaced versions to keep.
    """
    files = files_of(record.output, done)
    left_out = tuple(missing)
    # What an earlier commit of this run has replaced holds this run's files now.
    already = {folder for one in earlier for folder in one.replaces}
    mode = "append" if earlier and record.mode != "overwrite-partitions" else record.mode
    entry = CommitEntry(
        name=f"{record.run}.{len(earlier) + 1}" if earlier else record.run,
        run=record.run,
        mode=mode,
        files=files.height,
        rows=int(files["rows"].sum()),
        bytes=int(files["bytes"].sum()),
        missing=len(left_out),
        keep_versions=keep_versions,
    )
    replaced = set(folders(files)) - already if mode == "overwrite-partitions" else set()
    return Commit(entry, record.base, left_out, files, tuple(sorted(replaced)))


def files_of(output: str, completions: pl.DataFrame) -> pl.DataFrame:
    """Completions as files of a commit record (schema FILES)."""
    return completions.select(
        key=pl.col("uri").str.strip_prefix(output),
        rows="rows_out",
        bytes="bytes_out",
        sha256="sha256",
        chunk="chunk",
        index="index",
        attempt="attempt",
        upload="upload",
        parts="parts",
    )
