"""What an output holds: the pointer, its manifests, and the commit records they list.

    HEAD.json            pointer: the current manifest's number, and the claim of who publishes
    manifests/<n>.json   one snapshot: an ordered list of commits
    commits/<name>.arrow the files that one commit adds, frozen before they are made visible

A manifest never repeats files: a snapshot is its commits, folded in order.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc
from pydantic import BaseModel, ConfigDict

from pipeline.errors import AlreadyExistsError, ObjectMissingError
from pipeline.records import RunRecord
from pipeline.storage import Storage, join, parse, state_prefix

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

    commit: str
    base: int
    """The manifest that the commit goes on top of."""


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


class Manifest(_Record):
    """One snapshot of an output."""

    version: int = 1
    number: int
    created: float
    """Unix seconds."""
    commits: tuple[CommitEntry, ...]


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

    def partitions(self) -> set[str]:
        """The folders that its files are in."""
        return set(folder_of(self.files["key"]))

    def to_bytes(self) -> bytes:
        """Arrow IPC, with the rest as JSON in the schema's metadata."""
        said = {
            "entry": self.entry.model_dump(),
            "base": self.base,
            "missing": self.missing,
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
            files=pl.DataFrame(pl.from_arrow(table)).cast(dict(FILES)),  # type: ignore[arg-type]
        )


def folder_of(keys: pl.Series) -> list[str]:
    """The folder of each key: its partition, when the output is partitioned."""
    return [key.rpartition("/")[0] for key in keys.to_list()]


def draft_commit(
    record: RunRecord, done: pl.DataFrame, missing: Iterable[str] = (), name: str | None = None
) -> Commit:
    """Completions of a run as a commit that is not frozen yet.

    Args:
        record: The run.
        done: One completion a chunk (schema COMPLETIONS).
        missing: Ids of planned chunks that are left out.
        name: Of the commit, unique to what is committed; default the run's id.
    """
    files = done.select(
        key=pl.col("uri").str.strip_prefix(record.output),
        rows="rows_out",
        bytes="bytes_out",
        sha256="sha256",
        chunk="chunk",
        index="index",
        attempt="attempt",
        upload="upload",
        parts="parts",
    )
    left_out = tuple(missing)
    entry = CommitEntry(
        name=name or record.run,
        run=record.run,
        mode=record.mode,
        files=files.height,
        rows=int(files["rows"].sum()),
        bytes=int(files["bytes"].sum()),
        missing=len(left_out),
    )
    return Commit(entry, record.base, left_out, files)


class Catalog:
    """Reads and writes the state of one output."""

    def __init__(self, storage: Storage, output: str) -> None:
        self.storage = storage
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)

    @property
    def _head_uri(self) -> str:
        return self.state + "HEAD.json"

    def head(self) -> tuple[Head, str | None]:
        """The pointer and its ETag; an output that was never published has a default one."""
        blob = self.storage.get_if_there(self._head_uri)
        if blob is None:
            return Head(), None
        return Head.model_validate_json(blob.data), blob.etag

    def move_head(self, head: Head, etag: str | None) -> None:
        """Replace the pointer if it is still the one with this ETag (None: if there is none).

        Raises:
            PreconditionFailedError, AlreadyExistsError: someone else was faster.
        """
        data = head.model_copy(update={"writer": uuid.uuid4().hex}).model_dump_json().encode()
        if etag is None:
            self.storage.put_new(self._head_uri, data)
        else:
            self.storage.put_if(self._head_uri, data, etag)

    def manifest(self, number: int | None = None) -> Manifest:
        """A manifest by number, or the current one.

        Raises:
            ObjectMissingError: there is no such manifest.
        """
        if number is None:
            number = self.head()[0].current
        if number == 0:
            return Manifest(number=0, created=0.0, commits=())
        blob = self.storage.get(join(self.state, "manifests", f"{number}.json"))
        return Manifest.model_validate_json(blob.data)

    def write_manifest(self, base: Manifest, commit: CommitEntry) -> Manifest:
        """Write the manifest that puts a commit on top of a base; twice is once."""
        kept = () if commit.mode == "overwrite" else base.commits
        manifest = Manifest(number=base.number + 1, created=time.time(), commits=(*kept, commit))
        data = manifest.model_dump_json(indent=1).encode()
        try:
            self.storage.put_new(join(self.state, "manifests", f"{manifest.number}.json"), data)
        except AlreadyExistsError:
            # Under one claim there is one commit: whoever came first wrote the same list.
            return self.manifest(manifest.number)
        return manifest

    def commit(self, name: str) -> Commit | None:
        """A commit record, with its amendments; None if there is none of this name."""
        blob = self.storage.get_if_there(self._commit_uri(name, 0))
        if blob is None:
            return None
        commit = Commit.from_bytes(blob.data)
        number = 1
        while (more := self.storage.get_if_there(self._commit_uri(name, number))) is not None:
            commit = _amended(commit, Commit.from_bytes(more.data))
            number += 1
        return commit

    def write_commit(self, commit: Commit) -> Commit:
        """Freeze a commit record; if one of its name is there, that one counts."""
        try:
            self.storage.put_new(self._commit_uri(commit.entry.name, 0), commit.to_bytes())
        except AlreadyExistsError:
            found = self.commit(commit.entry.name)
            assert found is not None
            return found
        return commit

    def amend(self, commit: Commit, files: pl.DataFrame) -> Commit:
        """Name other attempts for chunks whose uploads vanished after the record was frozen."""
        name, number = commit.entry.name, 1
        while True:
            change = Commit(commit.entry, commit.base, commit.missing, files)
            try:
                self.storage.put_new(self._commit_uri(name, number), change.to_bytes())
                return self.commit(name) or commit
            except AlreadyExistsError:
                number += 1

    def _commit_uri(self, name: str, amendment: int) -> str:
        suffix = f".{amendment}" if amendment else ""
        return join(self.state, "commits", f"{name}{suffix}.arrow")

    def snapshot(self, manifest: Manifest) -> pl.DataFrame:
        """The files of a manifest (schema FILES and `commit`), in the order of their commits.

        Raises:
            ObjectMissingError: a commit record is gone.
        """
        files = pl.DataFrame(schema={**FILES, "commit": pl.String})
        for entry in manifest.commits:
            commit = self.commit(entry.name)
            if commit is None:
                raise ObjectMissingError(self._commit_uri(entry.name, 0))
            if entry.mode == "overwrite":
                files = files.clear()
            elif entry.mode == "overwrite-partitions":
                replaced = [f in commit.partitions() for f in folder_of(files["key"])]
                files = files.filter(~pl.Series(replaced, dtype=pl.Boolean))
            named = commit.files.with_columns(commit=pl.lit(entry.name))
            files = pl.concat([files, named])
        return files


def _amended(commit: Commit, change: Commit) -> Commit:
    untouched = commit.files.join(change.files, on="chunk", how="anti")
    files = pl.concat([untouched, change.files]).sort("index")
    entry = commit.entry.model_copy(
        update={"rows": int(files["rows"].sum()), "bytes": int(files["bytes"].sum())}
    )
    return Commit(entry, commit.base, commit.missing, files)
