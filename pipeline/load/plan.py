"""Decide which commits of an output a table lacks. Pure: no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pipeline.load.errors import ReplacedCommitsError
from pipeline.report.humanize import plural

Mode = Literal["append", "replace", "merge"]


@dataclass(frozen=True)
class CommitFiles:
    """The live files of a commit in one version of an output."""

    name: str
    rows: int
    keys: tuple[str, ...]
    """Keys of the files in that version, relative to the output."""
    digest: str
    """Digest of the files' original keys: rollbacks rename files."""


@dataclass(frozen=True)
class Version:
    """A version of an output: its commits with live files, in the manifest's order."""

    output: str
    manifest: int
    commits: tuple[CommitFiles, ...]
    names: frozenset[str]
    """Names of all commits that it was made from, also of those whose files were replaced since."""

    @cached_property
    def by_name(self) -> Mapping[str, CommitFiles]:
        """The commits by name."""
        return {commit.name: commit for commit in self.commits}

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(commit.rows for commit in self.commits)


@dataclass(frozen=True)
class LoadedCommit:
    """A commit that a table has, as the table's database records it."""

    name: str
    manifest: int
    """Number of the manifest that it was loaded from."""
    rows: int
    digest: str
    load: str
    """Id of the load."""


def digest_of_keys(keys: Iterable[str]) -> str:
    """Return a digest of keys that does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def pending(
    version: Version,
    loaded: Sequence[LoadedCommit],
    mode: Mode,
    place: str,
    remedy: str | None = None,
) -> tuple[CommitFiles, ...]:
    """Return the commits that are to be loaded, in the manifest's order.

    Args:
        version: The version that is loaded.
        loaded: The commits of this output that the table has.
        mode: With `append`, a row of the output is a row of the table, so commits that the table
            has must still be whole. With `merge`, rows that left the output stay. With `replace`,
            all commits are pending unless the table has exactly this version.
        place: Where they are loaded, such as `table sales`, for messages.
        remedy: What to do if that is refused, where `replace` is not possible.

    Raises:
        ReplacedCommitsError: Commits that the table has were replaced or rolled back.
    """
    if mode == "replace":
        held = {(commit.name, commit.digest) for commit in loaded}
        current = {(commit.name, commit.digest) for commit in version.commits}
        return () if held == current else version.commits
    lost = [commit for commit in loaded if commit.name not in version.names]
    changed = [
        commit
        for commit in loaded
        if commit.name in version.names
        and (
            commit.name not in version.by_name
            or version.by_name[commit.name].digest != commit.digest
        )
    ]
    if lost:
        raise _refusal(version, lost, place, _why_lost(version, lost), remedy or _REPLACE)
    if changed and mode == "append":
        why = "later commits replaced files of it"
        raise _refusal(version, changed, place, why, remedy or _REPLACE + _OR_MERGE)
    held_names = {commit.name for commit in loaded}
    return tuple(commit for commit in version.commits if commit.name not in held_names)


def _why_lost(version: Version, lost: Sequence[LoadedCommit]) -> str:
    newest = max(commit.manifest for commit in lost)
    if newest > version.manifest:
        return f"it comes from manifest {newest}, which is newer"
    return "it was rolled back"


def _refusal(
    version: Version, commits: Sequence[LoadedCommit], place: str, why: str, remedy: str
) -> ReplacedCommitsError:
    rows = sum(commit.rows for commit in commits)
    more = f" (and {plural(len(commits) - 1, 'other commit')})" if len(commits) > 1 else ""
    return ReplacedCommitsError(
        f"new commits of {version.output} cannot be added to {place}: manifest "
        f"{version.manifest} no longer has all of the {plural(rows, 'row')} of commit "
        f"{commits[0].name}{more} that are in it, since {why}",
        hint=remedy,
    )


_REPLACE = "replace what the table has of this output in one transaction: --mode replace"
_OR_MERGE = ", or update its rows by a key: --mode merge --key COLUMN"
