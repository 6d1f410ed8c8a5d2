"""Which windows a backfill does, and why it leaves the others alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from partitioning.windows import Window
from pipeline.runs.backfill.records import Reprocess
from pipeline.runs.transforms.fingerprint import scheme_of


@dataclass(frozen=True, slots=True)
class InputWindow:
    """What the input holds of a window."""

    objects: int
    bytes: int
    inputs: str
    """Digest of its objects' names, ETags and sizes."""


@dataclass(frozen=True, slots=True)
class OutputWindow:
    """What the output holds of a window: its newest commit."""

    run: str
    code: str
    """Fingerprint of the transform that made it; empty if it is not known."""
    inputs: str
    """Digest of the objects it was made from; empty if it is not known."""


@dataclass(frozen=True, slots=True)
class WindowDecision:
    """A window that was asked for."""

    window: Window
    found: InputWindow | None
    skipped: str | None
    """Why there is nothing to do; None if there is."""
    is_of_other_scheme: bool = False
    """Whether it is chosen only because its code was fingerprinted by another scheme."""

    @property
    def is_empty(self) -> bool:
        """Whether the input holds nothing of it."""
        return self.found is None


EMPTY = "the input has nothing of it"


@dataclass(frozen=True, slots=True)
class WindowSelector:
    """Decides what is to be done about each window."""

    found: Mapping[str, InputWindow]
    """By label, what the input holds."""
    held: Mapping[str, OutputWindow]
    """By label, what the output holds."""
    failed: frozenset[str]
    """Labels of windows that failed when they were last tried."""
    code: str
    """The transform's fingerprint now."""
    reprocess: Reprocess
    accept_scheme: bool = False
    """Whether code that was fingerprinted by another scheme counts as unchanged."""
    outdated: frozenset[str] = frozenset()
    """Runs that have read tables which were replaced since."""

    def choose(self, windows: Iterable[Window]) -> list[WindowDecision]:
        """What is to be done about the windows that were asked for."""
        return [self._choice(window) for window in windows]

    def _choice(self, window: Window) -> WindowDecision:
        skipped = self._why_not(window.label)
        unknown = skipped is None and self._is_of_other_scheme(window.label)
        return WindowDecision(window, self.found.get(window.label), skipped, unknown)

    def _is_of_other_scheme(self, label: str) -> bool:
        """Whether nothing tells a window's input and code from today's but the scheme."""
        found, held = self.found.get(label), self.held.get(label)
        if self.reprocess != "changed" or found is None or held is None or not held.code:
            return False
        return held.inputs == found.inputs and scheme_of(held.code) != scheme_of(self.code)

    def _why_not(self, label: str) -> str | None:
        found, held = self.found.get(label), self.held.get(label)
        if found is None:
            return EMPTY
        if self.reprocess == "failed":
            return None if label in self.failed else "it has not failed"
        if held is None or self.reprocess == "all":
            return None
        if self.reprocess == "missing":
            return f"done by run {held.run}"
        is_same_code = held.code == self.code or (
            self.accept_scheme and self._is_of_other_scheme(label)
        )
        if held.inputs == found.inputs and is_same_code and held.run not in self.outdated:
            return f"unchanged since run {held.run}"
        return None


def spread(count: int, of: int) -> list[int]:
    """Ranks of so many things, evenly spread over all of them, the first and the last included.

    >>> spread(3, 9)
    [0, 4, 8]
    """
    count = min(count, of)
    if count < 2:
        return [of // 2][:count] if of else []
    return [round(rank * (of - 1) / (count - 1)) for rank in range(count)]


def grouped(
    labels: Sequence[str], canary: Sequence[str], per_run: int, *, backwards: bool
) -> list[list[str]]:
    """Windows as runs, in the order in which they are begun: first the canary, if there is one.

    Args:
        labels: In the order of time.
        canary: Those that go first.
        per_run: Windows in a run.
        backwards: Newest first.
    """
    first = set(canary)
    ordered = list(reversed(labels)) if backwards else list(labels)
    sample = [label for label in ordered if label in first]
    rest = [label for label in ordered if label not in first]
    runs = [rest[start : start + per_run] for start in range(0, len(rest), per_run)]
    return [sample, *runs] if sample else runs
