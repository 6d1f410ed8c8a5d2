"""Keep replaced files next to an output, find them, and expire them.

replaced/<n>/<key>   file that left the output when manifest n became current
orphaned/<s>/<key>   file that no manifest names, moved out of the output at second s
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import polars as pl

from partitioning import ObjectInfo
from pipeline.concurrency import map_concurrently
from pipeline.errors import ObjectMissingError
from pipeline.table.adopted import adopted_versions, is_version
from pipeline.table.errors import FilesMissingError
from pipeline.table.evidence import expire_evidence
from pipeline.table.keys import kept_uri, original_key, restored_key, restoring_manifest
from pipeline.table.log import TableLog
from pipeline.table.manifest import ADOPT, FILES, Commit, CommitEntry, Manifest
from pipeline.table.replay import overlapping

log = logging.getLogger(__name__)

DELTA_LOG = "_delta_log/"
"""Folder of the log of an output that is a Delta table, in the output."""
MAX_FOLDERS_LISTED = 64
"""Maximum number of folders that are listed separately; for more, the whole output is listed."""
COPY_ATTEMPTS = 3
"""Number of attempts to copy a file that other processes move at the same time."""


def move_replaced(table_log: TableLog, manifest: Manifest) -> int:
    """Move the files that a manifest replaced out of the output; return their number.

    Each file is first copied next to the output. If a driver dies in between, the next driver moves
    the rest. The keys are never current again (see `table.keys`), so a late DELETE does no harm.
    A file that another program has written over an adopted one stays where it is.
    """
    replaced = replaced_keys(table_log, manifest)
    if not replaced:
        table_log.moved = manifest.number
        return 0
    existing = existing_objects(table_log, replaced)
    keys = [key for key in replaced if key in existing]
    if manifest.adopted:
        keys = _without_foreign(table_log, manifest, {key: existing[key] for key in keys})
    keep = kept_versions(manifest)
    _move_aside(table_log, keys, f"{table_log.state}replaced/{manifest.number}/" if keep else None)
    expire_replaced(table_log, manifest)
    table_log.moved = manifest.number
    return len(keys)


def _without_foreign(
    table_log: TableLog, manifest: Manifest, replaced: Mapping[str, ObjectInfo]
) -> list[str]:
    """Return the keys of replaced files, without adopted ones that have another version now."""
    marks = adopted_versions(table_log, table_log.manifest(manifest.number - 1).commits)
    foreign = {k for k, info in replaced.items() if k in marks and not is_version(info, marks[k])}
    for key in sorted(foreign):
        log.warning("%s%s was replaced by others, and is left there", table_log.output, key)
    return [key for key in replaced if key not in foreign]


def move_orphans(table_log: TableLog, keys: Collection[str]) -> None:
    """Move orphan files out of the output; vacuum deletes them later."""
    if keys:
        _move_aside(table_log, keys, f"{table_log.state}orphaned/{int(time.time())}/")


def _move_aside(table_log: TableLog, keys: Iterable[str], folder: str | None) -> None:
    def move(key: str) -> None:
        source = table_log.output + key
        with suppress(ObjectMissingError):  # Another driver was faster.
            if folder is not None:
                table_log.storage.copy(source, kept_uri(folder, key))
            table_log.storage.delete(source)

    map_concurrently(move, keys)


def kept_versions(manifest: Manifest) -> int:
    """Return how many versions before a manifest are kept while it is current."""
    return manifest.commits[-1].keep_versions if manifest.commits else 1


def existing_objects(table_log: TableLog, keys: Iterable[str]) -> dict[str, ObjectInfo]:
    """Return the objects of some keys that are in the output, by key.

    It lists their folders; if they are many, or the top folder is one, the whole output.
    """
    wanted = set(keys)
    if not wanted:
        return {}
    folders = {key.rpartition("/")[0] for key in wanted}
    whole = "" in folders or len(folders) > MAX_FOLDERS_LISTED
    prefixes = [""] if whole else [f"{folder}/" for folder in sorted(folders)]

    def list_prefix(prefix: str) -> list[ObjectInfo]:
        return table_log.storage.objects(table_log.output + prefix)

    listed = chain.from_iterable(map_concurrently(list_prefix, prefixes))
    found = {info.uri.removeprefix(table_log.output): info for info in listed}
    return {key: found[key] for key in wanted & found.keys()}


def replaced_keys(table_log: TableLog, manifest: Manifest) -> list[str]:
    """Return the keys of the previous manifest's files that this manifest does not have."""
    if manifest.number == 0:
        return []
    before, after = table_log.manifest(manifest.number - 1).commits, manifest.commits
    added = after[len(before) :]
    if after[: len(before)] == before:
        if all(entry.mode in ("error", "append", ADOPT, "release") for entry in added):
            return []
        # Other commits are not affected, so their records need not be read.
        before = overlapping(before, added)
        after = (*before, *added)
    stays = set(table_log.keys(after))
    return [key for key in table_log.keys(before) if key not in stays]


