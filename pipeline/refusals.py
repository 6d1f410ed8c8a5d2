"""Why a publish did not end: all of them can be mended, and each says by whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import ConflictError, StorageError
from pipeline.manifest import CommitEntry, run_of


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
            hint="run the job again: their chunks are mapped anew",
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
            hint=f"first finish it: chunkmap retry {run}",
        )
        self.run = run


def foreign_claim(output: str, error: UploadsVanishedError) -> ForeignClaimError:
    """A claim of another run whose uploads are gone can be finished by its own job only."""
    return ForeignClaimError(output, run_of(error.commit or ""), error)
