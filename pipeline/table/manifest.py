"""What an output holds: the pointer, its manifests, and the commit records that they list.

    HEAD.json            pointer: the current manifest's number, and the claim of who publishes
    manifests/<n>.json   one snapshot: the commits that it adds to an earlier one
    commits/<name>.arrow the files that one commit adds, frozen before they are made visible

A manifest never repeats files: a snapshot is its commits, folded in order. Nor does it repeat its
list of commits: see `base_of`.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc
from pydantic import BaseModel, ConfigDict, model_validator

from partitioning.table_file import TableFile, pack_tables
from partitioning.windows import Windowing
from pipeline.table.columns import Columns

HEAD_VERSION = 1
"""Format of HEAD.json."""
MANIFEST_VERSION = 3
"""Format of manifests: 1 repeats all commits, 2 what they add, 3 has entries without files too."""
MOST_NAMED = 10_000
"""Objects that a commit record names as left out."""
SPAN = 32
"""Manifests between two that repeat what was added since the last such one (see `base_of`)."""

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
_QUARANTINED: dict[str, Any] = {
    "uri": pl.String,
    "etag": pl.String,
    "size": pl.Int64,
    "row_groups": pl.List(pl.Int64),
    "reason": pl.String,
    "run": pl.String,
    "chunk": pl.String,
    "at": pl.Float64,
}
QUARANTINED = pl.Schema(_QUARANTINED)
"""Objects in quarantine: a row for each chunk that goes without one. `row_groups` is the half-open
range of that chunk, `at` the Unix seconds at which it was found. An object that planning found bad
is in no chunk."""
FILES = pl.Schema(_FILES)
"""The columns of a commit record: `key` is relative to the output, `sha256` our own checksum."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Claim(_Record):
    """Who publishes, on top of what."""

    base: int
    """The manifest that the new one goes on top of."""
    commits: tuple[str, ...] = ()
    """The commits that are added, in this order, all together."""
    rollback: int | None = None
    """Or the manifest that is brought back."""

    @model_validator(mode="before")
    @classmethod
    def _one(cls, data: Any) -> Any:
        """Read claims of the form that had one commit."""
        if isinstance(data, dict) and data.get("commit") and "commits" not in data:
            return {**data, "commits": (data["commit"],)}
        return data


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
    """How its files come on top of those before it. `overwrite` drops all of these,
    `overwrite-partitions` those of its partitions. `restore` (of a rollback) renames some of them,
    and `release` (of a repair) says that some commits are never to be published."""
    files: int
    rows: int
    bytes: int
    missing: int = 0
    """Planned chunks that are not in it."""
    keep_versions: int = 1
    """Replaced versions that are kept from here on."""
    amendments: int = 0
    """Amendments of its record that count."""
    window: str | None = None
    """Label of the window that it is of, if the run is committed by windows."""
    rule: str = ""
    """How windows are cut (see `rule_of`). In mode overwrite-partitions a window's commit drops all
    earlier files in folders of its window, whether it has files there or not."""
    code: str = ""
    """Fingerprint of the transform; of several, joined by commas. Old commits do not say."""
    inputs: str = ""
    """Digest of the window's objects, as `partitioning.inputs_digest` makes it."""
    columns: str = ""
    """Digest of the columns of its files, whatever their order (see `Commit.columns`). Old commits
    do not say."""
    releases: tuple[str, ...] = ()
    """In mode release: names of the commits that were claimed and given up."""
    left_out: int = 0
    """Objects that could not be read and are left out (`input.on_bad_object`)."""
    quarantined: int = 0
    """Those of them that are in quarantine (`input.on_bad_object: quarantine`)."""

    @property
    def adds_files(self) -> bool:
        """Whether a run has published files in it."""
        return self.mode not in ("restore", "release")


class Manifest(_Record):
    """One snapshot of an output."""

    version: int = 1
    number: int
    created: float
    """Unix seconds."""
    commits: tuple[CommitEntry, ...]
    rollback_of: int | None = None
    """The manifest that this one brought back."""
    full: int = 0
    """Since this manifest the list has only grown: it has all commits of those in between."""


