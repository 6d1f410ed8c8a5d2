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
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from partitioning import Plan
from partitioning.integrity import checked_plan
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job, parse_job
from pipeline.errors import (
    AlreadyExistsError,
    ObjectMissingError,
    PreconditionFailedError,
    StateError,
    UsageError,
)
from pipeline.runs.backfill.records import PROGRESS, STATES, WINDOWS, BackfillRecord, Control
from pipeline.runs.driver.heartbeat import DriverRecord, read_driver
from pipeline.storage import Storage, join, parse, same_place, state_prefix
from pipeline.storage.documents import (
    LABEL_PATTERN,
    parse_stored,
    parse_text,
    reading,
    seal_bytes,
    seal_json,
    seal_text,
    unseal_bytes,
)

log = logging.getLogger(__name__)


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
            "job.yaml": seal_text(job.to_yaml()),
            "control.json": seal_json(control.model_dump_json().encode()),
        }
        for name, data in parts.items():
            with suppress(AlreadyExistsError):
                self.storage.put_new(self.prefix + name, data)
        try:
            said = seal_json(record.model_dump_json(indent=1).encode())
            self.storage.put_new(self.prefix + "backfill.json", said)
        except AlreadyExistsError:
            return False
        return True

    def record(self) -> BackfillRecord:
        """What the backfill is.

        Raises:
            UsageError: there is none of this id.
            StateError: its record is damaged, or another one's.
        """
        uri = self.prefix + "backfill.json"
        try:
            data = self.storage.get(uri).data
        except ObjectMissingError as error:
            raise UsageError(f"there is no backfill {self.backfill} of {self.output}") from error
        record = parse_stored(BackfillRecord, data, uri)
        if record.backfill != self.backfill or not same_place(record.output, self.output):
            said = f"it is the record of backfill {record.backfill} of {record.output}"
            raise StateError(uri, said)
        return record

    def windows(self) -> pl.DataFrame:
        """Its windows (schema WINDOWS). Raises StateError if they are damaged."""
        uri = self.prefix + "windows.arrow"
        data = self.storage.get(uri).data
        with reading(uri):
            windows = _unpack(data, WINDOWS)
            runs = windows["run"].drop_nulls()
            if not runs.str.contains(r"^[0-9a-f]{16}$").all():
                raise ValueError("it names runs that cannot be")
            return windows

    def plan(self) -> Plan:
        """The frozen plan of all windows that are to be done, in the order of time.

        Raises StateError if it is damaged.
        """
        uri = self.prefix + "plan.arrow"
        data = self.storage.get(uri).data
        with reading(uri):
            return checked_plan(data)

    def job(self) -> Job:
        """The job as it was at the creation. Raises StateError if it is damaged."""
        uri = self.prefix + "job.yaml"
        return parse_job(parse_text(self.storage.get(uri).data, uri), uri)

    def control(self) -> Control:
        """What users wish at this moment. Raises StateError if that cannot be read."""
        return self._control()[0]

    def _control(self) -> tuple[Control, str]:
        """The control, and its ETag."""
        uri = self.prefix + "control.json"
        blob = self.storage.get(uri)
        hint = "restore it, or write {} in its place: nothing is paused then, nothing cancelled"
        return parse_stored(Control, blob.data, uri, hint=hint), blob.etag

    def change(self, by: str, change: Callable[[Control], dict[str, Any]]) -> Control:
        """Change what is wished; whoever changes it at the same time is not overwritten.

        Args:
            by: Who wishes.
            change: From the present wishes to the fields that shall differ. May raise.
        """
        while True:
            now, etag = self._control()
            fields = change(now)
            if all(getattr(now, name) == value for name, value in fields.items()):
                return now
            wished = Control.model_validate({**now.model_dump(), **fields, "by": by})
            data = seal_json(wished.model_dump_json().encode())
            with suppress(PreconditionFailedError):
                self.storage.put_if(self.prefix + "control.json", data, etag)
                return wished

    def driver(self) -> DriverRecord | None:
        """Who drives it or drove it last, if anybody did and it can be told."""
        return read_driver(self.storage, self.prefix)

    def write_progress(self, progress: pl.DataFrame) -> None:
        """Store how far the windows are (schema PROGRESS): advisory."""
        self.storage.put(self.prefix + "progress.arrow", _pack(progress, PROGRESS))

    def progress(self) -> pl.DataFrame | None:
        """How far the windows were when a driver last said so, if one did and it can be read."""
        uri = self.prefix + "progress.arrow"
        blob = self.storage.get_or_none(uri)
        try:
            with reading(uri):
                progress = None if blob is None else _unpack(blob.data, PROGRESS)
                if progress is not None and not progress["state"].is_in(STATES).all():
                    raise ValueError("it names states that there are not")
        except StateError as error:
            log.warning("%s; counting again", error)
            return None
        return progress


def _pack(frame: pl.DataFrame, schema: pl.Schema) -> bytes:
    sink = io.BytesIO()
    frame.match_to_schema(schema).write_ipc(sink, compression="zstd")
    return seal_bytes(sink.getvalue())


def _unpack(data: bytes, schema: pl.Schema) -> pl.DataFrame:
    # By way of Arrow, which looks whether what it was given is what it says, and does not panic.
    with pa.ipc.open_file(pa.py_buffer(unseal_bytes(data))) as reader:
        table = reader.read_all()
    table.validate(full=True)
    frame = pl.DataFrame(pl.from_arrow(table)).match_to_schema(schema)
    if (
        "label" not in schema
        or not frame["label"].str.contains(LABEL_PATTERN).fill_null(False).all()
    ):
        raise ValueError("it names windows that cannot be")
    return frame


def backfills_of(storage: Storage, output: str) -> list[BackfillRecord]:
    """The records of all backfills of an output that can be read, oldest first."""
    prefix = join(state_prefix(parse(output).uri), "backfills") + "/"
    names = (info.uri.removeprefix(prefix).partition("/") for info in storage.objects(prefix))
    ids = [one for one, _, rest in names if rest == "backfill.json"]

    def read(one: str) -> BackfillRecord | None:
        try:
            return BackfillStore(storage, output, one).record()
        except StateError as error:
            log.warning("%s; this backfill is left out of account", error)
            return None

    found = [record for record in map_concurrently(read, ids) if record is not None]
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
