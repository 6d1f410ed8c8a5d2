"""Errors that stop a publish, and how each is resolved.

StateError
├── DamagedStateError        restore the object, or chunkmap repair
├── HeadBehindError          chunkmap repair
├── ManifestConflictError    chunkmap repair
├── FilesMissingError        restore the files, or roll back to a kept version
├── DamagedTableError        restore the Delta log
└── TableChangedError        restore the Delta table's version, or choose another output
StorageError
└── UploadsVanishedError     map the chunks again
ConflictError
├── CommitsConflictError     check the output, then run the job with --replan
└── ForeignClaimError        finish the other run, or chunkmap repair
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import (
    ChecksFailedError,
    ConflictError,
    StateError,
    StorageError,
    UsageError,
    backup_of,
)
from pipeline.report.humanize import plural
from pipeline.table.manifest import CommitEntry, run_of


class DamagedStateError(StateError):
    """An object of an output's state is empty, truncated, or has unexpected content.

    Attributes:
        etag: ETag of the damaged version, if it was read.
    """

    def __init__(self, uri: str, why: object, *, etag: str | None = None) -> None:
        problem = " ".join(str(why).removeprefix(f"{uri} cannot be used: ").split())
        super().__init__(uri, f"it is damaged: {problem}", damage_hint(uri))
        self.etag = etag


class HeadBehindError(StateError):
    """HEAD.json is missing or older than the stored manifests: it must not be published on.

    Attributes:
        current: Number of the manifest that it points to; None if there is no HEAD.json.
        newest: Number of the newest stored manifest.
    """

    def __init__(self, uri: str, current: int | None, newest: int) -> None:
        state = "it does not exist" if current is None else f"it points to manifest {current}"
        super().__init__(
            uri,
            f"{state}, but manifest {newest} is stored: it was deleted, or restored from an old "
            "copy",
            hint=f"show the fix: chunkmap repair {_output_of(uri)}",
        )
        self.current, self.newest = current, newest


class ManifestConflictError(StateError):
    """The next manifest is already stored, with other content."""

    def __init__(self, uri: str) -> None:
        super().__init__(
            uri,
            "it already exists, and names other commits than the current publish",
            hint=f"show the fix: chunkmap repair {_output_of(uri)}",
        )


class FilesMissingError(StateError):
    """Files of a manifest are neither in the output nor kept next to it.

    Attributes:
        keys: Keys of the files, relative to the output.
    """

    def __init__(self, output: str, manifest: int, keys: Sequence[str], files: int) -> None:
        super().__init__(
            output,
            f"{len(keys):,} of {plural(files, 'file')} of its manifest {manifest} no longer exist, "
            f"for example {keys[0]}",
            hint=f"restore them from {backup_of(output)}, or roll back to a kept "
            f"version: chunkmap rollback {output}; list them: chunkmap verify {output}",
        )
        self.keys = tuple(keys)


class DamagedTableError(StateError):
    """The log of a Delta table cannot be read, or needs a feature that is not supported."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(
            uri,
            f"the Delta log is damaged, or not supported: {why}",
            hint=f"restore it from {backup_of(uri)}",
        )


class TableChangedError(StateError):
    """Another writer has changed the files of a table that chunkmap publishes."""


def damage_hint(uri: str, output: str = "") -> str:
    """Return the hint for a damaged object of an output's state, or of another's that it needs."""
    output = output or _output_of(uri)
    return f"restore it from {backup_of(uri)}; show other fixes: chunkmap repair {output}"


def refuse_newer(uri: str, version: int, known: int) -> None:
    """Refuse an object with a newer format than this release supports.

    Raises:
        StateError: The format is newer.
    """
    if version > known:
        raise StateError(
            uri,
            f"it has format {version}; this chunkmap supports {known} and older",
            hint="use the release of chunkmap that wrote it, or a newer release",
        )


def _output_of(uri: str) -> str:
    """Return the output whose state an object belongs to."""
    return uri.partition(".chunkmap/")[0] + "/"


