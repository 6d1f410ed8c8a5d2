"""Replaced versions of an output, which are kept beside it for a while.

replaced/<n>/<key>   left the output when manifest n became current
orphaned/<s>/<key>   lay in the output though no manifest named it, and was moved away at second s
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import polars as pl

from pipeline.concurrency import map_concurrently
from pipeline.errors import ObjectMissingError
from pipeline.table.errors import FilesMissingError
from pipeline.table.evidence import expire_evidence
from pipeline.table.keys import kept_uri, original_key, restored_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import FILES, Commit, CommitEntry, Manifest
from pipeline.table.replay import may_meet

MAX_FOLDERS_LISTED = 64
"""Folders that are listed one by one; of more, the whole output is listed at once."""
COPY_ATTEMPTS = 3
"""How often a file is looked for again that was moved while it was copied."""


def move_replaced(table_log: TableLog, manifest: Manifest) -> int:
    """Move what a manifest replaced out of the output; returns the number of files.

    Each file is copied beside the output first. A driver that died in between left the rest: the
    next one moves it. What a manifest replaced is never current again (see `table.keys`), so it
    does not matter when a DELETE is carried out.
    """
    replaced = replaced_keys(table_log, manifest)
    if not replaced:
        table_log.moved = manifest.number
        return 0
    there = _there(table_log, {key.rpartition("/")[0] for key in replaced})
    keys = [key for key in replaced if table_log.output + key in there]
    keep = kept_versions(manifest)
    _move_aside(table_log, keys, f"{table_log.state}replaced/{manifest.number}/" if keep else None)
    expire_replaced(table_log, manifest)
    table_log.moved = manifest.number
    return len(keys)


def move_orphans(table_log: TableLog, keys: Collection[str]) -> None:
    """Move files that no manifest will ever name out of the output; vacuum deletes them later."""
    if keys:
        _move_aside(table_log, keys, f"{table_log.state}orphaned/{int(time.time())}/")


def _move_aside(table_log: TableLog, keys: Iterable[str], folder: str | None) -> None:
    def move(key: str) -> None:
        source = table_log.output + key
        with suppress(ObjectMissingError):  # Another driver moves them too, and was faster.
            if folder is not None:
                table_log.storage.copy(source, kept_uri(folder, key))
            table_log.storage.delete(source)

    map_concurrently(move, keys)


def kept_versions(manifest: Manifest) -> int:
    """How many versions before a manifest are kept while it is current."""
    return manifest.commits[-1].keep_versions if manifest.commits else 1


def _there(table_log: TableLog, folders: set[str]) -> set[str]:
    """What is in these folders now; of many, or of the top one, in the whole output."""
    whole = "" in folders or len(folders) > MAX_FOLDERS_LISTED
    prefixes = [""] if whole else [f"{folder}/" for folder in folders]

    def listed(prefix: str) -> list[str]:
        return [info.uri for info in table_log.storage.objects(table_log.output + prefix)]

    return set(chain.from_iterable(map_concurrently(listed, prefixes)))


def replaced_keys(table_log: TableLog, manifest: Manifest) -> list[str]:
    """Keys of the files that this manifest dropped from the one before."""
    if manifest.number == 0:
        return []
    before, after = table_log.manifest(manifest.number - 1).commits, manifest.commits
    added = after[len(before) :]
    if after[: len(before)] == before:
        if all(entry.mode in ("error", "append", "release") for entry in added):
            return []
        # The others are as they were: their records need not even be read.
        before = tuple(one for one in before if any(may_meet(one, entry) for entry in added))
        after = (*before, *added)
    stays = set(table_log.keys(after))
    return [key for key in table_log.keys(before) if key not in stays]


def expire_replaced(table_log: TableLog, manifest: Manifest, *, dry_run: bool = False) -> int:
    """Delete what belongs to no version that is kept any more; returns the number of files."""
    folder = table_log.state + "replaced/"
    newest = manifest.number - kept_versions(manifest)
    old = [uri for number, uri in _numbered(table_log, folder) if number <= newest]
    map_concurrently(table_log.storage.delete, [] if dry_run else old)
    records = expire_evidence(table_log, manifest, kept_versions(manifest), dry_run=dry_run)
    return len(old) + records


def expire_orphans(table_log: TableLog, older_than: float, *, dry_run: bool = False) -> int:
    """Delete orphans that were moved away so many seconds ago; returns the number of files."""
    latest = time.time() - older_than
    old = [u for at, u in _numbered(table_log, table_log.state + "orphaned/") if at < latest]
    map_concurrently(table_log.storage.delete, [] if dry_run else old)
    return len(old)


def _numbered(table_log: TableLog, folder: str) -> list[tuple[int, str]]:
    """The copies in a folder of numbered folders, with these numbers; anything else is left out."""
    found = []
    for info in table_log.storage.objects(folder):
        number, _, key = info.uri.removeprefix(folder).partition("/")
        if key and number.isascii() and number.isdigit():
            found.append((int(number), info.uri))
    return found


@dataclass(frozen=True, slots=True)
class Files:
    """Where the files of a manifest are."""

    places: Mapping[str, str]
    """URI by key, in the manifest's order."""
    missing: tuple[str, ...]
    """Keys that are neither in the output nor kept."""

    @property
    def count(self) -> int:
        """Number of files that the manifest names."""
        return len(self.places) + len(self.missing)


