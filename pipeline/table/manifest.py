"""Define the stored state of an output: the pointer, manifests, and commit records.

    HEAD.json            pointer: number of the current manifest, and the claim of a publisher
    manifests/<n>.json   a snapshot: the commits that it adds to an earlier manifest
    commits/<name>.arrow the files that a commit adds, frozen before they are made visible
    commits/shared/<id>.arrow  those of several commits that are published together

A manifest never repeats files: a snapshot is its commits, replayed in order. Nor does it repeat its
list of commits: see `base_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator

from partitioning.windows import Windowing
from pipeline.table.columns import Columns

HEAD_VERSION = 4
"""Format of HEAD.json: 2 if the output is a table, which older releases would not commit to, or has
a claim with a decision, which they must not finish; 3 if files were adopted, which they might move
away as if they were staged; 4 if commits share a record, which they do not find."""
MANIFEST_VERSION = 6
"""Format of manifests: 1 repeats all commits, 2 has new commits, 3 also entries without files, 4 is
of an output that is a table, 5 of one with adopted files, 6 has commits that share a record."""
ADOPT = "adopt"
"""Mode of a commit that takes existing files as they are (see `table.adopt`)."""
MAX_LEFT_OUT_NAMED = 10_000
"""Maximum number of left-out objects that a commit record names."""
LEVEL_SIZE = 32
"""Number of manifests that one manifest of the next level sums up (see `base_of`)."""

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
"""Objects in quarantine, one row per chunk that lacks an object. `row_groups` is the half-open
range of that chunk, `at` the time of discovery in Unix seconds. Objects that planning found
unreadable belong to no chunk."""
_REJECTED: dict[str, Any] = {
    "chunk": pl.String,
    "attempt": pl.String,
    "rows": pl.Int64,
    "source": pl.String,
}
REJECTED = pl.Schema(_REJECTED)
"""Chunks with rows in quarantine. `source` is the name, below the output's state, of the object
with these rows; it holds the attempt."""
# Shared by all commits without such rows: making these took a third of the time of a draft.
NO_QUARANTINED = QUARANTINED.to_frame()
NO_REJECTED = REJECTED.to_frame()
FILES = pl.Schema(_FILES)
"""Columns of a commit record: `key` is relative to the output, `sha256` is chunkmap's checksum."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Claim(_Record):
    """Claim of a publisher: the base manifest, and the commits or the rollback on top of it."""

    base: int
    """Number of the manifest before the new one."""
    commits: tuple[str, ...] = ()
    """Names of the commits that are added together, in this order."""
    rollback: int | None = None
    """Number of the manifest that is restored instead."""
    decision: str | None = None
    """URI of the decision on several outputs that the claim is a part of (see `table.decision`)."""
    record: str = ""
    """Name of the record that the commits share; empty if each has its own."""

    @model_validator(mode="before")
    @classmethod
    def _one(cls, data: Any) -> Any:
        """Read claims of the older format with one commit."""
        if isinstance(data, dict) and data.get("commit") and "commits" not in data:
            return {**data, "commits": (data["commit"],)}
        return data


class Head(_Record):
    """The pointer."""

    version: int = 1
    """Format (see HEAD_VERSION)."""
    current: int = 0
    """Number of the current manifest; 0 for an empty output."""
    publishing: Claim | None = None
    writer: str = ""
    """Id of the write; it distinguishes a lost response from a lost race."""

    @classmethod
    def at(
        cls,
        manifest: Manifest,
        claim: Claim | None = None,
        *,
        makes_table: bool = False,
        adopts: bool = False,
    ) -> Head:
        """Return a pointer to a manifest, with the claim of a publisher.

        Args:
            manifest: The manifest.
            claim: The claim.
            makes_table: Whether a claimed commit is of a table.
            adopts: Whether a claimed commit adopts files.
        """
        is_decided = claim is not None and claim.decision is not None
        version = 2 if makes_table or manifest.table or is_decided else 1
        if adopts or manifest.adopted:
            version = 3
        if manifest.shares_records or (claim is not None and claim.record):
            version = 4
        return cls(version=version, current=manifest.number, publishing=claim)


class CommitEntry(_Record):
    """A commit as a manifest lists it."""

    name: str
    run: str
    mode: str
    """Effect on earlier files: `overwrite` drops all of them, `overwrite-partitions` those of its
    partitions. `adopt` takes existing files as they are. `restore` (of a rollback) renames files,
    and `release` (of a repair) excludes commits from being published."""
    files: int
    rows: int
    bytes: int
    missing: int = 0
    """Number of planned chunks that are not in it."""
    keep_versions: int = 1
    """Number of replaced versions that are kept from here on."""
    amendments: int = 0
    """Number of amendments of its record that count."""
    window: str | None = None
    """Label of its window, if the run is committed by windows."""
    rule: str = ""
    """Rule by which windows are cut (see `rule_of`). In mode overwrite-partitions a window's commit
    drops all earlier files in folders of its window, even where it has no files."""
    code: str = ""
    """Fingerprints of the transform, joined by commas. Old commits have none."""
    inputs: str = ""
    """Digest of the window's objects (see `partitioning.inputs_digest`), and of options of the job
    that change its rows, if any is set."""
    columns: str = ""
    """Digest of the columns of its files, independent of their order (see `Commit.columns`). Old
    commits have none."""
    releases: tuple[str, ...] = ()
    """Names of the released commits, in mode `release`."""
    left_out: int = 0
    """Number of unreadable objects that are left out (`input.on_bad_object`)."""
    quarantined: int = 0
    """Number of left-out objects in quarantine (`input.on_bad_object: quarantine`)."""
    checks: int = 0
    """Number of checks of its rows that were made (`checks`)."""
    warnings: int = 0
    """Number of those that failed and only warn."""
    rejected: int = 0
    """Number of rows in quarantine (`checks.rows`)."""
    table: str = ""
    """Format of the table that the output is from here on (`output.table`): `delta`, or none."""
    in_place: bool = False
    """Whether its files were made of those that it replaces, which no other commit may replace."""
    record: str = ""
    """Name of the record that it shares with other commits; empty if it has its own. In mode
    `release`, that of some released commits."""

    @property
    def adds_files(self) -> bool:
        """Whether it is a commit of a run, or adopts files."""
        return self.mode not in ("restore", "release")

    @property
    def adopts(self) -> bool:
        """Whether its files were there before, so that it has staged none."""
        return self.mode == ADOPT

    @property
    def source(self) -> str:
        """Where its files come from, for messages."""
        return "chunkmap adopt" if self.adopts else f"run {self.run}"