class UploadsVanishedError(StorageError):
    """Staged outputs no longer exist (a lifecycle rule, or the bucket was emptied).

    Their chunks must be mapped again.

    Attributes:
        attempts: Attempts of the lost completions.
        commits: Names of the claimed commits that need them; empty if nothing is claimed.
        commit: The first of these names, or None.
    """

    def __init__(
        self, attempts: list[str], lost: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Create the error.

        Args:
            attempts: Attempts of the lost completions.
            lost: Ids of the chunks, by the name of the claimed commit that needs them.
        """
        self._lost = {name: tuple(chunks) for name, chunks in (lost or {}).items()}
        self.commits = tuple(self._lost)
        self.commit = self.commits[0] if self._lost else None
        more = f" and {len(self.commits) - 1} more" if len(self.commits) > 1 else ""
        claimed = f" (commit {self.commit}{more} is claimed and waits for them)"
        super().__init__(
            f"{plural(len(attempts), 'staged output')} vanished before they were published"
            + (claimed if self._lost else ""),
            hint="rerun the job: it maps their chunks again",
        )
        self.attempts = attempts

    def chunks_of(self, run: str) -> set[str]:
        """Return the ids of the lost chunks of a run's claimed commits."""
        lost = [chunks for name, chunks in self._lost.items() if run_of(name) == run]
        return {chunk for chunks in lost for chunk in chunks}

    def waits_for(self, run: str) -> bool:
        """Whether this run can fix it: nothing is claimed yet, or one of its own commits is."""
        return not self.commits or any(run_of(name) == run for name in self.commits)


class CommitsConflictError(ConflictError):
    """Some commits would replace files that another run has published since their run began.

    Attributes:
        commits: Names of these commits; other commits can be published without them.
        windows: Labels of the windows of these commits, if any.
        refusal: What checks say of other windows, which were not published either.
    """

    refusal: ChecksFailedError | None = None

    def __init__(self, message: str, entries: Sequence[CommitEntry]) -> None:
        super().__init__(
            message,
            hint="check the output (chunkmap history), then rerun the job with --replan",
        )
        self.commits = tuple(entry.name for entry in entries)
        self.windows = tuple(entry.window for entry in entries if entry.window is not None)


class ForeignClaimError(ConflictError):
    """Another run has claimed the output, and needs uploads that only it can map again.

    Attributes:
        run: Id of that run.
    """

    def __init__(self, output: str, run: str, problem: UploadsVanishedError) -> None:
        super().__init__(
            f"run {run} has claimed {output}, and {problem}",
            hint=f"finish that run first: chunkmap retry {run}; or give up its claim: "
            f"chunkmap repair {output}",
        )
        self.run = run


def foreign_claim(output: str, error: UploadsVanishedError) -> ForeignClaimError:
    """Return the error for a claim of another run, which only that run's job can finish."""
    return ForeignClaimError(output, run_of(error.commit or ""), error)


def changed_files(output: str, state: str, keys: Sequence[str]) -> ConflictError:
    """Return the error for adopted files that have another version than when they were adopted.

    Args:
        output: URI of the output.
        state: URI of its state.
        keys: Keys of these files, relative to the output.
    """
    return ConflictError(
        f"{plural(len(keys), 'adopted file')} of {output} {'was' if len(keys) == 1 else 'were'} "
        f"changed or deleted by others since, for example {keys[0]}",
        hint=f"restore {'it' if len(keys) == 1 else 'them'} from {backup_of(output)}; or start "
        f"over, which loses the earlier versions: delete {state}, then chunkmap adopt {output}",
    )


def plain_run(output: str, who: str) -> UsageError:
    """Return the error for a run or job without `output.table` at an output that is a table."""
    return UsageError(
        f"{output} is a Delta table, and {who} would publish plain files to it",
        hint="set output.table to {format: delta} in the job, or choose another output",
    )
