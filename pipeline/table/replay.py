"""Which files of a list of commits are left when they are folded in order.

Only folders are looked at: a commit drops all files before it in a folder, or none.
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
    """Where a commit has files, and what it replaces: all that folding needs, and small."""

    entry: CommitEntry
    replaces: frozenset[str]
    """Folders whose earlier files it drops, beside those of its window."""
    folders: Mapping[str, tuple[str, ...]]
    """Its keys, by folder."""

    @classmethod
    def of(cls, commit: Commit) -> Footprint:
        """The footprint of a commit record."""
        keys: dict[str, list[str]] = {}
        for folder, key in zip(folders(commit.files), commit.files["key"].to_list(), strict=True):
            keys.setdefault(folder, []).append(key)
        held = {folder: tuple(own) for folder, own in keys.items()}
        return cls(commit.entry, frozenset(commit.replaces), held)

    def drops(self) -> Callable[[str], bool]:
        """What tells whether earlier files in a folder are dropped."""
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


def surviving(commits: Sequence[Footprint]) -> list[frozenset[str]]:
    """The folders in which each commit still has files after the last one; linear in folders."""
    alive = [set(one.folders) for one in commits]
    holders: dict[str, list[int]] = {}
    windows = _Windows({one.entry.rule for one in commits if one.entry.window is not None})
    for rank, one in enumerate(commits):
        for folder in _dropped(one, holders, windows):
            for holder in holders.pop(folder, ()):
                alive[holder].discard(folder)
        for folder in one.folders:
            holders.setdefault(folder, []).append(rank)
            windows.add(folder)
    return [frozenset(one) for one in alive]


def _dropped(one: Footprint, holders: Mapping[str, object], windows: _Windows) -> Iterable[str]:
    if one.entry.mode == "overwrite":
        return list(holders)
    if one.entry.mode != "overwrite-partitions":
        return ()
    return one.replaces | windows.folders(one.entry)


class _Windows:
    """The folders of each window seen so far."""

    def __init__(self, rules: Iterable[str]) -> None:
        self._folders: dict[str, dict[str | None, set[str]]] = {rule: {} for rule in rules}

    def add(self, folder: str) -> None:
        for rule, found in self._folders.items():
            found.setdefault(window_label(rule, folder), set()).add(folder)

    def folders(self, entry: CommitEntry) -> set[str]:
        if entry.window is None:
            return set()
        return self._folders[entry.rule].get(entry.window, set())


def renames(commits: Sequence[Footprint]) -> dict[str, str]:
    """The present key of each file that rollbacks have renamed, by its original key."""
    return {
        original_key(key): key
        for one in commits
        if one.entry.mode == "restore"
        for keys in one.folders.values()
        for key in keys
    }


@lru_cache(maxsize=65_536)
def window_label(rule: str, folder: str) -> str | None:
    """The window that a folder of an output is in (see `manifest.rule_of`), if it is in one."""
    columns, grain, timezone = rule.split("/", 2)
    column, *further = columns.split("=")
    try:
        windowing = Windowing(column, cast("Grain", grain), timezone, tuple(further))
        return label_of_folder(windowing, folder)
    except WindowError:
        return None


def may_meet(one: CommitEntry, other: CommitEntry) -> bool:
    """Whether two commits can have a folder in common, as far as their entries tell."""
    both = one.window is not None and other.window is not None and one.rule == other.rule
    return not both or one.window == other.window
