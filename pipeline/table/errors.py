"""Errors that stop a publish, and how each is resolved.

StateError
├── DamagedStateError        restore the object, or chunkmap repair
├── HeadBehindError          chunkmap repair
├── ManifestConflictError    chunkmap repair
└── FilesMissingError        restore the files, or go back to a kept version
StorageError
└── UploadsVanishedError     map the chunks again
ConflictError
├── CommitsConflictError     look at the output, then run the job with --replan
└── ForeignClaimError        finish the other run, or chunkmap repair
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import ConflictError, StateError, StorageError
from pipeline.table.manifest import CommitEntry, run_of


class DamagedStateError(StateError):
    """An object of an output's state is empty, truncated, or not what is stored there.

    Attributes:
        etag: Of the damaged version, if it was read.
    """

    def __init__(self, uri: str, why: object, *, etag: str | None = None) -> None:
        super().__init__(uri, f"it is damaged: {' '.join(str(why).split())}", damage_hint(uri))
        self.etag = etag


class HeadBehindError(StateError):
    """HEAD.json is gone or older than the manifests beside it: nothing may be changed by it.

    Attributes:
        current: The manifest that it points to; None if there is no HEAD.json.
        newest: The newest manifest that is stored.
    """

    def __init__(self, uri: str, current: int | None, newest: int) -> None:
        said = "it does not exist" if current is None else f"it points to manifest {current}"
        super().__init__(
            uri,
            f"{said}, though manifest {newest} is stored: it was deleted, or restored from an old "
            "copy",
            hint=f"see what would be done: chunkmap repair {_output_of(uri)}",
        )
        self.current, self.newest = current, newest


class ManifestConflictError(StateError):
    """A manifest of the next number is stored already, and says something else."""

    def __init__(self, uri: str) -> None:
        super().__init__(
            uri,
            "it exists already, and names other commits than the publish under way",
            hint=f"see what would be done: chunkmap repair {_output_of(uri)}",
        )


class FilesMissingError(StateError):
    """Files that a manifest names are neither in the output nor kept beside it.

    Attributes:
        keys: Of the files, relative to the output.
    """

    def __init__(self, output: str, manifest: int, keys: Sequence[str], files: int) -> None:
        super().__init__(
            output,
            f"{len(keys):,} of the {files:,} files of its manifest {manifest} do not exist, for "
            f"example {keys[0]}",
            hint="restore them (a bucket with versions still has them), or go back to a version "
            f"that is kept: chunkmap rollback {output}; chunkmap verify {output} lists them",
        )
        self.keys = tuple(keys)


def damage_hint(uri: str) -> str:
    """What to do about a damaged object of an output's state."""
    return (
        "restore it from a version of the bucket or a backup; see what else can be done: "
        f"chunkmap repair {_output_of(uri)}"
    )


def refuse_newer(uri: str, version: int, known: int) -> None:
    """Refuse an object of a format that is newer than this release knows.

    Raises:
        StateError: it is.
    """
    if version > known:
        raise StateError(
            uri,
            f"it has format {version}; this chunkmap knows {known} and older",
            hint="use the release of chunkmap that wrote it, or a newer one",
        )


def _output_of(uri: str) -> str:
    """The output whose state an object belongs to."""
    return uri.partition(".chunkmap/")[0] + "/"


class UploadsVanishedError(StorageError):
    """Staged outputs are gone (a lifecycle rule, an emptied server); their chunks are left again.

    Attributes:
        attempts: Of the chunks' completions.
        commits: Names of the frozen commits that name them, once they are claimed.
        commit: The first of these, or None.
    """

    def __init__(
        self, attempts: list[str], lost: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Say so.

        Args:
            attempts: Of the chunks' completions.
            lost: Ids of the chunks, by the name of the frozen commit that names them.
        """
        self._lost = {name: tuple(chunks) for name, chunks in (lost or {}).items()}
        self.commits = tuple(self._lost)
        self.commit = self.commits[0] if self._lost else None
        more = f" and {len(self.commits) - 1} more" if len(self.commits) > 1 else ""
        claimed = f" (commit {self.commit}{more} is claimed and waits for them)"
        super().__init__(
            f"{len(attempts)} staged outputs have vanished before they were published"
            + (claimed if self._lost else ""),
            hint="run the job again: their chunks are mapped again",
        )
        self.attempts = attempts

    def chunks_of(self, run: str) -> set[str]:
        """Ids of the chunks that claimed commits of this run wait for, whatever their windows."""
        return {chunk for name, own in self._lost.items() if run_of(name) == run for chunk in own}

    def waits_for(self, run: str) -> bool:
        """Whether this run can mend it: nothing is claimed yet, or something of its own is."""
        return not self.commits or any(run_of(name) == run for name in self.commits)


class CommitsConflictError(ConflictError):
    """Some commits replace what another run has published since theirs began.

    Attributes:
        commits: Their names; the others could go on without them.
        windows: Labels of their windows, where they are of windows.
    """

    def __init__(self, said: str, entries: Sequence[CommitEntry]) -> None:
        super().__init__(
            said,
            hint="look at the output (chunkmap history), then run the job again with --replan",
        )
        self.commits = tuple(entry.name for entry in entries)
        self.windows = tuple(entry.window for entry in entries if entry.window is not None)


class ForeignClaimError(ConflictError):
    """Another run has claimed the output, and waits for uploads that only it can map again.

    Attributes:
        run: That run.
    """

    def __init__(self, output: str, run: str, problem: UploadsVanishedError) -> None:
        super().__init__(
            f"run {run} has claimed {output}, and {problem}",
            hint=f"finish it first: chunkmap retry {run}; or give up what it claimed: "
            f"chunkmap repair {output}",
        )
        self.run = run


def foreign_claim(output: str, error: UploadsVanishedError) -> ForeignClaimError:
    """A claim of another run whose uploads are gone can be finished by its own job only."""
    return ForeignClaimError(output, run_of(error.commit or ""), error)
