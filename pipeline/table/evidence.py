"""Keep what is in quarantine next to an output: a record of objects, and rows, of each commit.

    quarantine/<n>/<commit>.jsonl   objects; written before manifest n, which lists the commit
    quarantine/rows/<n>/<commit>/<attempt>.parquet   rows of one chunk, with the rules they break

The process that finishes the claim makes them from the commit record alone. They are deleted with
the last kept version that has files of its commit.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from pipeline.concurrency import map_concurrently
from pipeline.errors import ObjectMissingError
from pipeline.storage import join
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry, Manifest
from pipeline.table.replay import live_folders


def write_evidence(table_log: TableLog, number: int, commits: Iterable[Commit]) -> None:
    """Store the records of commits that have objects in quarantine; idempotent.

    Args:
        table_log: Table log of the output.
        number: Number of the manifest that will list the commits.
        commits: The frozen commits.
    """
    for commit in commits:
        if commit.quarantined.height:
            lines = map(orjson.dumps, commit.quarantined.iter_rows(named=True))
            uri = join(table_log.state, "quarantine", str(number), f"{commit.entry.name}.jsonl")
            table_log.storage.put(uri, b"\n".join(lines) + b"\n")


def publish_rejected(table_log: TableLog, number: int, commits: Iterable[Commit]) -> list[str]:
    """Copy rows in quarantine to where they can be read; doing it twice changes nothing.

    Args:
        table_log: Table log of the output.
        number: Number of the manifest that will list the commits.
        commits: The frozen commits.

    Returns:
        The attempts whose rows are stored nowhere.
    """
    storage = table_log.storage
    wanted = [
        (attempt, table_log.state + source, rows_folder(table_log, number, commit.entry.name))
        for commit in commits
        for attempt, source in commit.rejected.select("attempt", "source").iter_rows()
    ]

    def copy(item: tuple[str, str, str]) -> str | None:
        attempt, source, folder = item
        target = f"{folder}{attempt}.parquet"
        try:
            storage.copy(source, target)
        except ObjectMissingError:
            # Another process may have finished the claim, and dropped what it has copied.
            try:
                storage.head(target)
            except ObjectMissingError:
                return attempt
        return None

    return [attempt for attempt in map_concurrently(copy, wanted) if attempt is not None]


def rows_folder(table_log: TableLog, number: int, commit: str) -> str:
    """Return the folder of a commit's rows in quarantine, with a slash at its end."""
    return join(table_log.state, "quarantine", "rows", str(number), commit) + "/"


def find_rejected(table_log: TableLog, manifest: Manifest) -> dict[str, str]:
    """Return the folders with rows in quarantine of a manifest's commits, by the commit's name."""
    names = {entry.name for entry in manifest.commits if entry.rejected}
    stored = _stored_rows(table_log) if names else []
    return {
        name: uri.rpartition("/")[0] + "/"
        for number, name, uri in stored
        if name in names and number <= manifest.number
    }


def find_evidence(table_log: TableLog, manifest: Manifest) -> dict[str, str]:
    """Return the URIs of the records of a manifest's commits, by the name of the commit."""
    names = {entry.name for entry in manifest.commits if entry.quarantined}
    stored = _stored(table_log) if names else []
    return {
        name: uri for number, name, uri in stored if name in names and number <= manifest.number
    }


def expire_evidence(table_log: TableLog, manifest: Manifest, kept: int, *, dry_run: bool) -> int:
    """Delete the records of commits that have no files in a kept version; return their number.

    Args:
        table_log: Table log of the output.
        manifest: The current manifest. Records of later manifests are not touched.
        kept: Number of versions before it that are kept.
        dry_run: Only count.
    """
    stored = [*_stored(table_log), *_stored_rows(table_log)]
    if not stored:
        return 0
    first = max(1, manifest.number - kept)
    alive: set[str] = set()
    for number in range(first, manifest.number + 1):
        alive |= names_alive(table_log, table_log.manifest(number))
    old = [uri for number, name, uri in stored if number <= manifest.number and name not in alive]
    for uri in [] if dry_run else old:
        table_log.storage.delete(uri)
    return len(old)


def names_alive(table_log: TableLog, manifest: Manifest) -> set[str]:
    """Return the names of the commits of a version whose records are kept.

    These are the commits with live files, and for each window the newest commit if it has none.
    """
    if not any(entry.quarantined or entry.rejected for entry in manifest.commits):
        return set()
    footprints = table_log.footprints(manifest.commits)
    newest: dict[str | None, CommitEntry] = {e.window: e for e in manifest.commits}
    return {
        commit.entry.name
        for commit, folders in zip(footprints, live_folders(footprints), strict=True)
        if folders or (not commit.entry.files and newest[commit.entry.window] == commit.entry)
    }


def _stored(table_log: TableLog) -> list[tuple[int, str, str]]:
    """Return number, name of the commit, and URI of each stored record."""
    folder = join(table_log.state, "quarantine") + "/"
    records = []
    for info in table_log.storage.objects(folder):
        number, _, name = info.uri.removeprefix(folder).partition("/")
        if number.isascii() and number.isdigit() and name.endswith(".jsonl"):
            records.append((int(number), name.removesuffix(".jsonl"), info.uri))
    return records


def _stored_rows(table_log: TableLog) -> list[tuple[int, str, str]]:
    """Return number, name of the commit, and URI of each file with rows."""
    folder = join(table_log.state, "quarantine", "rows") + "/"
    files = []
    for info in table_log.storage.objects(folder):
        parts = info.uri.removeprefix(folder).split("/")
        if len(parts) == 3 and parts[0].isascii() and parts[0].isdigit():
            files.append((int(parts[0]), parts[1], info.uri))
    return files
