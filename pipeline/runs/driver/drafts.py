"""Draft the commits of a run: one for the whole run, or one per window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from partitioning import Plan, Windowing
from pipeline.config.job import Job
from pipeline.errors import UsageError
from pipeline.runs.driver.commit import CommitWindow, draft_commit
from pipeline.runs.driver.overlap import is_in_place
from pipeline.runs.driver.quarantine import left_out_of, rejected_of
from pipeline.runs.driver.schemas import check_schemas, columns_of_run, hive_types_of
from pipeline.runs.ledger.records import Progress, RunRecord
from pipeline.table.log import TableLog
from pipeline.table.manifest import Commit, CommitEntry, rule_of
from pipeline.table.replay import window_label


@dataclass(frozen=True, slots=True)
class WindowChunks:
    """The planned chunks of a window."""

    chunks: Sequence[str]
    """Ids of the chunks (see `partitioning.windows_of_plan`)."""
    inputs: str = ""
    """Digest of the window's objects and options (see `backfill.selection.digest_inputs`)."""
    files: Sequence[str] | None = None
    """Ids of its merged files; None: each chunk is a file."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one commit adds."""

    label: str | None
    """Label of the window; None: the whole run."""
    window: WindowChunks
    done: pl.DataFrame
    """Completions that are not published yet (schema COMPLETIONS)."""
    missing: Sequence[str]
    """Ids of the planned chunks that the commit lacks."""
    earlier: Sequence[Commit]
    """Published commits of the same chunks."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """Drafts the commits of what a run has completed and not yet published."""

    table_log: TableLog
    record: RunRecord
    job: Job
    plan: Plan
    progress: Progress
    done: pl.DataFrame
    """Completions whose files are published (schema COMPLETIONS)."""
    rule: Windowing | None
    """How the input is cut into windows; None: the run is one commit."""
    windows: Mapping[str, WindowChunks]

    def drafts(
        self,
        published: Sequence[CommitEntry],
        released: Sequence[str],
        *,
        without_failed: bool,
    ) -> list[Commit]:
        """Draft the commits of all complete windows, or of the complete run.

        Args:
            published: Commits of the output since the run's base, also of other runs.
            released: Names of commits of the run that a repair has released.
            without_failed: Draft also what lacks chunks.

        Raises:
            SchemaChangedError: a column is all null in some of the chunks, and not in others.
        """
        entries = [entry for entry in published if entry.run == self.record.run]
        by_window: dict[str | None, list[CommitEntry]] = defaultdict(list)
        for entry in entries:
            by_window[entry.window].append(entry)
        completed = set(self.progress.completions["chunk"].to_list())
        lacking: dict[str | None, list[str]] = {}
        for label, window in self._all().items():
            own = by_window[label]
            if own and not own[-1].missing:
                continue  # Published in full, as most are: its commits need not be read.
            missing = [chunk for chunk in window.chunks if chunk not in completed]
            if not missing or without_failed:
                lacking[label] = missing
        drafts = []
        for label, (window, done) in self._parts(lacking).items():
            own, missing = by_window[label], lacking[label]
            # A run may be published in part by windows and in part as a whole.
            related = entries if label is None else [*by_window[None], *own]
            earlier = self.table_log.load_all(related)
            if label is not None:
                earlier = [commit for commit in earlier if _has_part_of(commit, window)]
            already = {chunk for commit in earlier for chunk in commit.files["chunk"].to_list()}
            rest = done.filter(~pl.col("chunk").is_in(list(already))) if already else done
            if rest.is_empty() and (own or not already.isdisjoint(window.chunks)):
                continue
            part = _Part(label, window, rest, missing, earlier)
            drafts.append(self._draft(part, released))
        if self.rule is not None:
            self._refuse_open_columns(drafts)
        return drafts

    def _all(self) -> dict[str | None, WindowChunks]:
        """Return the planned chunks of each commit, by the label of its window."""
        if self.rule is None:
            return {None: WindowChunks(self.plan.chunk_ids)}
        return dict(self.windows.items())

    def _parts(
        self, labels: Collection[str | None]
    ) -> dict[str | None, tuple[WindowChunks, pl.DataFrame]]:
        """Return chunks and completions of some commits, by the label of their window."""
        chosen = {label: window for label, window in self._all().items() if label in labels}
        if self.rule is None:
            return {label: (window, self.done) for label, window in chosen.items()}
        pairs = [
            (file, label)
            for label, part in chosen.items()
            for file in (part.chunks if part.files is None else part.files)
        ]
        owner = pl.DataFrame(pairs, {"chunk": pl.String, "window": pl.String}, orient="row")
        joined = self.done.join(owner, on="chunk", how="inner", maintain_order="left")
        parts = joined.partition_by("window", as_dict=True, include_key=False)
        return {
            label: (window, parts.get((label,), self.done.head(0)))
            for label, window in chosen.items()
        }

    def _draft(self, part: _Part, released: Sequence[str]) -> Commit:
        label, done = part.label, part.done
        # One file of a reduce has the rows of all chunks, and merged files those of several.
        several = self.job.reduce is not None or self.job.output.merges
        of_chunks = self.progress.completions if several else done
        if several and label is not None:
            of_chunks = of_chunks.filter(pl.col("chunk").is_in(list(part.window.chunks)))
        # Objects that planning could not read count in the first commit.
        is_first = not any(commit.entry.window == label for commit in part.earlier)
        is_own = self._in_window(label) if is_first else lambda uri: False
        window = None
        if label is not None and self.rule is not None:
            window = CommitWindow(label, self.rule, part.window.inputs)
        return draft_commit(
            self.record,
            done,
            part.missing,
            part.earlier,
            self.job.output.keep_versions,
            table=self.job.output.table.format if self.job.output.table is not None else "",
            in_place=is_in_place(self.job),
            window=window,
            released=released,
            columns=columns_of_run(self.progress, done),
            hive_types=hive_types_of(self.job, self.progress),
            left_out=left_out_of(self.job, self.record, self.plan, of_chunks, is_own),
            rejected=rejected_of(self.job, self.record, of_chunks),
        )

    def _in_window(self, label: str | None) -> Callable[[str], bool]:
        if label is None or self.rule is None:
            return lambda uri: True
        return in_window(self.rule, label)

    def _refuse_open_columns(self, drafts: Sequence[Commit]) -> None:
        """Raise SchemaChangedError if a column is all null in some of these windows only."""
        chunks = {chunk for draft in drafts for chunk in draft.files["chunk"].to_list()}
        if self.job.output.merges:
            labels = {draft.entry.window for draft in drafts}
            chunks = {c for label, w in self.windows.items() if label in labels for c in w.chunks}
        done = self.progress.completions.filter(pl.col("chunk").is_in(list(chunks)))
        check_schemas(replace(self.progress, completions=done))


def _has_part_of(commit: Commit, window: WindowChunks) -> bool:
    """Whether a commit of the run is of this window, or has files of it, published as a whole."""
    files = window.chunks if window.files is None else window.files
    return commit.entry.window is not None or not set(files).isdisjoint(commit.files["chunk"])


def windowing_of(record: RunRecord, job: Job) -> Windowing:
    """Return the rule by which a run can be published by windows.

    Raises:
        UsageError: the job has no windows, or a mode in which they would replace each other.
    """
    if job.window is None:
        raise UsageError(
            f"the job of run {record.run} has no windows",
            hint="add their column and grain to the job: window: {column: ds, grain: day}",
        )
    if record.mode == "overwrite":
        raise UsageError(
            f"run {record.run} cannot be published by windows: in mode overwrite, windows would "
            "replace each other",
            hint="set output.mode to overwrite-partitions",
        )
    return job.window.windowing()


def in_window(rule: Windowing, *labels: str) -> Callable[[str], bool]:
    """Return a function that tells whether an object is in one of these windows."""
    return lambda uri: window_label(rule_of(rule), uri.rpartition("/")[0]) in labels
