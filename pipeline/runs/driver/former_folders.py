"""Outputs of earlier releases, which wrote partitions in another spelling: `month=01` as `month=1`.

A run that replaces partitions writes `month=01` and would leave the rows of `month=1` where they
are, so that each is there twice. Which of the two an output holds is told by the plans of its runs.
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
    """Refuse to replace partitions that an earlier release has published by other names.

    Args:
        table_log: Of the output.
        mode: The output's mode.
        plan: Of what is to be published.
        own: The runs that publish it: what they have published before is no other's.

    Raises:
        UsageError: the output holds such partitions.
    """
    if mode != "overwrite-partitions":
        return
    pairs = zip(respelled_folders_of(plan), folders_of(plan), strict=True)
    renamed = {former: own for former, own in pairs if former != own}
    # Hardly any plan has a value whose spelling is not the shortest: nothing is read then.
    found = next(_former(table_log, renamed, own), None) if renamed else None
    if found is not None:
        raise UsageError(
            f"{table_log.output} holds {found}, which an earlier release of chunkmap wrote for "
            f"the input's {renamed[found]}: it would stay beside {renamed[found]}, with the same "
            "rows",
            hint="publish to another output, or replace all of it once, by a run of the job with "
            "output.mode: overwrite",
        )


def _former(table_log: TableLog, renamed: Mapping[str, str], own: Collection[str]) -> Iterator[str]:
    """Yield the folders of an output that are spelled otherwise than in the input of their run."""
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
    """The folders that a run's input has; none if its plan is not there any more."""
    try:
        return frozenset(folders_of(Ledger(table_log.storage, table_log.output, run).plan()))
    except (StateError, ObjectMissingError, JobError):
        return frozenset()
