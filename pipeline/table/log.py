"""Read and write the table log of an output: pointer, manifests, commit records."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import chain as joined
from itertools import takewhile

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import AlreadyExistsError, ObjectMissingError
from pipeline.storage import Storage
from pipeline.storage.documents import parse_stored, seal_json
from pipeline.table.commits import SHARED, CommitRecords
from pipeline.table.errors import (
    DamagedStateError,
    ManifestConflictError,
    damage_hint,
    refuse_newer,
)
from pipeline.table.head import MAX_BYTES, HeadFile, manifest_uri
from pipeline.table.manifest import (
    ADOPT,
    FILES,
    MANIFEST_VERSION,
    Commit,
    CommitEntry,
    Head,
    Manifest,
    ManifestRecord,
    base_of,
    chain,
    folders,
    is_adoption,
)
from pipeline.table.replay import Footprint, live_folders, renamed_keys

MAX_CACHED_MANIFESTS = 8
"""Maximum number of cached manifests with all their commits."""
_NOT_A_COMMIT = re.compile(rf"^({SHARED}|(restore|{ADOPT})-)")
"""Names of shared records, and of those of rollbacks and adoptions, which are never discarded."""
EMPTY = Manifest(number=0, created=0.0, commits=())


class TableLog(CommitRecords):
    """Reads and writes the table log of an output."""

    def __init__(self, storage: Storage, output: str) -> None:
        super().__init__(storage, output)
        self.head_file = HeadFile(storage, self.state)
        self.moved = -1
        """Number of the last manifest whose replaced files are known to be out of the output."""
        # Caches of objects that never change.
        self._records: dict[int, ManifestRecord] = {}
        self._manifests: dict[int, Manifest] = {}
        self._names: dict[int, frozenset[str]] = {}
        self._footprints: dict[tuple[str, int], Footprint] = {}

    def head(self) -> tuple[Head, str | None]:
        """Return the pointer and its ETag (see `HeadFile.read`)."""
        return self.head_file.read()

    def move_head(self, head: Head, etag: str | None) -> str:
        """Replace the pointer if it still has this ETag (see `HeadFile.move`)."""
        return self.head_file.move(head, etag)

    def manifest(self, number: int | None = None) -> Manifest:
        """Return a manifest by number, or the current manifest.

        Raises:
            ObjectMissingError: There is no such manifest.
        """
        if number is None:
            number = self.head()[0].current
        if number == 0:
            return EMPTY
        manifest = self._manifests.get(number)
        if manifest is None:
            manifest = self._manifests[number] = self._assemble(number)
            while len(self._manifests) > MAX_CACHED_MANIFESTS:
                self._manifests.pop(next(iter(self._manifests)))
        return manifest

    def _assemble(self, number: int) -> Manifest:
        """Assemble a manifest from stored records and cached manifests."""
        [top] = self._read_records([number])
        full = number if top.full is None else top.full
        needed = list(takewhile(lambda n: n not in self._manifests, chain(number, full)))
        self._read_records(needed)
        lists, base = [top.commits], top.base
        while base:
            if base in self._manifests:
                lists.append(self._manifests[base].commits)
                break
            [below] = self._read_records([base])
            lists.append(below.commits)
            base = below.base
        return Manifest(
            number=number,
            created=top.created,
            commits=tuple(joined.from_iterable(reversed(lists))),
            rollback_of=top.rollback_of,
            full=full,
            table=top.table,
            adopted=top.adopted,
            shares_records=top.shares_records,
        )

    def _read_records(self, numbers: Sequence[int]) -> list[ManifestRecord]:
        """Return stored manifests; each is read once."""
        new = [number for number in numbers if number not in self._records]

        def read(number: int) -> None:
            uri = manifest_uri(self.state, number)
            hint = damage_hint(uri)
            data = self.storage.get(uri).data
            record = parse_stored(ManifestRecord, data, uri, max_bytes=MAX_BYTES, hint=hint)
            refuse_newer(uri, record.version, MANIFEST_VERSION)
            if record.number != number or not 0 <= record.base < number:
                why = f"it has the number {record.number} and the base {record.base}"
                raise DamagedStateError(uri, why)
            # What follows these numbers down would never end.
            if not (0 <= (record.full or 0) <= number and 0 <= (record.rollback_of or 0) < number):
                why = f"it is full since {record.full}, and a rollback to {record.rollback_of}"
                raise DamagedStateError(uri, why)
            self._records[number] = record

        map_concurrently(read, new)
        return [self._records[number] for number in numbers]

    def stored_manifest(self, number: int) -> Manifest | None:
        """Return a manifest, even if HEAD.json does not point to it yet; None if not stored."""
        try:
            self._read_records([number])
        except ObjectMissingError:
            return None
        return self.manifest(number)

    def entries(self, base: int = 0) -> list[CommitEntry]:
        """Return all commits since a base manifest, also replaced ones, oldest first.

        This takes few reads: a manifest has all commits of the manifests before it, as long as the
        list only grows.
        """
        return self.history(self.head()[0].current, base)

    def history(self, number: int, base: int = 0) -> list[CommitEntry]:
        """Return all commits after a base manifest up to another manifest, oldest first."""
        lists = []
        while number > base:
            manifest = self.manifest(number)
            lists.append(manifest.commits)
            number = manifest.full - 1
        return list({entry.name: entry for entry in joined.from_iterable(reversed(lists))}.values())

    def unpublished(self, number: int) -> list[str]:
        """Return the names of frozen commits that no manifest up to a number lists or releases."""
        own = {name for name in self.stored_records() if not _NOT_A_COMMIT.search(name)}
        shared = {c.entry.name for c in self.readable(self.unlisted_records(number))}
        return sorted((own | shared) - self.known_names(number))

    def known_names(self, number: int) -> set[str]:
        """Return the names of the commits that a manifest up to a number lists or releases."""
        entries = self.history(number)
        return {entry.name for entry in entries}.union(*(entry.releases for entry in entries))

    def unlisted_records(self, number: int) -> list[str]:
        """Return the names of the shared records that no manifest up to a number names."""
        listed = {entry.record for entry in self.history(number)}
        return sorted(set(self.stored_records(SHARED)) - listed)

    def frozen(self, names: Sequence[str], number: int) -> list[Commit]:
        """Return the frozen commits of some names whose records are stored and not damaged.

        There may be several of a name: publishers have died that froze it in shared records.

        Args:
            names: Names of commits that are in no manifest.
            number: Number of the current manifest.
        """
        wanted = set(names)
        releases = [e for e in self.history(number) if not wanted.isdisjoint(e.releases)]
        shared = {*self.unlisted_records(number), *(entry.record for entry in releases)} - {""}
        found = self.readable([*names, *sorted(shared)] if names else [])
        return [commit for commit in found if commit.entry.name in wanted]

    def names(self, number: int) -> frozenset[str]:
        """Return the names of a manifest's commits."""
        if number not in self._names:
            self._names = {number: frozenset(e.name for e in self.manifest(number).commits)}
        return self._names[number]

    def added(self, number: int) -> tuple[CommitEntry, ...]:
        """Return the commits that a manifest adds to the one before; all, if it replaced it."""
        manifest = self.manifest(number)
        if manifest.full == number:
            return manifest.commits
        return manifest.commits[len(self.manifest(number - 1).commits) :]

    def write_manifest(
        self, base: int, commits: tuple[CommitEntry, ...], rollback_of: int | None = None
    ) -> Manifest:
        """Write the manifest after a base manifest; idempotent.

        Raises:
            ManifestConflictError: Another manifest with its number is already stored.
        """
        previous, number = self.manifest(base), base + 1
        grown = rollback_of is None and commits[: len(previous.commits)] == previous.commits
        full = previous.full if grown else number
        record_base = base_of(number, full) if grown else 0
        # Once a table, an output stays one.
        table = previous.table or next((entry.table for entry in commits if entry.table), "")
        # Older releases must not meet the commit of an adoption, even if it is released.
        named = (name for entry in commits for name in (entry.name, *entry.releases))
        adopted = previous.adopted or any(map(is_adoption, named))
        shares = previous.shares_records or any(entry.record for entry in commits)
        record = ManifestRecord(
            version=MANIFEST_VERSION if shares else 5 if adopted else 4 if table else 3,
            number=number,
            created=time.time(),
            base=record_base,
            full=full,
            commits=commits[len(self.manifest(record_base).commits) :],
            rollback_of=rollback_of,
            table=table,
            adopted=adopted,
            shares_records=shares,
        )
        data = seal_json(record.model_dump_json(indent=1, exclude_defaults=True).encode())
        uri = manifest_uri(self.state, number)
        try:
            self.storage.put_new(uri, data)
            self._records[number] = record
        except AlreadyExistsError as error:
            # Another process may have written the same manifest, for the same claim.
            [stored] = self._read_records([number])
            if _content(stored) != _content(record):
                raise ManifestConflictError(uri) from error
        return self.manifest(number)

    def snapshot(self, manifest: Manifest) -> pl.DataFrame:
        """Return the files of a manifest (schema FILES and `commit`), in the order of commits.

        Raises:
            ObjectMissingError: A commit record does not exist.
        """
        commits = self.load_all([e for e in manifest.commits if e.mode != "release"])
        footprints = [Footprint.of(commit) for commit in commits]
        frames: list[pl.DataFrame] = [pl.DataFrame(schema={**FILES, "commit": pl.String})]
        for commit, footprint, alive in zip(
            commits, footprints, live_folders(footprints), strict=True
        ):
            if not commit.entry.adds_files:
                continue
            files = commit.files
            if len(alive) < len(footprint.folders):
                is_live = [folder in alive for folder in folders(files)]
                files = files.filter(pl.Series(is_live, dtype=pl.Boolean))
            frames.append(files.with_columns(commit=pl.lit(commit.entry.name)))
        files, renamed = pl.concat(frames), renamed_keys(footprints)
        return files.with_columns(pl.col("key").replace(renamed)) if renamed else files

    def footprints(self, entries: Sequence[CommitEntry]) -> list[Footprint]:
        """Return the footprints of commits; a record is read once. Raises as `snapshot`."""
        names = [(entry.name, entry.amendments) for entry in entries]
        new = [e for e, name in zip(entries, names, strict=True) if name not in self._footprints]

        recorded = [entry for entry in new if entry.mode != "release"]
        read = dict(zip(recorded, self.load_all(recorded), strict=True))
        for entry in new:
            commit = read.get(entry)
            self._footprints[entry.name, entry.amendments] = (
                Footprint(entry, frozenset(), {}) if commit is None else Footprint.of(commit)
            )
        return [self._footprints[name] for name in names]

    def keys(self, entries: Sequence[CommitEntry]) -> list[str]:
        """Return the keys of the live files of commits, in their order. Raises as `snapshot`."""
        footprints = self.footprints(entries)
        renamed = renamed_keys(footprints)
        return [
            renamed.get(key, key)
            for footprint, alive in zip(footprints, live_folders(footprints), strict=True)
            if footprint.entry.adds_files
            for folder, keys in footprint.folders.items()
            if folder in alive
            for key in keys
        ]


def _content(record: ManifestRecord) -> object:
    """Return the content of a manifest, without its writer and its time.

    Two processes that finish one claim may have read different amendments of a commit.
    """
    names = tuple((e.name, e.record, e.mode, e.releases) for e in record.commits)
    return record.base, record.full, record.rollback_of, names
