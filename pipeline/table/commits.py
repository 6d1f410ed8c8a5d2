"""Read and write the commit records of an output.

A commit has a record of its own, or shares one with the commits that are published with it. Its own
is found by its name, and created once. A shared record has a new name each time, which the claim
and the manifest name; a shared record that no claim names is ignored.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Lock

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import AlreadyExistsError, ObjectMissingError, StateError
from pipeline.storage import Storage, join, parse, state_prefix
from pipeline.storage.documents import reading
from pipeline.table.columns import Columns
from pipeline.table.errors import DamagedStateError, damage_hint
from pipeline.table.manifest import Commit, CommitEntry
from pipeline.table.record_file import read_record, read_shared, write_record, write_shared

MAX_CACHED_FILES = 100_000
"""Maximum number of files in all cached commit records; they take about 30 MB. The newest record is
cached whatever its size."""
SHARED = "shared/"
"""Folder of the shared records, below that of all records."""
_AMENDMENT = re.compile(r"\.a\d+$")
"""End of the names of amendments."""

Commits = Mapping[str, Commit]
"""The commits of a record, by name."""


def is_shared(record: str) -> bool:
    """Whether several commits share the record of this name."""
    return record.startswith(SHARED)


class CommitRecords:
    """The commit records of an output: frozen once, amended at most by further records."""

    def __init__(self, storage: Storage, output: str) -> None:
        self.storage = storage
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.inferred_columns: dict[str, Columns] = {}
        """Columns of old commits without columns, by name, as `table.schemas` reads them."""
        # A cache of records that never change, by name and number of amendments.
        self._cached: dict[tuple[str, int], Commits] = {}
        self._cached_files = 0
        self._cache_lock = Lock()

    def commit(self, name: str) -> Commit | None:
        """Return the commit of its own record, with all amendments; None if that is not stored."""
        commits = self.commits(name)
        return None if commits is None else commits[name]

    def commits(self, record: str, amendments: int | None = None) -> Commits | None:
        """Return the commits of a record with all its amendments, or the first ones.

        Returns:
            None if the record is not stored.

        Raises:
            ObjectMissingError: One of the first amendments is not stored.
        """
        cached = None if amendments is None else self._cached.get((record, amendments))
        if cached is not None:
            return cached
        commits = self._cached.get((record, 0)) or self._read(record, record)
        if commits is None:
            return None
        commits, number = self._cache(record, 0, commits), 1
        while amendments is None or number <= amendments:
            amended = self._cached.get((record, number))
            if amended is not None:
                commits, number = amended, number + 1
                continue
            amendment = self._read(record, f"{record}.a{number}")
            if amendment is None and amendments is not None:
                # Amendments once had the names that later commits of a run have.
                amendment = self._read(record, f"{record}.{number}")
            if amendment is None and amendments is None:
                break
            if amendment is None:
                raise ObjectMissingError(self._uri(f"{record}.a{number}"))
            commits = self._cache(record, number, _apply_amendment(commits, amendment, number))
            number += 1
        return commits

    def versions(self, commits: Iterable[tuple[str, str]]) -> list[Commit]:
        """Return commits as frozen, and after each amendment, as far as they are stored.

        Args:
            commits: Name of each commit, and of the record that it shares; empty for its own.
        """
        names: dict[str, list[str]] = {}
        for name, record in commits:
            names.setdefault(record or name, []).append(name)

        def read(record: str) -> list[Commit]:
            newest = self.commits(record)
            if newest is None:
                return []
            number = max((commit.entry.amendments for commit in newest.values()), default=0)
            earlier = (self.commits(record, amendments) for amendments in range(number))
            stored = [newest, *(some for some in earlier if some is not None)]
            return [some[name] for some in stored for name in names[record] if name in some]

        return [commit for some in map_concurrently(read, names) for commit in some]

    def readable(self, records: Sequence[str]) -> list[Commit]:
        """Return the commits of some records, as far as these are stored and not damaged."""

        def read(record: str) -> Commits:
            with suppress(StateError):
                return self.commits(record) or {}
            return {}

        return [c for commits in map_concurrently(read, records) for c in commits.values()]

    def stored_records(self, folder: str = "") -> list[str]:
        """Return the names of all stored records, or those in a folder, without amendments."""
        top = join(self.state, "commits") + "/"
        names = (info.uri.removeprefix(top) for info in self.storage.objects(top + folder))
        stems = (name.removesuffix(".arrow") for name in names if name.endswith(".arrow"))
        return [stem for stem in stems if not _AMENDMENT.search(stem)]

    def _read(self, record: str, name: str) -> Commits | None:
        """Read the object of a record, or of one of its amendments; None if it is not stored."""
        uri = self._uri(name)
        blob = self.storage.get_or_none(uri)
        if blob is None:
            return None
        with reading(uri, damage_hint(uri)):
            if not is_shared(record):
                return {record: _in_record(read_record(blob.data), "")}
            commits = [_in_record(commit, record) for commit in read_shared(blob.data)]
        return {commit.entry.name: commit for commit in commits}

    def _cache(self, record: str, amendments: int, commits: Commits) -> Commits:
        """Cache a stored record: with a given number of amendments it never changes."""
        key = record, amendments
        with self._cache_lock:
            if key in self._cached:
                return self._cached[key]
            self._cached[key] = commits
            self._cached_files += _count_files(commits)
            while self._cached_files > MAX_CACHED_FILES and len(self._cached) > 1:
                oldest = self._cached.pop(next(iter(self._cached)))
                self._cached_files -= _count_files(oldest)
        return commits

    def load(self, entry: CommitEntry) -> Commit:
        """Return the commit of a manifest's entry.

        Raises:
            ObjectMissingError: Its record, or an amendment that counts, does not exist.
            DamagedStateError: The record that it shares lacks it.
        """
        return self._pick(entry, self.commits(entry.record or entry.name, entry.amendments))

    def load_all(self, entries: Sequence[CommitEntry]) -> list[Commit]:
        """Return the commits of several entries; a record is read once. Raises as `load`."""
        places = [(entry.record or entry.name, entry.amendments) for entry in entries]
        needed = list(dict.fromkeys(places))
        read = map_concurrently(lambda place: self.commits(*place), needed)
        found = dict(zip(needed, read, strict=True))
        return [self._pick(entry, found[p]) for entry, p in zip(entries, places, strict=True)]

    def _pick(self, entry: CommitEntry, commits: Commits | None) -> Commit:
        uri = self._uri(entry.record or entry.name)
        if commits is None:
            raise ObjectMissingError(uri)
        if entry.name not in commits:
            raise DamagedStateError(uri, f"it lacks commit {entry.name}, which a manifest lists")
        return commits[entry.name]

    def write_commit(self, commit: Commit) -> Commit:
        """Freeze a commit in its own record; return the stored commit if that exists already."""
        name = commit.entry.name
        try:
            self.storage.put_new(self._uri(name), write_record(commit))
        except AlreadyExistsError:
            stored = self.commit(name)
            assert stored is not None
            return stored
        return self._cache(name, 0, {name: commit})[name]

    def write_commits(self, commits: Sequence[Commit]) -> list[Commit]:
        """Freeze commits that are to be published together; several share a new record.

        Returns:
            The frozen commits, in the same order.
        """
        if len(commits) < 2:
            return [self.write_commit(commit) for commit in commits]
        record = SHARED + uuid.uuid4().hex
        self.storage.put_new(self._uri(record), write_shared(commits))
        frozen = {commit.entry.name: _in_record(commit, record) for commit in commits}
        return list(self._cache(record, 0, frozen).values())

    def amend(self, commits: Sequence[Commit]) -> None:
        """Amend frozen commits with new attempts at chunks whose uploads vanished.

        Args:
            commits: Commits of one record as they were read, with the new attempts as files.

        Raises:
            AlreadyExistsError: Another process has amended the record since it was read.
        """
        entry = commits[0].entry
        data = write_shared(commits) if entry.record else write_record(commits[0])
        # The names of a run's later commits end in a plain number.
        name = f"{entry.record or entry.name}.a{entry.amendments + 1}"
        self.storage.put_new(self._uri(name), data)

    def _uri(self, name: str) -> str:
        return join(self.state, "commits", f"{name}.arrow")


def _in_record(commit: Commit, record: str) -> Commit:
    """Return a commit with the name of its record, whatever it says of that itself."""
    return replace(
        commit, entry=commit.entry.model_copy(update={"record": record, "amendments": 0})
    )


def _count_files(commits: Commits) -> int:
    return sum(commit.files.height for commit in commits.values())


def _apply_amendment(commits: Commits, amendment: Commits, number: int) -> Commits:
    return {name: _amended(commits[name], amendment.get(name), number) for name in commits}


def _amended(commit: Commit, amendment: Commit | None, number: int) -> Commit:
    if amendment is None:
        return replace(commit, entry=commit.entry.model_copy(update={"amendments": number}))
    unchanged = commit.files.join(amendment.files, on="chunk", how="anti")
    files = pl.concat([unchanged, amendment.files]).sort("index")
    entry = commit.entry.model_copy(
        update={
            "rows": int(files["rows"].sum()),
            "bytes": int(files["bytes"].sum()),
            "amendments": number,
        }
    )
    return replace(commit, entry=entry, files=files, rejected=_of_attempts(commit, amendment))


def _of_attempts(commit: Commit, amendment: Commit) -> pl.DataFrame:
    """Return a commit's chunks with rows in quarantine, with the attempts of an amendment.

    Another attempt at a chunk has the same rows, which are stored under its own name.
    """
    rejected = commit.rejected
    if rejected.is_empty():
        return rejected
    other = amendment.files.select("chunk", other="attempt")
    joined = rejected.join(other, on="chunk", how="left", maintain_order="left")
    # In Python, since Polars replaces only one text at a time in a column.
    sources = [
        source if other is None else source.replace(attempt, other)
        for source, attempt, other in joined.select("source", "attempt", "other").iter_rows()
    ]
    return joined.select(
        "chunk",
        attempt=pl.coalesce("other", "attempt"),
        rows="rows",
        source=pl.Series(sources, dtype=pl.String),
    )
