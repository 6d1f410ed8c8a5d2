"""Where a backfill's state lies: `<output>.chunkmap/backfills/<id>/`.

backfill.json    what it is: create-once, and last, so that a backfill that has one is whole
windows.arrow    its windows (schema WINDOWS): create-once
plan.arrow       the plan of all of them: create-once
job.yaml         the job: create-once
control.json     what users wish while it runs: replaced with If-Match
driver.json      who drives: advisory
progress.arrow   how far the windows were when the driver last looked: advisory
report.html, report.json
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import polars as pl

from partitioning import Plan
from pipeline.backfill.records import PROGRESS, WINDOWS, BackfillRecord, Control
from pipeline.driver import DriverRecord
from pipeline.errors import (
    AlreadyExistsError,
    ObjectMissingError,
    PreconditionFailedError,
    UsageError,
)
from pipeline.job import Job, parse_job
from pipeline.storage import Storage, join, parse, state_prefix

READERS = 16
"""Records read at a time."""


class BackfillStore:
    """One backfill's state in storage."""

    def __init__(self, storage: Storage, output: str, backfill: str) -> None:
        self.storage = storage
        self.backfill = backfill
        self.output = parse(output).uri.rstrip("/") + "/"
        self.prefix = join(state_prefix(self.output), "backfills", backfill) + "/"

    def create(self, record: BackfillRecord, windows: pl.DataFrame, plan: Plan, job: Job) -> bool:
        """Store a new backfill; False if somebody has stored it before."""
        control = Control(max_active=record.options.max_active, priority=record.options.priority)
        parts = {
            "plan.arrow": plan.to_bytes(),
            "windows.arrow": _pack(windows, WINDOWS),
            "job.yaml": job.to_yaml().encode(),
            "control.json": control.model_dump_json().encode(),
        }
        for name, data in parts.items():
            with suppress(AlreadyExistsError):
                self.storage.put_new(self.prefix + name, data)
        try:
            said = record.model_dump_json(indent=1).encode()
            self.storage.put_new(self.prefix + "backfill.json", said)
        except AlreadyExistsError:
            return False
        return True

    def record(self) -> BackfillRecord:
        """What the backfill is. Raises UsageError when there is none of this id."""
        try:
            blob = self.storage.get(self.prefix + "backfill.json")
        except ObjectMissingError as error:
            raise UsageError(f"there is no backfill {self.backfill} of {self.output}") from error
        return BackfillRecord.model_validate_json(blob.data)

    def windows(self) -> pl.DataFrame:
        """Its windows (schema WINDOWS)."""
        return _unpack(self.storage.get(self.prefix + "windows.arrow").data)

    def plan(self) -> Plan:
        """The frozen plan of all windows that are to be done, in the order of time."""
        return Plan.from_bytes(self.storage.get(self.prefix + "plan.arrow").data)

    def job(self) -> Job:
        """The job as it was at the creation."""
        text = self.storage.get(self.prefix + "job.yaml").data.decode()
        return parse_job(text, self.prefix + "job.yaml")

    def control(self) -> Control:
        """What users wish at this moment."""
        blob = self.storage.get(self.prefix + "control.json")
        return Control.model_validate_json(blob.data)

    def change(self, by: str, change: Callable[[Control], dict[str, Any]]) -> Control:
        """Change what is wished; whoever changes it at the same time is not overwritten.

        Args:
            by: Who wishes.
            change: From the present wishes to the fields that shall differ. May raise.
        """
        while True:
            blob = self.storage.get(self.prefix + "control.json")
            now = Control.model_validate_json(blob.data)
            fields = change(now)
            if all(getattr(now, name) == value for name, value in fields.items()):
                return now
            wished = Control.model_validate({**now.model_dump(), **fields, "by": by})
            data = wished.model_dump_json().encode()
            with suppress(PreconditionFailedError):
                self.storage.put_if(self.prefix + "control.json", data, blob.etag)
                return wished

    def driver(self) -> DriverRecord | None:
        """Who drives it or drove it last, if anybody did."""
        blob = self.storage.get_if_there(self.prefix + "driver.json")
        return None if blob is None else DriverRecord.model_validate_json(blob.data)

    def write_progress(self, progress: pl.DataFrame) -> None:
        """Store how far the windows are (schema PROGRESS): advisory."""
        self.storage.put(self.prefix + "progress.arrow", _pack(progress, PROGRESS))

    def progress(self) -> pl.DataFrame | None:
        """How far the windows were when a driver last said so, if one did."""
        blob = self.storage.get_if_there(self.prefix + "progress.arrow")
        return None if blob is None else _unpack(blob.data)


def _pack(frame: pl.DataFrame, schema: pl.Schema) -> bytes:
    sink = io.BytesIO()
    frame.match_to_schema(schema).write_ipc(sink, compression="zstd")
    return sink.getvalue()


def _unpack(data: bytes) -> pl.DataFrame:
    return pl.read_ipc(io.BytesIO(data))


def backfills_of(storage: Storage, output: str) -> list[BackfillRecord]:
    """The records of all backfills of an output, oldest first."""
    prefix = join(state_prefix(parse(output).uri), "backfills") + "/"
    uris = [info.uri for info in storage.objects(prefix) if info.uri.endswith("/backfill.json")]
    with ThreadPoolExecutor(READERS) as pool:
        blobs = list(pool.map(storage.get, uris))
    found = [BackfillRecord.model_validate_json(blob.data) for blob in blobs]
    return sorted(found, key=lambda record: record.created)


def find_backfill(
    storage: Storage, outputs: Iterator[str] | list[str], wanted: str
) -> BackfillStore:
    """The backfill whose id begins as asked for.

    Raises:
        UsageError: none does (the nearest are named), or several.
    """
    known = {one.backfill: one for uri in outputs for one in backfills_of(storage, uri)}
    found = [one for one in known if one.startswith(wanted)]
    if len(found) == 1:
        record = known[found[0]]
        return BackfillStore(storage, record.output, record.backfill)
    if found:
        raise UsageError(
            f"{wanted!r} is the beginning of {len(found)} backfills: {', '.join(found)}"
        )
    near = get_close_matches(wanted, known, 3, 0.5) or list(known)[-3:]
    hint = f"nearest: {', '.join(near)}" if near else "none is known here; name its output: -o URI"
    raise UsageError(f"there is no backfill {wanted!r}", hint=hint)