def expire_replaced(table_log: TableLog, manifest: Manifest, *, dry_run: bool = False) -> int:
    """Delete the copies of expired versions; return the number of files."""
    folder = table_log.state + "replaced/"
    newest = manifest.number - kept_versions(manifest)
    old = [uri for number, uri in _numbered(table_log, folder) if number <= newest]
    map_concurrently(table_log.storage.delete, [] if dry_run else old)
    records = expire_evidence(table_log, manifest, kept_versions(manifest), dry_run=dry_run)
    return len(old) + records


def expire_orphans(table_log: TableLog, older_than: float, *, dry_run: bool = False) -> int:
    """Delete orphans that were moved away `older_than` seconds ago; return the number of files."""
    latest = time.time() - older_than
    old = [u for at, u in _numbered(table_log, table_log.state + "orphaned/") if at < latest]
    map_concurrently(table_log.storage.delete, [] if dry_run else old)
    return len(old)


def _numbered(table_log: TableLog, folder: str) -> list[tuple[int, str]]:
    """Return number and URI of the copies in a folder of numbered folders."""
    copies = []
    for info in table_log.storage.objects(folder):
        number, _, key = info.uri.removeprefix(folder).partition("/")
        if key and number.isascii() and number.isdigit():
            copies.append((int(number), info.uri))
    return copies


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a manifest: where they are, and which are missing."""

    places: Mapping[str, str]
    """URIs by key, in the manifest's order."""
    missing: tuple[str, ...]
    """Keys that are neither in the output nor kept."""

    @property
    def count(self) -> int:
        """Number of files that the manifest names."""
        return len(self.places) + len(self.missing)


def find_files(table_log: TableLog, manifest: Manifest, oldest: int = 0) -> Files:
    """Find each file of a manifest in the output, or next to it.

    Args:
        table_log: Table log of the output.
        manifest: A stored manifest.
        oldest: Leave out copies that left the output with manifests before this number.
    """
    keys = table_log.keys(manifest.commits)
    visible = set(visible_keys(table_log))
    gone = [key for key in keys if key not in visible]
    copies = find_copies(table_log, gone, ("replaced",), max(manifest.number + 1, oldest))
    places = {key: copies.get(key, table_log.output + key) for key in keys}
    missing = tuple(key for key in gone if key not in copies)
    return Files({key: uri for key, uri in places.items() if key not in missing}, missing)


def locate(table_log: TableLog, manifest: Manifest, oldest: int = 0) -> Mapping[str, str]:
    """Return the URI of each file of a manifest by key (see `find_files`).

    Raises:
        FilesMissingError: Some of its files are neither in the output nor kept.
    """
    files = find_files(table_log, manifest, oldest)
    if files.missing:
        raise FilesMissingError(table_log.output, manifest.number, files.missing, files.count)
    return files.places


def find_copies(
    table_log: TableLog,
    keys: Collection[str],
    folders: Sequence[str] = ("replaced", "orphaned"),
    first: int = 0,
) -> dict[str, str]:
    """Find the kept copies of some files: URI by key.

    Args:
        table_log: Table log of the output.
        keys: Keys of the files.
        folders: Names of the folders of copies to search.
        first: Leave out copies whose folder has a smaller number.
    """
    places: dict[str, str] = {}
    for folder in folders if keys else ():
        prefix = f"{table_log.state}{folder}/"
        copies = {uri: n for n, uri in _numbered(table_log, prefix) if n >= first}
        for number in sorted(set(copies.values())):
            uris = {key: kept_uri(f"{prefix}{number}/", key) for key in keys if key not in places}
            places |= {key: uri for key, uri in uris.items() if uri in copies}
    return places


def copy_back(table_log: TableLog, places: Mapping[str, str]) -> None:
    """Copy files of a manifest from their kept copies (URI by key) into the output."""

    def copy(key: str) -> None:
        table_log.storage.copy(places[key], table_log.output + key)

    map_concurrently(copy, places)