class Manifest(_Record):
    """A snapshot of an output, with all its commits."""

    version: int = 1
    number: int
    created: float
    """Time of creation, in Unix seconds."""
    commits: tuple[CommitEntry, ...]
    rollback_of: int | None = None
    """Number of the manifest that this one restored."""
    full: int = 0
    """Number of the manifest since which the list has only grown. This manifest has all commits of
    the manifests since then."""
    table: str = ""
    """Format of the table that the output is: `delta`, or none. Later manifests have it too."""
    adopted: bool = False
    """Whether files were adopted in this version or an earlier one."""
    shares_records: bool = False
    """Whether commits of this version or an earlier one share a record."""


class ManifestRecord(_Record):
    """A manifest as stored: the commits that it adds to its base."""

    version: int = 1
    """Format (see MANIFEST_VERSION)."""
    number: int
    created: float
    base: int = 0
    """Number of the manifest that the commits are added to; 0 for an empty output."""
    full: int | None = None
    """Number as in `Manifest`; None for the manifest itself."""
    commits: tuple[CommitEntry, ...]
    rollback_of: int | None = None
    table: str = ""
    """Format of the table as in `Manifest`."""
    adopted: bool = False
    """As in `Manifest`."""
    shares_records: bool = False
    """As in `Manifest`."""


def base_of(number: int, full: int) -> int:
    """Return the base of a stored manifest, while the list of commits only grows.

    Usually it is the manifest before. The base of each 32nd manifest is the 32nd before it, that of
    each 1,024th is the 1,024th before it, and so on. So a manifest is read from at most 31 objects
    per level, each commit is written once per level, and nothing grows quadratically.
    """
    span = 1
    while number % (span * LEVEL_SIZE) == 0:
        span *= LEVEL_SIZE
    return max(number - span, full)


def chain(number: int, full: int) -> Iterator[int]:
    """Yield the stored manifests that make up a manifest, newest first."""
    while number > full:
        yield number
        number = base_of(number, full)
    if number:
        yield number


def rule_of(windowing: Windowing) -> str:
    """Return the window rule as text for commit entries: `column/grain/timezone`.

    Several columns are joined by `=`, which cannot occur in the name of a Hive column.
    """
    return f"{'='.join(windowing.columns)}/{windowing.grain}/{windowing.timezone}"


def is_adoption(commit: str) -> bool:
    """Whether the name of a commit is that of an adoption (see `table.adopt`)."""
    return commit.startswith(f"{ADOPT}-")


def run_of(commit: str) -> str:
    """Return the run of a commit from its name (`<run>`, `<run>.2`, `<run>-<window>`)."""
    return commit.partition("-")[0].partition(".")[0]


@dataclass(frozen=True, slots=True)
class CheckFigures:
    """What a check of a commit's rows has found."""

    name: str
    outcome: str
    """`passed`, `warned` or `quarantined`."""
    message: str
    figures: Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit record."""

    entry: CommitEntry
    base: int
    """Number of the manifest that was current when its run was created; later ones may conflict."""
    missing: tuple[str, ...]
    """Ids of planned chunks that failed and are left out."""
    files: pl.DataFrame
    """Files (schema FILES)."""
    replaces: tuple[str, ...] = ()
    """Folders whose earlier files it drops, in mode overwrite-partitions."""
    columns: Columns = field(default_factory=dict)
    """Types of its files' columns by name, as Polars spells them. Old commits have none."""
    hive_types: Mapping[str, str] = field(default_factory=dict)
    """Types of partition columns that the job declares (`input.hive_types`), by name."""
    left_out: tuple[str, ...] = ()
    """Unreadable objects, each with a tab and the reason; at most MAX_LEFT_OUT_NAMED."""
    quarantined: pl.DataFrame = field(default_factory=lambda: NO_QUARANTINED)
    """Objects in quarantine (schema QUARANTINED); at most MAX_LEFT_OUT_NAMED rows."""
    checks: tuple[CheckFigures, ...] = ()
    """What checks have found."""
    rejected: pl.DataFrame = field(default_factory=lambda: NO_REJECTED)
    """Chunks with rows in quarantine (schema REJECTED)."""


def folders(files: pl.DataFrame) -> list[str]:
    """Return the folder of each file: its partition, if the output is partitioned."""
    return [key.rpartition("/")[0] for key in files["key"].to_list()]
