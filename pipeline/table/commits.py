"""Read and write the commit records of an output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Lock

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import AlreadyExistsError, ObjectMissingError, StateError
from pipeline.storage import Storage, join, parse, state_prefix
from pipeline.storage.documents import reading
from pipeline.table.columns import Columns
from pipeline.table.errors import damage_hint
from pipeline.table.manifest import Commit, CommitEntry

MAX_CACHED_FILES = 100_000
"""Maximum number of files in all cached commit records; they take about 30 MB."""


class CommitRecords:
    """The commit records of an output: frozen once, amended at most by further records."""

    def __init__(self, storage: Storage, output: str) -> None:
        self.storage = storage
        self.output = parse(output).uri.rstrip("/") + "/"
        self.state = state_prefix(self.output)
        self.inferred_columns: dict[str, Columns] = {}
        """Columns of old commits without columns, by name, as `table.schemas` reads them."""
        # A cache of records that never change.
        self._commits: dict[tuple[str, int], Commit] = {}
        self._cached_files = 0
        self._commits_lock = Lock()

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
    source = pl.col("source").str.replace_all(pl.col("attempt"), pl.col("other"), literal=True)
    return joined.select(
        "chunk",
        attempt=pl.coalesce("other", "attempt"),
        rows="rows",
        source=pl.when(pl.col("other").is_null()).then("source").otherwise(source),
    )
