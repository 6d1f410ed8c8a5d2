"""Reading and writing the state of one output: pointer, manifests, commit records."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import polars as pl

from pipeline.errors import AlreadyExistsError, ObjectMissingError
from pipeline.manifest import FILES, Commit, CommitEntry, Head, Manifest, folders
from pipeline.storage import Storage, join, parse, state_prefix

READERS = 16
"""Commit records read at a time."""


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

    def write_manifest(
        self, base: int, commits: tuple[CommitEntry, ...], rollback_of: int | None = None
    ) -> Manifest:
        """Write the manifest on top of a base; twice is once."""
        manifest = Manifest(
            number=base + 1, created=time.time(), commits=commits, rollback_of=rollback_of
        )
        data = manifest.model_dump_json(indent=1).encode()
        try:
            self.storage.put_new(join(self.state, "manifests", f"{manifest.number}.json"), data)
        except AlreadyExistsError:
            # Under one claim there is one list: whoever came first wrote the same.
            return self.manifest(manifest.number)
        return manifest

    def commit(self, name: str, amendments: int | None = None) -> Commit | None:
        """A commit record with its amendments (all, or so many), or None."""
        blob = self.storage.get_if_there(self._commit_uri(name, 0))
        if blob is None:
            return None
        commit = Commit.from_bytes(blob.data)
        number = 1
        while amendments is None or number <= amendments:
            more = self.storage.get_if_there(self._commit_uri(name, number))
            if more is None:
                break
            commit = _amended(commit, Commit.from_bytes(more.data), number)
            number += 1
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

    def write_commit(self, commit: Commit) -> Commit:
        """Freeze a commit record; if one of its name is there, that one counts."""
        try:
            self.storage.put_new(self._commit_uri(commit.entry.name, 0), commit.to_bytes())
        except AlreadyExistsError:
            found = self.commit(commit.entry.name)
            assert found is not None
            return found
        return commit

    def amend(self, commit: Commit, files: pl.DataFrame) -> None:
        """Name other attempts for chunks whose uploads vanished after the record was frozen.

        Raises:
            AlreadyExistsError: somebody has amended it since it was read.
        """
        uri = self._commit_uri(commit.entry.name, commit.entry.amendments + 1)
        self.storage.put_new(uri, replace(commit, files=files).to_bytes())

    def _commit_uri(self, name: str, amendment: int) -> str:
        suffix = f".{amendment}" if amendment else ""
        return join(self.state, "commits", f"{name}{suffix}.arrow")

    def snapshot(self, manifest: Manifest) -> pl.DataFrame:
        """The files of a manifest (schema FILES and `commit`), in the order of their commits.

        Raises:
            ObjectMissingError: a commit record is gone.
        """
        with ThreadPoolExecutor(READERS) as pool:
            commits = list(pool.map(self.known, manifest.commits))
        held: list[pl.DataFrame] = [pl.DataFrame(schema={**FILES, "commit": pl.String})]
        for commit in commits:
            if commit.entry.mode == "overwrite":
                held = held[:1]
            elif commit.entry.mode == "overwrite-partitions":
                held = [_without(frame, commit.replaces) for frame in held]
            held.append(commit.files.with_columns(commit=pl.lit(commit.entry.name)))
        return pl.concat(held)


def _without(files: pl.DataFrame, replaced: tuple[str, ...]) -> pl.DataFrame:
    keeps = [folder not in replaced for folder in folders(files)]
    return files.filter(pl.Series(keeps, dtype=pl.Boolean))


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
