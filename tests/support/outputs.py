"""What must be true of an output at any moment, looked at from outside."""

from __future__ import annotations

import copy
import hashlib
import io
from functools import cache

import polars as pl

from pipeline.table.log import TableLog
from pipeline.table.retention import locate
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import OUTPUT, Run


def copied(backend: MemoryBackend) -> MemoryBackend:
    return MemoryBackend(dict(backend.stored), dict(backend.uploads), copy.copy(backend._numbers))


def visible(backend: MemoryBackend) -> dict[str, bytes]:
    """What a plain glob over the output sees."""
    return {
        uri.removeprefix(OUTPUT): one.data
        for uri, one in backend.stored.items()
        if uri.startswith(OUTPUT)
    }


@cache
def ids(data: bytes) -> tuple[int, ...]:
    """The ids in a file."""
    return tuple(pl.read_parquet(io.BytesIO(data))["id"])


def rows(files: dict[str, bytes]) -> list[int]:
    """The ids in files, sorted."""
    return sorted(i for data in files.values() for i in ids(data))


def check_manifests(backend: MemoryBackend) -> None:
    """Every file of the current manifest is there, whole, and named once; older ones are kept."""
    table_log = TableLog(backend.storage(), OUTPUT)
    head, _ = table_log.head()
    current = table_log.manifest(head.current)
    files = table_log.snapshot(current)
    assert files["key"].is_unique().all()
    there = visible(backend)
    for row in files.iter_rows(named=True):
        data = there[row["key"]]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert len(ids(data)) == row["rows"]
    if head.current > 1:
        locate(table_log, table_log.manifest(head.current - 1))  # keep_versions is 1


def check_settled(backend: MemoryBackend) -> None:
    """Nothing is under way: the output holds the manifest's files and nothing else."""
    check_manifests(backend)
    table_log = TableLog(backend.storage(), OUTPUT)
    head, _ = table_log.head()
    assert head.publishing is None
    assert set(table_log.snapshot(table_log.manifest())["key"]) == set(visible(backend))


def keys_of(run: Run, files: dict[str, bytes]) -> list[str]:
    return sorted(key for key in files if run.ledger.run in key)
