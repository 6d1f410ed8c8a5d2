"""Decide which windows a backfill does, and why it skips the others. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from partitioning.windows import Window
from pipeline.config.job import Job, keys_at_default
from pipeline.report.humanize import plural
from pipeline.runs.backfill.records import Reprocess
from pipeline.runs.transforms.fingerprint import scheme_of


@dataclass(frozen=True, slots=True)
class InputWindow:
    """The objects of a window in the input."""

    objects: int
    bytes: int
    inputs: str
    """Digest of the objects and of the job's options (see `digest_inputs`)."""


_INPUT_KEYS = ("filter", "columns", "object_column", "types", "int96", "hive_types", "schema_")
"""Keys of a job's input, next to those that select objects, that change its rows."""
_OUTPUT_KEYS = ("keep", "rename")
"""Keys of a job's output that change its rows."""


def digest_inputs(job: Job, objects: str) -> str:
    """Return the digest of what a window is made from, besides the code.

    It is stored with the window's commit, and another one means that the window has changed. With
    all options at their defaults it is the digest of the objects, as releases have stored it.

    Args:
        job: The job.
        objects: Digest of the window's objects (see `partitioning.inputs_digest`).
    """
    options: dict[str, dict[str, Any]] = {
        "input": _changed_keys(job.input, _INPUT_KEYS),
        "output": _changed_keys(job.output, _OUTPUT_KEYS),
    }
    rows = job.checks.rows
    if rows is not None and rows.severity == "quarantine":
        options["rows"] = {"schema": rows.schema_}
    if not any(options.values()):
        return objects
    text = json.dumps([objects, options], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _changed_keys(part: BaseModel, names: Sequence[str]) -> dict[str, Any]:
    """Return those of some keys that are not at their defaults, as JSON."""
    return part.model_dump(mode="json", include=set(names) - keys_at_default(part, *names))


@dataclass(frozen=True, slots=True)
class OutputWindow:
    """The newest commit of a window in the output."""

    run: str
    code: str
    """Fingerprint of the transform that made it; empty if unknown."""
    inputs: str
    """Digest of the objects and options it was made from; empty if unknown."""
    missing: int = 0
    """Number of chunks that its run lacks, if that was published as a whole."""

    @property
    def source(self) -> str:
        """Its run, and what that lacks, for messages."""
        if not self.missing:
            return f"run {self.run}"
        return f"run {self.run} without {plural(self.missing, 'chunk')}: chunkmap retry {self.run}"


@dataclass(frozen=True, slots=True)
class WindowDecision:
    """Decision about a requested window."""

    window: Window
    input: InputWindow | None
    """Objects of the window in the input; None if there are none."""
    skipped: str | None
    """Reason why there is nothing to do; None if there is."""
    is_of_other_scheme: bool = False
    """Whether it is chosen only because its code was fingerprinted by another scheme."""
    is_published: bool = False
    """Whether the output has rows of it."""

    @property
    def is_empty(self) -> bool:
        """Whether the input has nothing of the window."""
        return self.input is None


EMPTY = "the input has nothing of it"


@dataclass(frozen=True, slots=True)
class WindowSelector:
    """Decides what to do about each window."""

    inputs: Mapping[str, InputWindow]
    """Windows of the input, by label."""
    outputs: Mapping[str, OutputWindow]
    """Windows of the output, by label."""
    failed: frozenset[str]
    """Labels of windows whose last attempt failed."""
    code: str
    """Current fingerprint of the transform."""
    reprocess: Reprocess
    accept_scheme: bool = False
    """Whether code that was fingerprinted by another scheme counts as unchanged."""
    outdated: frozenset[str] = frozenset()
    """Ids of runs that read tables which were replaced since."""
    appends: bool = False
    """Whether doing a window that the output has would duplicate its rows."""

    def choose(self, windows: Iterable[Window]) -> list[WindowDecision]:
        """Decide what to do about each of the requested windows."""
        return [self._decide(window) for window in windows]

    def _decide(self, window: Window) -> WindowDecision:
        skipped = self._skip_reason(window.label)
        unknown = skipped is None and self._is_of_other_scheme(window.label)
        source, has_output = self.inputs.get(window.label), window.label in self.outputs
        return WindowDecision(window, source, skipped, unknown, has_output)

    def _is_of_other_scheme(self, label: str) -> bool:
        """Whether a window is unchanged except for the scheme of its code's fingerprint."""
        source, output = self.inputs.get(label), self.outputs.get(label)
        if self.reprocess != "changed" or source is None or output is None or not output.code:
            return False
        return output.inputs == source.inputs and scheme_of(output.code) != scheme_of(self.code)

    def _skip_reason(self, label: str) -> str | None:
        source, output = self.inputs.get(label), self.outputs.get(label)
        if source is None:
            return EMPTY
        if self.reprocess == "failed" and label not in self.failed:
            return "it has not failed"
        if output is None or self.reprocess == "all":
            return None
        if self.reprocess == "failed" and not self.appends:
            return None
        if self.reprocess in ("missing", "failed"):
            return f"done by {output.source}"
        is_same_code = output.code == self.code or (
            self.accept_scheme and self._is_of_other_scheme(label)
        )
        if output.inputs == source.inputs and is_same_code and output.run not in self.outdated:
            return f"unchanged since run {output.run}"
        return None


def spread(count: int, of: int) -> list[int]:
    """Choose `count` ranks of `of`, evenly spread, with the first and the last.

    >>> spread(3, 9)
    [0, 4, 8]
    """
    count = min(count, of)
    if count < 2:
        return [of // 2][:count] if of else []
    return [round(rank * (of - 1) / (count - 1)) for rank in range(count)]


def group_into_runs(
    sizes: Mapping[str, int], canary: Sequence[str], target: int, *, backwards: bool
) -> list[list[str]]:
    """Group windows into runs, in the order in which these begin, the canary first.

    Args:
        sizes: Size of each window, by its label, in the order of time.
        canary: Labels of the windows that go first.
        target: Size at which a run takes no further window.
        backwards: Begin with the newest window.
    """
    first = set(canary)
    ordered = list(sizes)[::-1] if backwards else list(sizes)
    sample = [label for label in ordered if label in first]
    runs: list[list[str]] = []
    size = target
    for label in ordered:
        if label in first:
            continue
        if size >= target:
            runs.append([])
            size = 0
        runs[-1].append(label)
        size += sizes[label]
    return [sample, *runs] if sample else runs
