"""Encode and decode commit records: the record of one commit, or one that several commits share.

The commits of many windows are published together. A shared record freezes all of them with one
request, and is read with one.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from partitioning.table_file import TableFile, pack_tables
from pipeline.table.manifest import (
    FILES,
    NO_QUARANTINED,
    NO_REJECTED,
    QUARANTINED,
    REJECTED,
    CheckFigures,
    Commit,
    CommitEntry,
)

_SCHEMAS: Mapping[str, pl.Schema] = {
    "files": FILES,
    "quarantined": QUARANTINED,
    "rejected": REJECTED,
}
"""Tables of a record, which are attributes of a commit."""
_NO_ROWS: Mapping[str, pl.DataFrame] = {
    "files": FILES.to_frame(),
    "quarantined": NO_QUARANTINED,
    "rejected": NO_REJECTED,
}


def write_record(commit: Commit) -> bytes:
    """Return the record of one commit, as a table file with a checksum."""
    return _pack([commit], _meta(commit))


def write_shared(commits: Sequence[Commit]) -> bytes:
    """Return the record that commits share, as a table file with a checksum."""
    heights = [
        {name: getattr(commit, name).height for name in _SCHEMAS if getattr(commit, name).height}
        for commit in commits
    ]
    metas = [{**_meta(commit), "rows": rows} for commit, rows in zip(commits, heights, strict=True)]
    return _pack(commits, {"commits": metas})


def read_record(data: bytes) -> Commit:
    """Read the bytes that `write_record` returned.

    Raises:
        ValueError, KeyError, TypeError, PlanFormatError, pyarrow.ArrowException: They are damaged,
            or another file.
    """
    if data.startswith(b"ARROW1"):  # The older format, without a checksum.
        with pa.ipc.open_file(io.BytesIO(data)) as reader:
            table = reader.read_all()
        meta, read = json.loads(table.schema.metadata[b"chunkmap"]), lambda name: table
    else:
        file = TableFile(data)
        meta, read = file.meta, file.table
    entry = meta["entry"]
    stored = ["files", *(name for name in ("quarantined", "rejected") if entry.get(name))]
    return _commit(meta, {name: _frame(read, name) for name in stored})


def read_shared(data: bytes) -> list[Commit]:
    """Read the bytes that `write_shared` returned. Raises as `read_record`."""
    file = TableFile(data)
    metas = file.meta["commits"]
    commits: list[Commit] = []
    ends = dict.fromkeys(_SCHEMAS, 0)
    stored = {name for meta in metas for name in meta["rows"]}
    frames = {name: _frame(file.table, name) for name in stored}
    for meta in metas:
        own = {}
        for name, rows in meta["rows"].items():
            own[name] = frames[name][ends[name] : ends[name] + rows]
            ends[name] += rows
            if own[name].height != rows:
                raise ValueError(f"the table {name} has {frames[name].height} rows, too few")
        commits.append(_commit(meta, own))
    if any(frame.height != ends[name] for name, frame in frames.items()):
        raise ValueError("its tables have rows of no commit")
    if len({commit.entry.name for commit in commits}) < len(commits):
        raise ValueError("it has a commit twice")
    return commits


def _pack(commits: Sequence[Commit], meta: dict[str, Any]) -> bytes:
    tables = {}
    for name in _SCHEMAS:
        frames = [f for commit in commits if (f := getattr(commit, name)).height]
        if frames or name == "files":
            tables[name] = (pl.concat(frames) if frames else _NO_ROWS[name]).to_arrow()
    return pack_tables(tables, {**meta, "writer": uuid.uuid4().hex})


def _frame(read: Callable[[str], pa.Table], name: str) -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(read(name)))
    return frame.cast(dict(_SCHEMAS[name]))  # type: ignore[arg-type]


def _meta(commit: Commit) -> dict[str, Any]:
    return {
        "entry": commit.entry.model_dump(),
        "base": commit.base,
        "missing": commit.missing,
        "replaces": commit.replaces,
        "columns": commit.columns,
        "hive_types": dict(commit.hive_types),
        "left_out": commit.left_out,
        "checks": [asdict(check) for check in commit.checks],
    }


def _commit(meta: Mapping[str, Any], frames: Mapping[str, pl.DataFrame]) -> Commit:
    return Commit(
        entry=CommitEntry(**meta["entry"]),
        base=meta["base"],
        missing=tuple(meta["missing"]),
        replaces=tuple(meta["replaces"]),
        columns=dict(meta.get("columns", {})),
        hive_types=dict(meta.get("hive_types", {})),
        left_out=tuple(meta.get("left_out", ())),
        checks=tuple(CheckFigures(**check) for check in meta.get("checks", ())),
        **{**_NO_ROWS, **frames},
    )
