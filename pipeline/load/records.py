"""What a load is asked, how far it is, and what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.load.plan import CommitFiles


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is."""

    commits: int
    """Commits that this load has committed."""
    of_commits: int
    """Commits that were pending when it began."""
    rows: int
    """Rows that this load has sent."""
    of_rows: int
    seconds: float


Listener = Callable[[LoadProgress], None]


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """What a load did."""

    output: str
    manifest: int
    destination: str
    table: str
    """Table of a database; empty for other destinations."""
    mode: str
    commits: tuple[str, ...]
    """Commits that this load brought."""
    rows: int
    """Rows that this load brought."""
    held: int
    """Commits that the table had already."""
    created: bool
    """Whether this load created the table."""
    added: tuple[str, ...]
    """Columns that this load added to the table."""
    seconds: float
    dry_run: bool = False
    requests: int = 0
    """Requests that an endpoint has acknowledged."""


class Load(Protocol):
    """A load of one version of an output into one destination."""

    def run(self) -> LoadSummary:
        """Load what the destination lacks. Raises errors of `pipeline.load.errors`."""

    def preview(self) -> LoadSummary:
        """Return what `run` would do; writes nothing."""


@dataclass
class LoadMeter:
    """Counts what a load has done, and tells its listener."""

    listen: Listener
    done: dict[str, int] = field(default_factory=dict)
    """Rows of the commits that this load has brought, by name."""
    sent: int = 0
    """Rows that this load has sent."""
    _todo: tuple[int, int] = (0, 0)
    _started: float = field(default_factory=time.monotonic)

    def expect(self, commits: Sequence[CommitFiles], *, without: int = 0) -> None:
        """Note what is pending; `without` rows of it were sent by an earlier load."""
        self._todo = len(commits), sum(commit.rows for commit in commits) - without

    def count(self, rows: int) -> None:
        """Count rows that were sent."""
        self.sent += rows
        self.tell()

    def tell(self) -> None:
        """Tell the listener."""
        commits, rows = self._todo
        sent = min(self.sent, rows)
        self.listen(LoadProgress(len(self.done), commits, sent, rows, self.seconds))

    @property
    def seconds(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._started
