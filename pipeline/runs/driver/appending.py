"""Refuse plans of what is new in an input where that would repeat rows of the output, or lose them.

A job that appends reads only what is new in its input. An object that was replaced, or removed and
put back, looks new too, but the output holds the rows of its earlier version. And a job that
overwrites and reads only what is new (`input.changed_only`) would drop the rows of all else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import polars as pl

from partitioning import Plan
from partitioning.model import PARTITION_PREFIX, Status
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.errors import InputError
from pipeline.runs.ledger.ledger import Ledger
from pipeline.table.log import TableLog
from pipeline.table.manifest import Manifest

SHOWN = 5
"""Objects that an error names; of the rest it says how many they are."""


def refuse_appending_again(
    table_log: TableLog, manifest: Manifest, earlier: Iterable[Ledger], plan: Plan
) -> None:
    """Refuse a plan with objects whose rows an output holds already.

    Args:
        table_log: Of the output.
        manifest: What the output holds.
        earlier: Published runs of the same job.
        plan: What is to be appended.

    Raises:
        InputError: naming these objects and the way on.
    """
    runs = {entry.run for entry in manifest.commits if entry.adds_files}
    ledgers = [ledger for ledger in earlier if ledger.run in runs]
    planned = _read_objects(plan)
    held: dict[str, str] = {}
    for ledger, known in zip(
        ledgers, map_concurrently(lambda one: one.plan(), ledgers), strict=True
    ):
        before = planned & _read_objects(known)
        if before:
            appended = _held_objects(table_log, manifest, ledger, before)
            held |= dict.fromkeys(appended, ledger.run)
    if held:
        raise _refusal(table_log.output, held)


def refuse_losing_rows(job: Job, plan: Plan) -> None:
    """Refuse to replace the rows of unchanged objects by those of changed ones.

    Raises:
        InputError: the job overwrites rows of objects that the plan leaves out as unchanged.
    """
    table = plan.table("objects")
    status = table["status"].to_pylist()
    if job.output.mode not in ("overwrite", "overwrite-partitions") or not len(plan):
        return
    parts = [_NO_PARTITION] * len(status)
    names = [name for name in table.column_names if name.startswith(PARTITION_PREFIX)]
    if job.output.mode == "overwrite-partitions" and names:
        parts = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    replaced = {part for part, one in zip(parts, status, strict=True) if one == Status.PLANNED}
    lost = [
        uri
        for uri, part, one in zip(table["uri"].to_pylist(), parts, status, strict=True)
        if one == Status.UNCHANGED and part in replaced
    ]
    if lost:
        raise InputError(
            f"with input.changed_only, mode {job.output.mode} would drop the rows of {len(lost):,} "
            f"unchanged objects of the input, such as {lost[0]}",
            hint="leave changed_only out, so that all that is replaced is mapped again"
            + ("" if job.window is None else "; or: chunkmap backfill create --reprocess changed"),
        )


_NO_PARTITION: tuple[object, ...] = ()


def _read_objects(plan: Plan) -> set[str]:
    """The objects that a plan's chunks may have rows of."""
    table = plan.table("objects").select(["uri", "status"]).to_pydict()
    pairs = zip(table["uri"], table["status"], strict=True)
    return {uri for uri, status in pairs if status == Status.PLANNED}


def _held_objects(
    table_log: TableLog, manifest: Manifest, ledger: Ledger, uris: Collection[str]
) -> set[str]:
    """Those of some objects that are in chunks of a run whose files a manifest has."""
    if ledger.job().reduce is not None:
        return set(uris)  # One file has the rows of all of them.
    files = table_log.snapshot(manifest)
    ids = set(files["chunk"].to_list())
    indices = [index for index, chunk in enumerate(ledger.plan().chunk_ids) if chunk in ids]
    chunks = ledger.plan().chunks(indices)
    found = {(p.uri, chunk.id) for chunk in chunks for p in chunk.fragments if p.uri in uris}
    return {uri for uri, _ in found - _left_out(ledger, files, uris)} if found else set()


def _left_out(ledger: Ledger, files: pl.DataFrame, uris: Collection[str]) -> set[tuple[str, str]]:
    """Objects that could not be read, with the chunks of some files that go without them."""
    if ledger.job().input.on_bad_object == "fail":
        return set()
    progress = ledger.read()
    known = pl.concat([progress.completions, progress.duplicates])
    made = known.join(files.select("attempt"), on="attempt", how="semi")
    rows = made.select("chunk", "left_out").iter_rows()
    pairs = {(one.partition("\t")[0], chunk) for chunk, left_out in rows for one in left_out}
    return {(uri, chunk) for uri, chunk in pairs if uri in uris}


def _refusal(output: str, held: dict[str, str]) -> InputError:
    names = sorted(held)
    shown = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
    runs = sorted(set(held.values()))
    by = f"run {runs[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    one = len(names) == 1
    return InputError(
        f"{len(names):,} {'object' if one else 'objects'} of the input {'was' if one else 'were'} "
        f"replaced or put back since {by} appended {'its' if one else 'their'} rows to {output}; "
        f"appending again would bring rows twice: {shown}",
        hint="replace what the output holds: set output.mode to overwrite, or to "
        "overwrite-partitions where input and output are partitioned alike; or put the earlier "
        "versions back",
    )
