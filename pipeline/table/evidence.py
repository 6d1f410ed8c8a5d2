"""The record of objects in quarantine, beside an output: a file of JSON lines for each commit.

    quarantine/<n>/<commit>.jsonl   written before manifest n, which lists the commit

It is made of the commit record alone, by whoever finishes the claim, and deleted with the last kept
version that has files of its commit.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from pipeline.storage import join
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry, Manifest
from pipeline.table.replay import surviving


def write_evidence(table_log: TableLog, number: int, commits: Iterable[Commit]) -> None:
    """Store what some commits have in quarantine; twice is once.

    Args:
        table_log: Of the output.
        number: Of the manifest that will list the commits.
        commits: As they were frozen.
    """
    for commit in commits:
        if commit.quarantined.height:
            lines = map(orjson.dumps, commit.quarantined.iter_rows(named=True))
            uri = join(table_log.state, "quarantine", str(number), f"{commit.entry.name}.jsonl")
            table_log.storage.put(uri, b"\n".join(lines) + b"\n")


def find_evidence(table_log: TableLog, manifest: Manifest) -> dict[str, str]:
    """URI of the record of each commit of a manifest that has objects in quarantine, by name."""
    names = {entry.name for entry in manifest.commits if entry.quarantined}
    stored = _stored(table_log) if names else []
    return {
        name: uri for number, name, uri in stored if name in names and number <= manifest.number
    }


def expire_evidence(table_log: TableLog, manifest: Manifest, kept: int, *, dry_run: bool) -> int:
    """Delete the records of commits that no kept version has files of; returns how many.

    Args:
        table_log: Of the output.
        manifest: The current one. What is written for later ones is left alone.
        kept: Versions before it that are kept.
        dry_run: Only count.
    """
    stored = _stored(table_log)
    if not stored:
        return 0
    first = max(1, manifest.number - kept)
    alive: set[str] = set()
    for number in range(first, manifest.number + 1):
        alive |= _alive(table_log, table_log.manifest(number))
    old = [uri for number, name, uri in stored if number <= manifest.number and name not in alive]
    for uri in [] if dry_run else old:
        table_log.storage.delete(uri)
    return len(old)


def _alive(table_log: TableLog, manifest: Manifest) -> set[str]:
    """Names of the commits of a version that have objects in quarantine, and files or none ever."""
    if not any(entry.quarantined for entry in manifest.commits):
        return set()
    prints = table_log.footprints(manifest.commits)
    newest: dict[str | None, CommitEntry] = {e.window: e for e in manifest.commits}
    return {
        one.entry.name
        for one, folders in zip(prints, surviving(prints), strict=True)
        if folders or (not one.entry.files and newest[one.entry.window] == one.entry)
    }


def _stored(table_log: TableLog) -> list[tuple[int, str, str]]:
    """Number, name of the commit, and URI of each stored record."""
    folder = join(table_log.state, "quarantine") + "/"
    found = []
    for info in table_log.storage.objects(folder):
        number, _, name = info.uri.removeprefix(folder).partition("/")
        if number.isascii() and number.isdigit() and name.endswith(".jsonl"):
            found.append((int(number), name.removesuffix(".jsonl"), info.uri))
    return found
