"""Detect outputs of earlier releases that spell partitions differently: `month=1` for `month=01`.

A run that replaces partitions writes `month=01` and would leave `month=1` in place, so that all its
rows would be in the output twice. The plans of an output's runs show which spelling it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from partitioning import Plan
from pipeline.errors import JobError, ObjectMissingError, StateError, UsageError
from pipeline.runs.ledger.keys import folders_of, respelled_folders_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.table.log import TableLog
from pipeline.table.manifest import folders, run_of


def refuse_former_folders(table_log: TableLog, mode: str, plan: Plan, own: Collection[str]) -> None:
    """Refuse to replace partitions that an earlier release published under other names.

    Args:
        table_log: Log of the output.
        mode: Mode of the output.
        plan: Plan of what is to be published.
        own: Runs that publish it; what they have published already is not checked.

    Raises:
        UsageError: the output has such partitions.
    """
    if mode != "overwrite-partitions":
        return
    pairs = zip(respelled_folders_of(plan), folders_of(plan), strict=True)
    renamed = {former: own for former, own in pairs if former != own}
    # Usually all values have their shortest spelling; then nothing is read.
    folder = next(_former_folders(table_log, renamed, own), None) if renamed else None
    if folder is not None:
        raise UsageError(
            f"{table_log.output} contains {folder}, which an earlier release of chunkmap wrote for "
            f"the input's {renamed[folder]}; the output would have these rows twice, also in "
            f"{renamed[folder]}",
            hint="publish to another output, or run the job once with output.mode: overwrite",
        )


def _former_folders(
    table_log: TableLog, renamed: Mapping[str, str], own: Collection[str]
) -> Iterator[str]:
    """Yield the folders of an output that are spelled differently than in their run's input."""
    files = table_log.snapshot(table_log.manifest())
    spelled = dict.fromkeys(own, frozenset(renamed))
    for folder, commit in zip(folders(files), files["commit"].to_list(), strict=True):
        if f"{folder}/" not in renamed:
            continue
        run = run_of(commit)
        if run not in spelled:
            spelled[run] = _folders_of_run(table_log, run)
        if f"{folder}/" not in spelled[run]:
            yield f"{folder}/"


def _folders_of_run(table_log: TableLog, run: str) -> frozenset[str]:
    """Return the folders of a run's input; none if its plan no longer exists."""
    try:
        return frozenset(folders_of(Ledger(table_log.storage, table_log.output, run).plan()))
    except (StateError, ObjectMissingError, JobError):
        return frozenset()
