"""Choose how many chunks are read ahead, by the share of time that workers wait for storage."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_CHUNKS = 16
"""Maximum number of chunks read ahead of the one in computation."""
MIN_WAIT_SECONDS = 0.005
"""Mean wait for a chunk that is too short to matter."""
LARGE_SHARE, SMALL_SHARE = 0.2, 0.02
"""Shares of time spent waiting from which on more, or up to which fewer, chunks are read ahead."""


@dataclass(slots=True)
class ReadAhead:
    """Number of chunks to read ahead: one, and more while storage is slow.

    The threads of a worker share it for each run: what one learns about storage, all use. They do
    not need to see each other's last changes.
    """

    chunks: int = 1
    columns: set[str] = field(default_factory=set)
    """Columns that the last chunk has read; they are prefetched for the next ones."""
    _counted: int = 0
    _waited: float = 0.0
    _computed: float = 0.0

    def add(self, waited: float, computed: float) -> None:
        """Count a chunk that was read ahead, and adapt after some.

        Args:
            waited: Seconds that were waited for its bytes.
            computed: Seconds in which the chunk before it was computed.
        """
        self._counted += 1
        self._waited += waited
        self._computed += computed
        # Chunks that are read at the same time arrive together: only the first is waited for.
        if self._counted < 2 * (self.chunks + 1):
            return
        share = self._waited / max(self._waited + self._computed, 1e-9)
        is_short = self._waited < MIN_WAIT_SECONDS * self._counted
        if share > LARGE_SHARE and not is_short:
            self.chunks = min(2 * self.chunks, MAX_CHUNKS)
        elif share < SMALL_SHARE or is_short:
            self.chunks = max(1, self.chunks - 1)
        self._counted, self._waited, self._computed = 0, 0.0, 0.0