def find_files(table_log: TableLog, manifest: Manifest, oldest: int = 0) -> Files:
    """Look for each file of a manifest in the output, and beside it.

    Args:
        table_log: Of the output.
        manifest: Any that is stored.
        oldest: Leave out copies that left the output with manifests before this one.
    """
    keys = table_log.keys(manifest.commits)
    there = set(visible_keys(table_log))
    gone = [key for key in keys if key not in there]
    copies = find_copies(table_log, gone, ("replaced",), max(manifest.number + 1, oldest))
    places = {key: copies.get(key, table_log.output + key) for key in keys}
    missing = tuple(key for key in gone if key not in copies)
    return Files({key: uri for key, uri in places.items() if key not in missing}, missing)


def locate(table_log: TableLog, manifest: Manifest, oldest: int = 0) -> Mapping[str, str]:
    """Where each file of a manifest is (see `find_files`): URI by key.

    Raises:
        FilesMissingError: some of its files are neither in the output nor kept.
    """
    found = find_files(table_log, manifest, oldest)
    if found.missing:
        raise FilesMissingError(table_log.output, manifest.number, found.missing, found.count)
    return found.places


def find_copies(
    table_log: TableLog,
    keys: Collection[str],
    folders: Sequence[str] = ("replaced", "orphaned"),
    first: int = 0,
) -> dict[str, str]:
    """Where some files are kept beside the output: URI by key.

    Args:
        table_log: Of the output.
        keys: Of the files.
        folders: Names of the folders of copies to look in.
        first: Leave out copies whose folder has a smaller number.
    """
    found: dict[str, str] = {}
    for folder in folders if keys else ():
        prefix = f"{table_log.state}{folder}/"
        copies = {uri: n for n, uri in _numbered(table_log, prefix) if n >= first}
        for number in sorted(set(copies.values())):
            uris = {key: kept_uri(f"{prefix}{number}/", key) for key in keys if key not in found}
            found |= {key: uri for key, uri in uris.items() if uri in copies}
    return found


def bring_back(table_log: TableLog, places: Mapping[str, str]) -> None:
    """Copy files that a manifest names from where they are kept (URI by key) into the output."""

    def copy(key: str) -> None:
        table_log.storage.copy(places[key], table_log.output + key)

    map_concurrently(copy, places)


def visible_keys(table_log: TableLog) -> list[str]:
    """Keys of all objects in the output, whoever put them there."""
    return [
        i.uri.removeprefix(table_log.output) for i in table_log.storage.objects(table_log.output)
    ]


def restore(table_log: TableLog, target: Manifest, current: Manifest) -> Commit | None:
    """Copy what was replaced since an older manifest back into the output, under new keys.

    Args:
        table_log: Of the output.
        target: The manifest that is to be current again, as the one after `current`.
        current: The manifest that is current.

    Returns:
        The record that names the new keys; None where all files are current still.

    Raises:
        FilesMissingError: some files are no longer kept.
    """
    number = current.number + 1
    stays = set(table_log.keys(current.commits))
    gone = [key for key in table_log.keys(target.commits) if key not in stays]
    if not gone:
        return None
    places = [locate(table_log, target)]

    def copy_back(key: str) -> None:
        for attempt in range(COPY_ATTEMPTS):
            try:
                table_log.storage.copy(
                    places[-1][key], table_log.output + restored_key(key, number)
                )
                return
            except ObjectMissingError:
                # A driver that moves replaced files has moved it just now.
                if attempt + 1 == COPY_ATTEMPTS:
                    raise
                places.append(locate(table_log, target))

    map_concurrently(copy_back, gone)
    files = table_log.snapshot(target).filter(pl.col("key").is_in(gone)).select(list(FILES))
    keys = [restored_key(key, number) for key in files["key"].to_list()]
    entry = CommitEntry(
        name=f"restore-{number}",
        run="",
        mode="restore",
        files=0,
        rows=0,
        bytes=0,
        keep_versions=kept_versions(target),
    )
    return Commit(entry, current.number, (), files.with_columns(key=pl.Series(keys)))


def orphans_among(table_log: TableLog, keys: Iterable[str]) -> list[str]:
    """Those of some keys, none of them current, that belong to commits of this output's past.

    They were replaced, or claimed and given up: a publisher, a rollback or a delete that was late
    has left them, and nothing will ever name them again.
    """
    entries = table_log.entries()
    released = [name for entry in entries for name in entry.releases]
    names = {commit.entry.name for commit in table_log.readable(released)}
    names |= {entry.name for entry in entries if entry.mode != "release"}
    past = {
        original_key(key)
        for versions in map_concurrently(table_log.versions, sorted(names))
        for commit in versions
        for key in commit.files["key"].to_list()
    }
    return [key for key in keys if original_key(key) in past]


def claimed_files(table_log: TableLog, number: int) -> dict[str, str]:
    """Files of frozen commits that no manifest up to a number lists: the run by key.

    They are in the output while such a commit is claimed, or where the claim was lost.
    """
    commits = table_log.readable(table_log.unpublished(number))
    return {k: commit.entry.run for commit in commits for k in commit.files["key"].to_list()}
