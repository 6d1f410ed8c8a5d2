"""Reading and writing the state of one output: pointer, manifests, commit records."""

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
from pipeline.table.replay import Footprint, renames, surviving

FOLDED = 8
"""Manifests whose whole list is kept."""
KEPT_FILES = 100_000
"""Files that the commit records kept in memory name together: some 30 MB."""
_NOT_A_COMMIT = re.compile(r"\.a\d+$|^restore-")
"""Names of amendments, and of what rollbacks restore."""
EMPTY = Manifest(number=0, created=0.0, commits=())


class TableLog:
    """Reads and writes the state of one output."""

    def __init__(self, storage: Storage, output: str) -> None:
        self.storage = storage
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.head_file = HeadFile(storage, self.state)
        self.moved = -1
        """The last manifest that was seen to have nothing of what it replaced in the output."""
        self.columns_of_old: dict[str, Columns] = {}
        """Columns of commits that do not say them, by name, as `table.schemas` finds them."""
        # What never changes once it is written is kept: one log may see a thousand manifests.
        self._manifests: dict[int, ManifestRecord] = {}
        self._folded: dict[int, Manifest] = {}
        self._names: dict[int, frozenset[str]] = {}
        self._footprints: dict[tuple[str, int], Footprint] = {}
        self._commits: dict[tuple[str, int], Commit] = {}
        self._kept = 0
        self._keeping = Lock()

    def head(self) -> tuple[Head, str | None]:
        """The pointer and its ETag (see `HeadFile.read`)."""
        return self.head_file.read()

    def move_head(self, head: Head, etag: str | None) -> str:
        """Replace the pointer if it is still the one with this ETag (see `HeadFile.move`)."""
        return self.head_file.move(head, etag)

    def manifest(self, number: int | None = None) -> Manifest:
        """A manifest by number, or the current one.

        Raises:
            ObjectMissingError: there is no such manifest.
        """
        if number is None:
            number = self.head()[0].current
        if number == 0:
            return EMPTY
        found = self._folded.get(number)
        return self._remember(self._fold(number)) if found is None else found

    def _remember(self, manifest: Manifest) -> Manifest:
        self._folded[manifest.number] = manifest
        while len(self._folded) > FOLDED:
            self._folded.pop(next(iter(self._folded)))
        return manifest

    def _fold(self, number: int) -> Manifest:
        """Put together what is stored; what was read before is not read again."""
        [top] = self._stored([number])
        full = number if top.full is None else top.full
        needed = list(takewhile(lambda n: n not in self._folded, chain(number, full)))
        self._stored(needed)
        lists, base = [top.commits], top.base
        while base:
            if base in self._folded:
                lists.append(self._folded[base].commits)
                break
            [below] = self._stored([base])
            lists.append(below.commits)
            base = below.base
        return Manifest(
            number=number,
            created=top.created,
            commits=tuple(joined.from_iterable(reversed(lists))),
            rollback_of=top.rollback_of,
            full=full,
        )

    def _stored(self, numbers: Sequence[int]) -> list[ManifestRecord]:
        """Stored manifests, which never change: each is read once."""
        new = [number for number in numbers if number not in self._manifests]

        def read(number: int) -> None:
            uri = manifest_uri(self.state, number)
            hint = damage_hint(uri)
            data = self.storage.get(uri).data
            record = parse_stored(ManifestRecord, data, uri, most=MAX_BYTES, hint=hint)
            refuse_newer(uri, record.version, MANIFEST_VERSION)
            if record.number != number or not 0 <= record.base < number:
                why = f"it says that it is manifest {record.number} on top of {record.base}"
                raise DamagedStateError(uri, why)
            self._manifests[number] = record

        map_concurrently(read, new)
        return [self._manifests[number] for number in numbers]

    def stored_manifest(self, number: int) -> Manifest | None:
        """A manifest, whether HEAD.json has come to it or not; None if it is not stored."""
        try:
            self._stored([number])
        except ObjectMissingError:
            return None
        return self.manifest(number)

    def entries(self, base: int = 0) -> list[CommitEntry]:
        """All commits of the manifests after one, oldest first, whatever came over them since.

        A list that has only grown has all commits of those before it: a few objects are read.
        """
        return self.history(self.head()[0].current, base)

    def history(self, number: int, base: int = 0) -> list[CommitEntry]:
        """All commits of the manifests after one and up to another, oldest first."""
        lists = []
        while number > base:
            manifest = self.manifest(number)
            lists.append(manifest.commits)
            number = manifest.full - 1
        return list({entry.name: entry for entry in joined.from_iterable(reversed(lists))}.values())

    def unpublished(self, number: int) -> list[str]:
        """Names of the frozen commits that no manifest up to a number lists or releases."""
        folder = join(self.state, "commits") + "/"
        names = (info.uri.removeprefix(folder) for info in self.storage.objects(folder))
        stems = (name.removesuffix(".arrow") for name in names if name.endswith(".arrow"))
        entries = self.history(number)
        known = {entry.name for entry in entries}.union(*(entry.releases for entry in entries))
        return sorted(s for s in stems if s not in known and not _NOT_A_COMMIT.search(s))

    def names(self, number: int) -> frozenset[str]:
        """Names of a manifest's commits."""
        if number not in self._names:
            self._names = {number: frozenset(e.name for e in self.manifest(number).commits)}
        return self._names[number]

    def added(self, number: int) -> tuple[CommitEntry, ...]:
        """The commits that a manifest has on top of the one before; all, if it replaced that."""
        manifest = self.manifest(number)
        if manifest.full == number:
            return manifest.commits
        return manifest.commits[len(self.manifest(number - 1).commits) :]

    def write_manifest(
        self, base: int, commits: tuple[CommitEntry, ...], rollback_of: int | None = None
    ) -> Manifest:
        """Write the manifest on top of a base; twice is once.

        Raises:
            ManifestConflictError: another one of its number is stored already.
        """
        before = self.manifest(base)
        number, held = base + 1, len(before.commits)
        grown = rollback_of is None and commits[:held] == before.commits
        full = before.full if grown else number
        under = base_of(number, full) if grown else 0
        record = ManifestRecord(
            version=MANIFEST_VERSION,
            number=number,
            created=time.time(),
            base=under,
            full=full,
            commits=commits[len(self.manifest(under).commits) :],
            rollback_of=rollback_of,
        )
        data = seal_json(record.model_dump_json(indent=1, exclude_defaults=True).encode())
        uri = manifest_uri(self.state, number)
        try:
            self.storage.put_new(uri, data)
            self._manifests[number] = record
        except AlreadyExistsError as error:
            # Under one claim there is one list: another process may have written the same.
            [there] = self._stored([number])
            if _content(there) != _content(record):
                raise ManifestConflictError(uri) from error
        return self.manifest(number)

    def commit(self, name: str, amendments: int | None = None) -> Commit | None:
        """A commit record with its amendments (all, or so many), or None."""
        kept = None if amendments is None else self._commits.get((name, amendments))
        if kept is not None:
            return kept
        commit = self._unamended(name)
        if commit is None:
            return None
        number = 1
        while amendments is None or number <= amendments:
            more = self.storage.get_or_none(self._commit_uri(name, number))
            if more is None and amendments is not None:
                # Amendments once had the names that later commits of a run have.
                more = self.storage.get_or_none(self._commit_uri(f"{name}.{number}", 0))
            if more is None:
                break
            change = _commit_of(more.data, self._commit_uri(name, number))
            commit = self._keep(_amended(commit, change, number))
            number += 1
        return commit

    def versions(self, name: str) -> list[Commit]:
        """A commit as it was frozen, and after each of its amendments."""
        newest = self.commit(name)
        before = range(newest.entry.amendments) if newest is not None else ()
        found = (*(self.commit(name, number) for number in before), newest)
        return [commit for commit in found if commit is not None]

    def readable(self, names: Sequence[str]) -> list[Commit]:
        """Those of some frozen commits whose records are stored and not damaged."""

        def read(name: str) -> Commit | None:
            with suppress(StateError):
                return self.commit(name)
            return None

        return [commit for commit in map_concurrently(read, names) if commit is not None]

    def _unamended(self, name: str) -> Commit | None:
        kept = self._commits.get((name, 0))
        if kept is not None:
            return kept
        uri = self._commit_uri(name, 0)
        blob = self.storage.get_or_none(uri)
        return None if blob is None else self._keep(_commit_of(blob.data, uri))

    def _keep(self, commit: Commit) -> Commit:
        """Keep a record that is stored: with so many amendments it never changes."""
        key = commit.entry.name, commit.entry.amendments
        with self._keeping:
            if key in self._commits:
                return commit
            self._commits[key] = commit
            self._kept += commit.files.height
            while self._kept > KEPT_FILES:
                oldest = self._commits.pop(next(iter(self._commits)))
                self._kept -= oldest.files.height
        return commit

    def known(self, entry: CommitEntry) -> Commit:
        """The commit that a manifest lists.

        Raises:
            ObjectMissingError: its record is gone.
        """
        commit = self.commit(entry.name, entry.amendments)
        if commit is None:
            raise ObjectMissingError(self._commit_uri(entry.name, 0))
        return commit

    def all_known(self, entries: Sequence[CommitEntry]) -> list[Commit]:
        """Several commits that manifests list, read concurrently. Raises as `known`."""
        return map_concurrently(self.known, entries)

    def write_commit(self, commit: Commit) -> Commit:
        """Freeze a commit record; if one of its name is there, that one counts."""
        try:
            self.storage.put_new(self._commit_uri(commit.entry.name, 0), commit.to_bytes())
        except AlreadyExistsError:
            found = self.commit(commit.entry.name)
            assert found is not None
            return found
        return self._keep(commit)

    def amend(self, commit: Commit, files: pl.DataFrame) -> None:
        """Name other attempts for chunks whose uploads vanished after the record was frozen.

        Raises:
            AlreadyExistsError: somebody has amended it since it was read.
        """
        uri = self._commit_uri(commit.entry.name, commit.entry.amendments + 1)
        self.storage.put_new(uri, replace(commit, files=files).to_bytes())

    def _commit_uri(self, name: str, amendment: int) -> str:
        # Later commits of a run end in a number alone.
        suffix = f".a{amendment}" if amendment else ""
        return join(self.state, "commits", f"{name}{suffix}.arrow")

    def snapshot(self, manifest: Manifest) -> pl.DataFrame:
        """The files of a manifest (schema FILES and `commit`), in the order of their commits.

        Raises:
            ObjectMissingError: a commit record is gone.
        """
        commits = self.all_known([e for e in manifest.commits if e.mode != "release"])
        prints = [Footprint.of(commit) for commit in commits]
        held: list[pl.DataFrame] = [pl.DataFrame(schema={**FILES, "commit": pl.String})]
        for commit, one, alive in zip(commits, prints, surviving(prints), strict=True):
            if not commit.entry.adds_files:
                continue
            files = commit.files
            if len(alive) < len(one.folders):
                keeps = [folder in alive for folder in folders(files)]
                files = files.filter(pl.Series(keeps, dtype=pl.Boolean))
            held.append(files.with_columns(commit=pl.lit(commit.entry.name)))
        files, renamed = pl.concat(held), renames(prints)
        return files.with_columns(pl.col("key").replace(renamed)) if renamed else files

    def footprints(self, entries: Sequence[CommitEntry]) -> list[Footprint]:
        """Where commits have files; a record is read once. Raises as `snapshot`."""
        names = [(entry.name, entry.amendments) for entry in entries]
        new = [e for e, name in zip(entries, names, strict=True) if name not in self._footprints]

        def read(entry: CommitEntry) -> None:
            found = (
                Footprint(entry, frozenset(), {})
                if entry.mode == "release"
                else Footprint.of(self.known(entry))
            )
            self._footprints[entry.name, entry.amendments] = found

        map_concurrently(read, new)
        return [self._footprints[name] for name in names]

    def keys(self, entries: Sequence[CommitEntry]) -> list[str]:
        """The keys that are left when commits are folded, in their order. Raises as `snapshot`."""
        prints = self.footprints(entries)
        renamed = renames(prints)
        return [
            renamed.get(key, key)
            for one, alive in zip(prints, surviving(prints), strict=True)
            if one.entry.adds_files
            for folder, keys in one.folders.items()
            if folder in alive
            for key in keys
        ]


def _content(record: ManifestRecord) -> object:
    """Return what a manifest says, without its writer and its time.

    Two processes that finish one claim may have read different amendments of a commit.
    """
    names = tuple((entry.name, entry.mode, entry.releases) for entry in record.commits)
    return record.base, record.full, record.rollback_of, names


def _commit_of(data: bytes, uri: str) -> Commit:
    with reading(uri, damage_hint(uri)):
        return Commit.from_bytes(data)


def _amended(commit: Commit, change: Commit, number: int) -> Commit:
    untouched = commit.files.join(change.files, on="chunk", how="anti")
    files = pl.concat([untouched, change.files]).sort("index")
    entry = commit.entry.model_copy(
        update={
            "rows": int(files["rows"].sum()),
            "bytes": int(files["bytes"].sum()),
            "amendments": number,
        }
    )
    return replace(commit, entry=entry, files=files)