def visible_keys(table_log: TableLog) -> list[str]:
    """Return the keys of all objects in the output, also those that no manifest names."""
    return [
        i.uri.removeprefix(table_log.output) for i in table_log.storage.objects(table_log.output)
    ]


def unnamed_keys(table_log: TableLog, manifest: Manifest) -> set[str]:
    """Return the keys of the objects in the output that neither a manifest nor a table's log needs.

    A table keeps its log, and the files of older versions until its own vacuum deletes them.

    Args:
        table_log: Table log of the output.
        manifest: The current manifest.
    """
    unnamed = set(visible_keys(table_log)).difference(table_log.keys(manifest.commits))
    if not manifest.table:
        return unnamed
    unnamed = {key for key in unnamed if not key.startswith(DELTA_LOG)}
    return unnamed - _published_keys(table_log, manifest) if unnamed else unnamed


def _published_keys(table_log: TableLog, manifest: Manifest) -> set[str]:
    """Return the keys of all files that this manifest or an earlier one has named."""
    entries = [e for e in table_log.history(manifest.number) if e.mode != "release"]
    footprints = table_log.footprints(entries)
    return {key for commit in footprints for keys in commit.folders.values() for key in keys}


def restore(table_log: TableLog, target: Manifest, current: Manifest) -> Commit | None:
    """Copy the files that were replaced since an older manifest back, under new keys.

    Args:
        table_log: Table log of the output.
        target: The manifest to restore.
        current: The current manifest.

    Returns:
        The commit with the new keys; None if all files of `target` are still current.

    Raises:
        FilesMissingError: Some files are no longer kept.
    """
    number = current.number + 1
    stays = set(table_log.keys(current.commits))
    gone = [key for key in table_log.keys(target.commits) if key not in stays]
    if not gone:
        return None
    places = [locate(table_log, target)]

    def restore_file(key: str) -> None:
        for attempt in range(COPY_ATTEMPTS):
            try:
                table_log.storage.copy(
                    places[-1][key], table_log.output + restored_key(key, number)
                )
                return
            except ObjectMissingError:
                # Another driver has just moved the file aside.
                if attempt + 1 == COPY_ATTEMPTS:
                    raise
                places.append(locate(table_log, target))

    map_concurrently(restore_file, gone)
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
    """Return the keys among some keys, none of them current, that are from old commits.

    They were replaced, or claimed and released. A late publisher, rollback or DELETE has left them,
    and no manifest will ever name them again. A file at the key of an adopted one is such a file
    only if it is still the adopted version: others may have replaced it.
    """
    keys, entries = list(keys), table_log.entries()
    released = [name for entry in entries for name in entry.releases]
    number = table_log.head()[0].current
    frozen = table_log.frozen(released, number)
    # A record that was not claimed will never be, once others have published its commits.
    unlisted, known = table_log.unlisted_records(number), table_log.known_names(number)
    frozen += [c for c in table_log.readable(unlisted) if c.entry.name in known]
    places = {(commit.entry.name, commit.entry.record) for commit in frozen}
    places |= {(entry.name, entry.record) for entry in entries if entry.mode != "release"}
    marks = adopted_versions(table_log, entries)
    past: set[str] = set()
    copies: set[str] = set()  # What rollbacks made of adopted files.
    for commit in table_log.versions(sorted(places)):
        if not commit.entry.adopts:
            keys_of = commit.files["key"].to_list()
            past |= {original_key(key) for key in keys_of}.difference(marks)
            copies |= {key for key in keys_of if original_key(key) in marks}
    orphans = [key for key in keys if original_key(key) in past or key in copies]
    left = existing_objects(table_log, [key for key in keys if key in marks])
    return orphans + [key for key, info in left.items() if is_version(info, marks[key])]


def restored_by(keys: Iterable[str], number: int) -> list[str]:
    """Return the keys among some keys that the rollback of a manifest has made."""
    return [key for key in keys if restoring_manifest(key) == number]


def claimed_files(table_log: TableLog, number: int) -> dict[str, str]:
    """Return the files of frozen commits that no manifest up to a number lists: run by key.

    Such files are in the output while their commit is claimed, or if the claim was lost. Files of
    adoptions are there anyway, and do not count.
    """
    commits = table_log.frozen(table_log.unpublished(number), number)
    return {key: commit.entry.run for commit in commits for key in commit.files["key"].to_list()}