class ManifestRecord(_Record):
    """A manifest as it is stored: what it adds to another one."""

    version: int = 1
    """See MANIFEST_VERSION."""
    number: int
    created: float
    base: int = 0
    """The manifest that the commits come on top of; 0 is the empty output."""
    full: int | None = None
    """As in `Manifest`; None is the manifest itself."""
    commits: tuple[CommitEntry, ...]
    rollback_of: int | None = None


def base_of(number: int, full: int) -> int:
    """The manifest that a stored one comes on top of, while the list only grows.

    Usually the one before. Each 32nd comes on top of the 32nd before it, each 1,024th of the
    1,024th before it, and so on: any manifest is folded from at most 31 objects a level, and each
    commit is written once a level, so that nothing grows with the square of their number.
    """
    span = 1
    while number % (span * SPAN) == 0:
        span *= SPAN
    return max(number - span, full)


def chain(number: int, full: int) -> Iterator[int]:
    """The stored manifests that one is folded from, newest first."""
    while number > full:
        yield number
        number = base_of(number, full)
    if number:
        yield number


def rule_of(windowing: Windowing) -> str:
    """How windows are cut, in a word for commit entries: `column/grain/timezone`.

    Several columns are joined by `=`, which no folder's column has in its name.
    """
    return f"{'='.join(windowing.columns)}/{windowing.grain}/{windowing.timezone}"


def run_of(commit: str) -> str:
    """The run that a commit is of, by its name (`<run>`, `<run>.2`, `<run>-<window>`)."""
    return commit.partition("-")[0].partition(".")[0]


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
    columns: Columns = field(default_factory=dict)
    """Names and types of its files' columns, as Polars spells them. Old commits do not say."""
    hive_types: Mapping[str, str] = field(default_factory=dict)
    """Types of partition columns that the job declares (`input.hive_types`), by name."""
    left_out: tuple[str, ...] = ()
    """Objects that could not be read, each with the reason behind a tab; at most MOST_NAMED."""
    quarantined: pl.DataFrame = field(default_factory=QUARANTINED.to_frame)
    """Those that are in quarantine (schema QUARANTINED); at most MOST_NAMED rows."""

    def to_bytes(self) -> bytes:
        """A table file, with a checksum."""
        said = {
            "entry": self.entry.model_dump(),
            "base": self.base,
            "missing": self.missing,
            "replaces": self.replaces,
            "columns": self.columns,
            "hive_types": dict(self.hive_types),
            "left_out": self.left_out,
            "writer": uuid.uuid4().hex,
        }
        tables = {"files": self.files.to_arrow()}
        if self.quarantined.height:
            tables["quarantined"] = self.quarantined.to_arrow()
        return pack_tables(tables, said)

    @classmethod
    def from_bytes(cls, data: bytes) -> Commit:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError, PlanFormatError, pyarrow.ArrowException: it is something else, or damaged.
        """
        quarantined = QUARANTINED.to_frame()
        if data.startswith(b"ARROW1"):  # As they were before they had a checksum.
            with pa.ipc.open_file(io.BytesIO(data)) as reader:
                table = reader.read_all()
            said = json.loads(table.schema.metadata[b"chunkmap"])
        else:
            file = TableFile(data)
            said, table = file.meta, file.table("files")
            if said["entry"].get("quarantined"):
                found = pl.DataFrame(pl.from_arrow(file.table("quarantined")))
                quarantined = found.cast(dict(QUARANTINED))  # type: ignore[arg-type]
        return cls(
            entry=CommitEntry(**said["entry"]),
            base=said["base"],
            missing=tuple(said["missing"]),
            replaces=tuple(said["replaces"]),
            columns=dict(said.get("columns", {})),
            hive_types=dict(said.get("hive_types", {})),
            left_out=tuple(said.get("left_out", ())),
            quarantined=quarantined,
            files=pl.DataFrame(pl.from_arrow(table)).cast(dict(FILES)),  # type: ignore[arg-type]
        )


def folders(files: pl.DataFrame) -> list[str]:
    """The folder of each file: its partition, where the output is partitioned."""
    return [key.rpartition("/")[0] for key in files["key"].to_list()]
