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
from pipeline.table.log import Catalog
from pipeline.table.manifest import folders, run_of


def refuse_former_folders(catalog: Catalog, mode: str, plan: Plan, own: Collection[str]) -> None:
    """Refuse to replace partitions that an earlier release has published by other names.

    Args:
        catalog: Of the output.
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
    found = next(_former(catalog, renamed, own), None) if renamed else None
    if found is not None:
        raise UsageError(
            f"{catalog.output} holds {found}, which an earlier release of chunkmap has written for "
            f"the input's {renamed[found]}: it would stay beside {renamed[found]}, with the same "
            "rows",
            hint="publish to another output, or replace all of it once, by a run of the job with "
            "output.mode: overwrite",
        )


def _former(catalog: Catalog, renamed: Mapping[str, str], own: Collection[str]) -> Iterator[str]:
    """Yield the folders of an output that are spelled otherwise than in the input of their run."""
    files = catalog.snapshot(catalog.manifest())
    spelled = dict.fromkeys(own, frozenset(renamed))
    for folder, commit in zip(folders(files), files["commit"].to_list(), strict=True):
        if f"{folder}/" not in renamed:
            continue
        run = run_of(commit)
        if run not in spelled:
            spelled[run] = _folders_of_run(catalog, run)
        if f"{folder}/" not in spelled[run]:
            yield f"{folder}/"


def _folders_of_run(catalog: Catalog, run: str) -> frozenset[str]:
    """The folders that a run's input has; none if its plan is not there any more."""
    try:
        return frozenset(folders_of(Ledger(catalog.storage, catalog.output, run).plan()))
    except (StateError, ObjectMissingError, JobError):
        return frozenset()
