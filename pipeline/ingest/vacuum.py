"""Expire the state of ingests that are published: their pages, and what is noted about files."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from partitioning import ObjectInfo
from pipeline.concurrency import map_concurrently
from pipeline.ingest.store import IngestRecord, IngestStore, as_output, find_ingests
from pipeline.storage import Storage
from pipeline.table.claims import finish_open_claim
from pipeline.table.log import TableLog

EXPIRED = ("pages/", "downloads/", "files/", "readings/")
"""Folders of a published ingest that expire; its record, its plan with the schema, and its
watermark stay."""


@dataclass(frozen=True, slots=True)
class IngestStates:
    """The ingests of an output."""

    finished: Mapping[str, bool]
    """Whether each is published or given up, by id; damaged ones count as not."""

    def matching(self, letters: str) -> str | None:
        """Return the only ingest whose id begins with some letters; None if there is none."""
        found = [ingest for ingest in self.finished if ingest.startswith(letters)]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class ExpiredIngests:
    """What was expired of ingests, or would be."""

    ingests: tuple[str, ...]
    objects: int
    bytes: int
    unfinished: tuple[str, ...]
    """Ids of old ingests that are not published."""


def discard_ingests(storage: Storage, output: str, ingests: Iterable[str]) -> None:
    """Give up ingests that are not published: their commands begin others.

    What a driver that died had begun to publish is published first: nothing of it can be undone.
    """
    known = ingest_states(storage, output).finished
    wanted = [ingest for ingest in ingests if ingest in known]
    if not wanted:
        return
    finish_open_claim(TableLog(storage, output))
    published = published_ingests(storage, output)
    for ingest in wanted:
        if ingest not in published:
            IngestStore(storage, as_output(output), ingest).note_discarded()


def ingest_states(storage: Storage, output: str) -> IngestStates:
    """Tell the ingests of an output that are published from the others."""
    found = find_ingests(storage, output)
    published = published_ingests(storage, output)
    states = {
        record.ingest: record.ingest in published or _is_discarded(storage, output, record)
        for record in found.records
    }
    return IngestStates(states | dict.fromkeys(found.damaged, False))


def published_ingests(storage: Storage, output: str) -> frozenset[str]:
    """Return the ids of all runs and ingests in the history of an output."""
    return frozenset(entry.run for entry in TableLog(storage, output).entries())


def expire_ingests(
    storage: Storage,
    output: str,
    *,
    older_than: float,
    dry_run: bool = False,
    now: float | None = None,
) -> ExpiredIngests:
    """Delete the pages of ingests that are published or given up, and notes about their files.

    Args:
        storage: Where the output is.
        output: URI of the output prefix.
        older_than: Minimum age of an ingest in seconds.
        dry_run: Only count what would be deleted.
        now: Unix seconds that ages are counted to; default now.
    """
    latest = (time.time() if now is None else now) - older_than
    old = [record for record in find_ingests(storage, output).records if record.created < latest]
    published = published_ingests(storage, output) if old else frozenset()
    done = [
        record
        for record in old
        if record.ingest in published or _is_discarded(storage, output, record)
    ]
    names = {record.ingest for record in done}
    expired = {record.ingest: _expirable(storage, output, record) for record in done}
    objects = [info for found in expired.values() for info in found]
    if not dry_run:
        map_concurrently(storage.delete, [info.uri for info in objects])
    return ExpiredIngests(
        ingests=tuple(name for name, found in expired.items() if found),
        objects=len(objects),
        bytes=sum(info.size for info in objects),
        unfinished=tuple(record.ingest for record in old if record.ingest not in names),
    )


def _is_discarded(storage: Storage, output: str, record: IngestRecord) -> bool:
    return IngestStore(storage, as_output(output), record.ingest).is_discarded()


def _expirable(storage: Storage, output: str, record: IngestRecord) -> list[ObjectInfo]:
    prefix = IngestStore(storage, as_output(output), record.ingest).prefix
    return [info for folder in EXPIRED for info in storage.objects(prefix + folder)]
