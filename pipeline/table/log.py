"""Read and write the table log of an output: pointer, manifests, commit records."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain as joined
from itertools import takewhile
from threading import Lock

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import AlreadyExistsError, ObjectMissingError, StateError
from pipeline.storage import Storage, join, parse, state_prefix
from pipeline.storage.documents import parse_stored, reading, seal_json
from pipeline.table.columns import Columns
from pipeline.table.errors import (
    DamagedStateError,
    ManifestConflictError,
    damage_hint,
    refuse_newer,
)
from pipeline.table.head import MAX_BYTES, HeadFile, manifest_uri
from pipeline.table.manifest import (
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
)
from pipeline.table.replay import Footprint, live_folders, renamed_keys

MAX_CACHED_MANIFESTS = 8
"""Maximum number of cached manifests with all their commits."""
MAX_CACHED_FILES = 100_000
"""Maximum number of files in all cached commit records; they take about 30 MB."""
_NOT_A_COMMIT = re.compile(r"\.a\d+$|^restore-")
"""Names of amendments, and of the records of rollbacks."""
EMPTY = Manifest(number=0, created=0.0, commits=())


class TableLog:
    """Reads and writes the table log of an output."""

    def __init__(self, storage: Storage, output: str) -> None:
        self.storage = storage
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.head_file = HeadFile(storage, self.state)
        self.moved = -1
        """Number of the last manifest whose replaced files are known to be out of the output."""
        self.inferred_columns: dict[str, Columns] = {}
        """Columns of old commits without columns, by name, as `table.schemas` reads them."""
        # Caches of objects that never change.
        self._records: dict[int, ManifestRecord] = {}
        self._manifests: dict[int, Manifest] = {}
        self._names: dict[int, frozenset[str]] = {}
        self._footprints: dict[tuple[str, int], Footprint] = {}
        self._commits: dict[tuple[str, int], Commit] = {}
        self._cached_files = 0
        self._commits_lock = Lock()

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
        folder = join(self.state, "commits") + "/"
        names = (info.uri.removeprefix(folder) for info in self.storage.objects(folder))
        stems = (name.removesuffix(".arrow") for name in names if name.endswith(".arrow"))
        entries = self.history(number)
        known = {entry.name for entry in entries}.union(*(entry.releases for entry in entries))
        return sorted(s for s in stems if s not in known and not _NOT_A_COMMIT.search(s))

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
        record = ManifestRecord(
            version=MANIFEST_VERSION,
            number=number,
            created=time.time(),
            base=record_base,
            full=full,
            commits=commits[len(self.manifest(record_base).commits) :],
            rollback_of=rollback_of,
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

    def commit(self, name: str, amendments: int | None = None) -> Commit | None:
        """Return a commit record with all its amendments, or the first ones; None if not stored."""
        cached = None if amendments is None else self._commits.get((name, amendments))
        if cached is not None:
            return cached
        commit = self._unamended(name)
        if commit is None:
            return None
        number = 1
        while amendments is None or number <= amendments:
            blob = self.storage.get_or_none(self._commit_uri(name, number))
            if blob is None and amendments is not None:
                # Amendments once had the names that later commits of a run have.
                blob = self.storage.get_or_none(self._commit_uri(f"{name}.{number}", 0))
            if blob is None:
                break
            amendment = _parse_commit(blob.data, self._commit_uri(name, number))
            commit = self._cache(_apply_amendment(commit, amendment, number))
            number += 1
        return commit

    def versions(self, name: str) -> list[Commit]:
        """Return a commit as frozen, and after each of its amendments."""
        newest = self.commit(name)
        earlier = range(newest.entry.amendments) if newest is not None else ()
        commits = (*(self.commit(name, number) for number in earlier), newest)
        return [commit for commit in commits if commit is not None]

    def readable(self, names: Sequence[str]) -> list[Commit]:
        """Return the frozen commits whose records are stored and not damaged."""

        def read(name: str) -> Commit | None:
            with suppress(StateError):
                return self.commit(name)
            return None

        return [commit for commit in map_concurrently(read, names) if commit is not None]

    def _unamended(self, name: str) -> Commit | None:
        cached = self._commits.get((name, 0))
        if cached is not None:
            return cached
        uri = self._commit_uri(name, 0)
        blob = self.storage.get_or_none(uri)
        return None if blob is None else self._cache(_parse_commit(blob.data, uri))

    def _cache(self, commit: Commit) -> Commit:
        """Cache a stored record: with a given number of amendments it never changes."""
        key = commit.entry.name, commit.entry.amendments
        with self._commits_lock:
            if key in self._commits:
                return commit
            self._commits[key] = commit
            self._cached_files += commit.files.height
            while self._cached_files > MAX_CACHED_FILES:
                oldest = self._commits.pop(next(iter(self._commits)))
                self._cached_files -= oldest.files.height
        return commit

    def load(self, entry: CommitEntry) -> Commit:
        """Return the commit of a manifest's entry.

        Raises:
            ObjectMissingError: Its record does not exist.
        """
        commit = self.commit(entry.name, entry.amendments)
        if commit is None:
            raise ObjectMissingError(self._commit_uri(entry.name, 0))
        return commit

    def load_all(self, entries: Sequence[CommitEntry]) -> list[Commit]:
        """Return the commits of several entries, read concurrently. Raises as `load`."""
        return map_concurrently(self.load, entries)

    def write_commit(self, commit: Commit) -> Commit:
        """Freeze a commit record; return the stored record if its name already exists."""
        try:
            self.storage.put_new(self._commit_uri(commit.entry.name, 0), commit.to_bytes())
        except AlreadyExistsError:
            stored = self.commit(commit.entry.name)
            assert stored is not None
            return stored
        return self._cache(commit)

    def amend(self, commit: Commit, files: pl.DataFrame) -> None:
        """Amend a frozen commit with new attempts at chunks whose uploads vanished.

        Raises:
            AlreadyExistsError: Another process has amended it since it was read.
        """
        uri = self._commit_uri(commit.entry.name, commit.entry.amendments + 1)
        self.storage.put_new(uri, replace(commit, files=files).to_bytes())

    def _commit_uri(self, name: str, amendment: int) -> str:
        # The names of a run's later commits end in a plain number.
        suffix = f".a{amendment}" if amendment else ""
        return join(self.state, "commits", f"{name}{suffix}.arrow")

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

        def read(entry: CommitEntry) -> None:
            self._footprints[entry.name, entry.amendments] = (
                Footprint(entry, frozenset(), {})
                if entry.mode == "release"
                else Footprint.of(self.load(entry))
            )

        map_concurrently(read, new)
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
    names = tuple((entry.name, entry.mode, entry.releases) for entry in record.commits)
    return record.base, record.full, record.rollback_of, names


def _parse_commit(data: bytes, uri: str) -> Commit:
    with reading(uri, damage_hint(uri)):
        return Commit.from_bytes(data)


def _apply_amendment(commit: Commit, amendment: Commit, number: int) -> Commit:
    unchanged = commit.files.join(amendment.files, on="chunk", how="anti")
    files = pl.concat([unchanged, amendment.files]).sort("index")
    entry = commit.entry.model_copy(
        update={
            "rows": int(files["rows"].sum()),
            "bytes": int(files["bytes"].sum()),
            "amendments": number,
        }
    )
    return replace(commit, entry=entry, files=files)
