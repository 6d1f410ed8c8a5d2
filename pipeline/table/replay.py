"""Replay a list of commits in order, to find the live files.

Folders are enough for this: a commit drops all earlier files of a folder, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from partitioning.errors import WindowError
from partitioning.window_inputs import label_of_folder
from partitioning.windows import Grain, Windowing
from pipeline.table.keys import original_key
from pipeline.table.manifest import Commit, CommitEntry, folders


@dataclass(frozen=True, slots=True)
class Footprint:
    """The folders in which a commit has files or drops files: the part that a replay needs."""

    entry: CommitEntry
    replaces: frozenset[str]
    """Folders whose earlier files it drops, in addition to those of its window."""
    folders: Mapping[str, tuple[str, ...]]
    """Keys of its files, by folder."""

    @classmethod
    def of(cls, commit: Commit) -> Footprint:
        """Return the footprint of a commit record."""
        keys: dict[str, list[str]] = {}
        for folder, key in zip(folders(commit.files), commit.files["key"].to_list(), strict=True):
            keys.setdefault(folder, []).append(key)
        by_folder = {folder: tuple(names) for folder, names in keys.items()}
        return cls(commit.entry, frozenset(commit.replaces), by_folder)

    def drop_rule(self) -> Callable[[str], bool]:
        """Return a function that says whether the commit drops earlier files of a folder."""
        entry = self.entry
        if entry.mode == "overwrite":
            return lambda folder: True
        if entry.mode != "overwrite-partitions":
            return lambda folder: False
        if entry.window is None:
            return self.replaces.__contains__
        return lambda folder: (
            folder in self.replaces or window_label(entry.rule, folder) == entry.window
        )


def live_folders(commits: Sequence[Footprint]) -> list[frozenset[str]]:
    """Return the folders in which each commit has live files after the last; linear in folders."""
    alive = [set(commit.folders) for commit in commits]
    owners: dict[str, list[int]] = {}
    windows = _Windows({c.entry.rule for c in commits if c.entry.window is not None})
    for index, commit in enumerate(commits):
        for folder in _dropped_folders(commit, owners, windows):
            for owner in owners.pop(folder, ()):
                alive[owner].discard(folder)
        for folder in commit.folders:
            owners.setdefault(folder, []).append(index)
            windows.add(folder)
    return list(map(frozenset, alive))


def _dropped_folders(
    commit: Footprint, owners: Mapping[str, object], windows: _Windows
) -> Iterable[str]:
    if commit.entry.mode == "overwrite":
        return list(owners)
    if commit.entry.mode != "overwrite-partitions":
        return ()
    return commit.replaces | windows.folders(commit.entry)


class _Windows:
    """The folders of each window seen so far."""

    def __init__(self, rules: Iterable[str]) -> None:
        self._folders: dict[str, dict[str | None, set[str]]] = {rule: {} for rule in rules}

    def add(self, folder: str) -> None:
        for rule, windows in self._folders.items():
            windows.setdefault(window_label(rule, folder), set()).add(folder)

    def folders(self, entry: CommitEntry) -> set[str]:
        if entry.window is None:
            return set()
        return self._folders[entry.rule].get(entry.window, set())


def renamed_keys(commits: Sequence[Footprint]) -> dict[str, str]:
    """Return the present key of each file that rollbacks have renamed, by its original key."""
    return {
        original_key(key): key
        for commit in commits
        if commit.entry.mode == "restore"
        for keys in commit.folders.values()
        for key in keys
    }


@lru_cache(maxsize=65_536)
def window_label(rule: str, folder: str) -> str | None:
    """Return the window of an output's folder by a rule (see `manifest.rule_of`), if it has one."""
    columns, grain, timezone = rule.split("/", 2)
    column, *others = columns.split("=")
    try:
        windowing = Windowing(column, cast("Grain", grain), timezone, tuple(others))
        return label_of_folder(windowing, folder)
    except WindowError:
        return None


def may_overlap(first: CommitEntry, second: CommitEntry) -> bool:
    """Whether two commits may have a common folder, judged by their entries only."""
    comparable = None not in (first.window, second.window) and first.rule == second.rule
    return not comparable or first.window == second.window


def overlapping(
    commits: Iterable[CommitEntry], added: Iterable[CommitEntry]
) -> tuple[CommitEntry, ...]:
    """Return those commits that `may_overlap` with one of the added ones; linear in both."""
    windows = {(entry.window, entry.rule) for entry in added}
    if not windows:
        return ()
    if any(window is None for window, _ in windows):
        return tuple(commits)
    rules = {rule for _, rule in windows}
    return tuple(
        entry
        for entry in commits
        if entry.window is None or (entry.window, entry.rule) in windows or rules - {entry.rule}
    )
